"""What the supervisor does with the flows in the kernel's maps, while it runs: one sweep after another.

Each ends silent flows and finds the hosts to forward to. With a cache, one sweep in each ``refresh_s`` tells it of all
living flows, as no worker sees what XDP forwards.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable

from fleet.line import RelayLine
from relay.dataplane.bpf.next_hops import NextHops
from relay.dataplane.sweep import Sweep

_SWEEP_INTERVAL_S = 1.0
# A sweep takes about 1 µs a flow; between two of them is this many times as long.
_SWEEP_PAUSE_FACTOR = 20
# An agent that has not read its line within these has other cares: the next round tells it.
_TELL_TRIES, _TELL_AGAIN_S = 25, 0.02


class Sweeper:
    """See the top of this file.

    new_sweep: begins one; its argument is whether it gathers records of living flows. want: told of hosts to forward to.
    ``expired`` and ``untold`` count flows over all sweeps; ``gauges`` are of the last one.
    """

    def __init__(
        self,
        new_sweep: Callable[[bool], Sweep],
        want: Callable[[set[bytes]], None],
        next_hops: NextHops,
        line: RelayLine | None,
        refresh_s: float,
    ) -> None:
        self.expired = self.untold = 0
        self.gauges = {"flows": 0, "assured_flows": 0}
        self._new_sweep = new_sweep
        self._want = want
        self._next_hops = next_hops
        self._line = line
        self._refresh_s = refresh_s
        self._round_due = time.monotonic()
        self._hurry = asyncio.Event()

    def tell_again(self) -> None:
        """The cache may have lost its memory: tell it of everything now."""
        self._round_due = time.monotonic()
        self._hurry.set()

    async def run(self) -> None:
        """Sweep until cancelled. Raises OSError."""
        hosts: set[bytes] = set()
        while True:
            self._hurry.clear()
            sweep, spent_s = await self._sweep()
            self.gauges = {"flows": sweep.assured + sweep.provisional, "assured_flows": sweep.assured}
            self.expired += sweep.expired
            self._want(sweep.hosts)
            # One of a flow that was made while the sweep went on was not seen by it.
            self._next_hops.forget_all_but(hosts | sweep.hosts)
            hosts = sweep.hosts
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(_SWEEP_INTERVAL_S, spent_s * _SWEEP_PAUSE_FACTOR)):
                    await self._hurry.wait()

    async def _sweep(self) -> tuple[Sweep, float]:
        """One walk, and the time that it took of the supervisor."""
        line = self._line if time.monotonic() >= self._round_due else None
        if line is not None:
            self._round_due = time.monotonic() + self._refresh_s
        sweep, spent_s, is_heard = self._new_sweep(line is not None), 0.0, True
        began = time.monotonic()
        for records in sweep.steps():
            spent_s += time.monotonic() - began
            await asyncio.sleep(0)
            if line is not None:
                is_heard = await self._tell(line, records, _TELL_TRIES if is_heard else 1)
            began = time.monotonic()
        return sweep, spent_s

    async def _tell(self, line: RelayLine, records: list[bytes], tries: int) -> bool:
        """Whether all could be said within so many tries."""
        for left in reversed(range(tries)):
            unsaid = line.tell(records)
            if not unsaid:
                return True
            records = records[len(records) - unsaid :]
            if left:
                await asyncio.sleep(_TELL_AGAIN_S)
        self.untold += len(records)
        return False
