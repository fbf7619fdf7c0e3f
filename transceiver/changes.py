"""What an operator changes on the live transceivers of a host: drain, stop, start, scale.

Each verb says what is wanted and returns; a task of the slot gets there, whether or not anybody waits for it:

    wanted      new sessions   calls that there are             then
    SERVING     yes            go on
    DRAINED     no             go on, until the deadline        the process stays, and crashes change nothing
    STOPPED     no             go on, until the deadline        the process ends
    REMOVED     no             go on, until the deadline        the process ends, and its sockets are closed

Whether a process may take new sessions is in the supervisor's own cell of the load board, so it holds from one moment to
the next for every process, also for one that is being restarted.
"""

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from host.channel import ChannelError
from host.errors import ConfigError, OperatorError
from host.process import Process, ProcessSpec, ProcessState
from host.supervisor import ProcessGroup
from transceiver.load_board import MAX_PROCESSES, LoadBoard
from transceiver.slots import BACKLOG, SlotMaker, TransceiverSlot, Wanted, shut

logger = logging.getLogger(__name__)

_POLL_S = 0.1
# A session's close takes at most 5 s.
GOODBYE_TIMEOUT_S = 7.0
_MAX_DRAIN_S = 7 * 86400.0


class Changes:
    """The verbs. ``slots`` is by name, and shared with the service; ``drain_s`` is for those who name no time."""

    def __init__(
        self,
        slots: dict[str, TransceiverSlot],
        processes: ProcessGroup,
        board: LoadBoard,
        http: socket.socket,
        maker: SlotMaker,
        make_spec: Callable[[TransceiverSlot], ProcessSpec],
        drain_s: float,
    ) -> None:
        self._slots = slots
        self._processes = processes
        self._board = board
        self._http = http
        self._maker = maker
        self._make_spec = make_spec
        self._drain_s = drain_s
        self._starting = asyncio.Lock()
        self._is_over = False

    def drain(self, names: Sequence[str], deadline_s: float | None) -> None:
        """Take no new sessions; end those that are left after ``deadline_s``, or never. A later word on it counts."""
        deadline = _deadline("--deadline", deadline_s)
        for slot in self.find(names):
            if slot.wanted is Wanted.SERVING:
                self._want(slot, Wanted.DRAINED, deadline)
            elif deadline is not None:
                slot.deadline = deadline

    def stop(self, names: Sequence[str], drain_s: float | None) -> None:
        """Drain for at most that long, then end the process."""
        deadline = _deadline("--drain", self._drain_s if drain_s is None else drain_s)
        for slot in self.find(names):
            if not slot.wanted.ends_process:
                self._want(slot, Wanted.STOPPED, deadline)
            elif drain_s is not None:
                slot.deadline = deadline

    async def start(self, names: Sequence[str]) -> None:
        """Take new sessions again. Raises StartError if a process does not come up; it is tried again and again."""
        slots = self.find(names)
        async with self._starting:
            self._check_not_over()
            failures = await asyncio.gather(*map(self._start, slots), return_exceptions=True)
        for failure in failures:
            if failure is not None:
                raise failure

    async def scale(self, count: int, drain_s: float | None) -> int:
        """Have so many, numbered from 0: make what is missing, drain and remove what is too much. Returns how many there were."""
        if type(count) is not int or not 1 <= count <= MAX_PROCESSES:
            raise ConfigError("N", f"needs to be 1 to {MAX_PROCESSES}, not {count!r}")
        deadline = _deadline("--drain", self._drain_s if drain_s is None else drain_s)
        async with self._starting:
            self._check_not_over()
            before = sum(slot.wanted is not Wanted.REMOVED for slot in self._slots.values())
            for slot in list(self._slots.values()):
                self._check_not_over()
                if slot.index < count:
                    if slot.wanted is Wanted.REMOVED and await self._is_left(slot):
                        await self._start(slot)
                elif slot.wanted is not Wanted.REMOVED:
                    self._want(slot, Wanted.REMOVED, deadline)
                elif drain_s is not None:
                    slot.deadline = deadline
            self._check_not_over()
            taken = {slot.index for slot in self._slots.values()}
            await self._add([index for index in range(count) if index not in taken])
        return before

    def drain_all(self) -> None:
        """The host is to end: nothing takes new sessions, and nobody but the supervisor ends a process now."""
        self._is_over = True
        for slot in self._slots.values():
            _cancel(slot)
            self._board.admit(slot.index, False)
            if slot.wanted is Wanted.SERVING:
                slot.wanted = Wanted.DRAINED

    def find(self, names: Sequence[str]) -> list[TransceiverSlot]:
        """Those of these names. Raises OperatorError."""
        for name in names:
            if name not in self._slots:
                raise OperatorError(
                    f"no transceiver {name!r} here; there are {', '.join(sorted(self._slots))}"
                )
        return [self._slots[name] for name in dict.fromkeys(names)]

    def _check_not_over(self) -> None:
        if self._is_over:
            raise OperatorError("this relayctl is ending; its transceivers take no more calls")

    def _want(self, slot: TransceiverSlot, wanted: Wanted, deadline: float | None) -> None:
        self._board.admit(slot.index, False)
        slot.wanted, slot.deadline = wanted, deadline
        if slot.is_ending:  # it looks at what is wanted once more
            return
        _cancel(slot)
        slot.changing = asyncio.create_task(self._change(slot), name=f"{slot.name} is to be {wanted.name}")
        slot.changing.add_done_callback(_tell_failure)

    async def _change(self, slot: TransceiverSlot) -> None:
        process = self._process(slot)
        await self._await_calls(slot, process)
        if not slot.wanted.ends_process:
            logger.info("%s is drained", slot.name)
            return
        slot.is_ending = True
        try:
            await process.stop()
            if slot.wanted is Wanted.REMOVED:
                await self._remove(slot, process)
            else:
                self._shut(slot)
                logger.info("%s is stopped", slot.name)
        finally:
            slot.is_ending = False

    async def _await_calls(self, slot: TransceiverSlot, process: Process) -> None:
        while self._board.load(slot.index).sessions:
            if slot.deadline is not None and time.monotonic() >= slot.deadline:
                with contextlib.suppress(ChannelError):  # it crashed, and its calls with it; or it hangs
                    await process.request("end_sessions", timeout_s=GOODBYE_TIMEOUT_S, reason="drained")
                if slot.wanted.ends_process:
                    return
            await asyncio.sleep(_POLL_S)

    async def _start(self, slot: TransceiverSlot) -> None:
        if not await self._is_left(slot):
            raise OperatorError(f"{slot.name} was removed; `relayctl transceivers scale` makes it anew")
        process = self._process(slot)
        _cancel(slot)
        slot.wanted, slot.deadline = Wanted.SERVING, None
        self._board.admit(slot.index, True)
        if process.state is ProcessState.STOPPED:
            self._http.listen(BACKLOG)
            slot.reopen()
            self._board.open(slot.index, slot.internal_http.port)
            await process.start()

    async def _is_left(self, slot: TransceiverSlot) -> bool:
        """Whether the slot is still there, once a process that is ending has ended. Raises OperatorError if the host is to end."""
        if slot.is_ending and slot.changing is not None:
            await asyncio.wait({slot.changing})
        # The end of the host cancels that task, which wakes us.
        self._check_not_over()
        return slot.name in self._slots

    async def _add(self, indexes: Sequence[int]) -> None:
        added: list[TransceiverSlot] = []
        try:
            for index in indexes:
                added.append(self._maker.make(index))
            self._slots.update({slot.name: slot for slot in added})
            for slot in added:
                self._board.open(slot.index, slot.internal_http.port)
                self._board.admit(slot.index, True)
            if added:
                self._http.listen(BACKLOG)
            await self._processes.add([self._make_spec(slot) for slot in added])
        except BaseException:
            for slot in added:
                self._forget(slot)
            raise

    async def _remove(self, slot: TransceiverSlot, process: Process) -> None:
        await self._processes.remove([process])
        self._forget(slot)
        self._shut_http_if_idle()
        logger.info("%s is removed", slot.name)

    def _forget(self, slot: TransceiverSlot) -> None:
        # Its number, and so its cell of the board, may soon be another slot's.
        if slot.changing is not asyncio.current_task():
            _cancel(slot)
        if (
            self._slots.get(slot.name) is slot
        ):  # else it was never told of, or the service has closed everything
            del self._slots[slot.name]
            self._board.admit(slot.index, False)
            self._board.open(slot.index, 0)
        slot.close()

    def _shut(self, slot: TransceiverSlot) -> None:
        slot.shut()
        self._board.open(slot.index, 0)
        self._shut_http_if_idle()

    def _shut_http_if_idle(self) -> None:
        """A client that is refused can go elsewhere; in the queue of nobody it would wait."""
        if all(process.state is ProcessState.STOPPED for process in self._processes):
            shut(self._http)

    def _process(self, slot: TransceiverSlot) -> Process:
        for process in self._processes:
            if process.spec.name == slot.name:
                return process
        raise OperatorError(f"{slot.name} has no process any more")


def _cancel(slot: TransceiverSlot) -> None:
    if slot.changing is not None:
        slot.changing.cancel()
        slot.changing = None


def _deadline(flag: str, seconds: Any) -> float | None:
    """``seconds`` from now, None for never. Raises ConfigError naming ``flag``."""
    if seconds is None:
        return None
    if not isinstance(seconds, int | float) or not 0 <= seconds <= _MAX_DRAIN_S:
        raise ConfigError(flag, f"needs seconds from 0 to {_MAX_DRAIN_S:g}, not {seconds!r}")
    return time.monotonic() + float(seconds)


def _tell_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.error("%s: failed", task.get_name(), exc_info=error)
