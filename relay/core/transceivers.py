"""Numbers for transceivers' addresses, so that flows and batches of packets need not hold addresses."""

from collections.abc import Collection

from wire.address import Address

# Transceivers come and go for months; from here on, those that no flow names are forgotten.
_MANY = 16_384


class Transceivers:
    """``numbers`` and ``addresses``, one the inverse of the other; ``changes`` grows whenever they change.

    An address keeps its number until ``forget_all_but``.
    """

    def __init__(self) -> None:
        self.changes = 0
        self.addresses: list[Address] = []
        self.numbers: dict[Address, int] = {}
        self._free: list[int] = []
        self._clear_at = _MANY

    def number(self, address: Address) -> int:
        """The number of an address, a free one if it is new."""
        number = self.numbers.get(address)
        if number is not None:
            return number
        self.changes += 1
        if self._free:
            number = self._free.pop()
            self.addresses[number] = address
        else:
            number = len(self.addresses)
            self.addresses.append(address)
        self.numbers[address] = number
        return number

    @property
    def is_due_for_clearing(self) -> bool:
        """Whether so many are known that most may be of the past."""
        return len(self.numbers) >= self._clear_at

    def forget_all_but(self, numbers: Collection[int]) -> None:
        """Give up the numbers of all other addresses."""
        kept = {self.addresses[number]: number for number in numbers}
        self.changes += 1
        self._free = sorted(set(range(len(self.addresses))) - set(numbers), reverse=True)
        self.numbers = kept
        self._clear_at = max(_MANY, 2 * len(kept))
