"""The transaction ids of a session's checks, 8 bytes each: a day of them must not weigh more than the call. Pure."""

from array import array
from bisect import bisect_left
from collections import deque

# A day of checks every 1.3 s. An older one, replayed, would count as fresh.
_CHUNK = 1024
_MAX_CHUNKS = 64


class Transactions:
    """Remembers the last 65,536 ids at least, in 0.6 MB at most.

    Kept are 64-bit hashes, keyed where Python is not told otherwise; clients need not make every byte of an id random. The
    newest are a set; every 1024 of them become a sorted array, of which the oldest goes. Two ids of one hash, 4 in
    10^15 with 65,536, mean a check that is answered and not counted: the next one is.
    """

    def __init__(self) -> None:
        self._newest: set[int] = set()
        self._older: deque[array[int]] = deque(maxlen=_MAX_CHUNKS)

    def __contains__(self, transaction_id: bytes) -> bool:
        hashed = hash(transaction_id)
        return hashed in self._newest or any(_is_in(hashed, chunk) for chunk in self._older)

    def add(self, transaction_id: bytes) -> None:
        """Remember it."""
        self._newest.add(hash(transaction_id))
        if len(self._newest) == _CHUNK:
            self._older.append(array("q", sorted(self._newest)))
            self._newest.clear()


def _is_in(hashed: int, chunk: "array[int]") -> bool:
    at = bisect_left(chunk, hashed)
    return at < len(chunk) and chunk[at] == hashed
