"""A TCP proxy in front of Redis that is slow, stops reading, refuses, or leads elsewhere, when it is told to."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine, Iterator
from typing import Any

_CHUNK_BYTES = 65_536


class SlowProxy:
    """Runs in a thread of its own. ``delay_s``: how much later each chunk arrives, each way; may change at any time."""

    def __init__(self, target: tuple[str, int], host: str = "127.0.0.1") -> None:
        self.delay_s = 0.0
        self.connections = 0
        self._target = target
        self._loop = asyncio.new_event_loop()
        # Clear: what has come waits in the kernel, and connections stay open.
        self._reads = asyncio.Event()
        self._reads.set()
        self._open: set[asyncio.Task[None]] = set()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, host, 0))
        self.host, self.port = self._server.sockets[0].getsockname()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def stall(self) -> None:
        """Read nothing more, from neither side."""
        self._loop.call_soon_threadsafe(self._reads.clear)

    def go_on(self) -> None:
        """Read again."""
        self._loop.call_soon_threadsafe(self._reads.set)

    def cut(self) -> None:
        """End every connection."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._open])

    def refuse(self) -> None:
        """As if nobody listened; ends every connection."""
        self._do(self._end())

    def accept(self) -> None:
        """Listen again."""
        self._do(self._listen())

    def lead_to(self, target: tuple[str, int]) -> None:
        """Have everybody connect anew, to another server."""
        self._target = target
        self.cut()

    def close(self) -> None:
        """End everything."""
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(5)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, self.host, self.port)

    async def _end(self) -> None:
        self._server.close()
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self.connections += 1
        writers = [writer]
        try:
            target_reader, target_writer = await asyncio.open_connection(*self._target)
            writers.append(target_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, target_writer))
                group.create_task(self._pump(target_reader, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side has gone, or we were told to cut
        finally:
            self._open.discard(task)
            for one in writers:
                one.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        late: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, chunk = await late.get()
                await asyncio.sleep(max(0.0, due - self._loop.time()))
                await self._reads.wait()
                writer.write(chunk)
                await writer.drain()
                if not chunk:
                    raise ConnectionResetError("it has ended")

        delivery = asyncio.create_task(deliver())
        try:
            while chunk := await self._read(reader):
                late.put_nowait((self._loop.time() + self.delay_s, chunk))
            late.put_nowait((self._loop.time() + self.delay_s, b""))
            await delivery
        finally:
            delivery.cancel()

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        await self._reads.wait()
        return await reader.read(_CHUNK_BYTES)


@contextlib.contextmanager
def slow_proxy(target: tuple[str, int]) -> Iterator[SlowProxy]:
    """For the life of the block; not slow at first."""
    proxy = SlowProxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
