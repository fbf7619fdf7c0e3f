"""Request and answer over a stream of JSON lines: the admin socket, and a supervisor's line to its processes."""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from host.errors import OperatorError
from wire.admin import MAX_LINE_BYTES, Message, decode_message_untrusted, encode_message
from wire.errors import WireError

logger = logging.getLogger(__name__)

# Two of the longest lines; a peer that leaves more unread is broken or hostile.
_MAX_UNREAD_BYTES = 2 * MAX_LINE_BYTES

RequestHandler = Callable[[str, dict[str, Any]], Awaitable[Any]]
EventHandler = Callable[[Message], None]


class ChannelError(OperatorError):
    """The other side answered with an error, did not answer in time, or is gone."""


async def _refuse(method: str, params: dict[str, Any]) -> Any:
    raise ChannelError(f"no method {method!r} here")


def _ignore(message: Message) -> None:
    logger.debug("event %s has no handler", message.get("event"))


class Channel:
    """One end. Requests may go either way; events expect no answer."""

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        on_request: RequestHandler = _refuse,
        on_event: EventHandler = _ignore,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._on_request = on_request
        self._on_event = on_event
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._serving: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until the other side closes, then fail what still waits."""
        try:
            while line := await self._reader.readline():
                self._receive(decode_message_untrusted(line))
        except (WireError, ValueError, ConnectionError) as error:
            logger.warning("channel closed: %s", error)
        finally:
            self.close()

    def close(self) -> None:
        """Close this end; pending requests raise ChannelError."""
        self._writer.close()
        for task in self._serving:
            task.cancel()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(ChannelError("the other side is gone"))
        self._waiting.clear()

    @property
    def is_closed(self) -> bool:
        """Whether this end, or the other, is gone."""
        return self._writer.is_closing()

    def send_event(self, event: str, **fields: Any) -> None:
        """Tell the other side something; nothing happens if it is gone."""
        if not self._writer.is_closing():
            self._write({"event": event, **fields})

    async def drain(self) -> None:
        """Wait until the other side has read most of what was sent. Raises ConnectionError if it is gone."""
        await self._writer.drain()

    async def request(self, method: str, *, timeout_s: float = 5.0, **params: Any) -> Any:
        """The result of a method on the other side. Raises ChannelError."""
        if self._writer.is_closing():
            raise ChannelError("the other side is gone")
        request_id = next(self._ids)
        waiting = self._waiting[request_id] = asyncio.get_running_loop().create_future()
        self._write({"id": request_id, "method": method, "params": params})
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting
        except TimeoutError:
            raise ChannelError(f"no answer to {method!r} within {timeout_s:g} s") from None
        finally:
            self._waiting.pop(request_id, None)

    def _write(self, message: Message) -> None:
        """Send; a peer that does not read what it asked for is cut off."""
        if self._writer.transport.get_write_buffer_size() > _MAX_UNREAD_BYTES:
            logger.warning("channel closed: the other side does not read")
            self._writer.transport.abort()
            return
        self._writer.write(encode_message(message))

    def _receive(self, message: Message) -> None:
        match message:
            case {"event": str()}:
                self._on_event(message)
            case {"id": int(request_id), "method": str(method)}:
                params = message.get("params")
                task = asyncio.create_task(
                    self._answer(request_id, method, params if isinstance(params, dict) else {})
                )
                self._serving.add(task)
                task.add_done_callback(self._serving.discard)
            case {"id": int(request_id)}:
                self._settle(request_id, message)
            case _:
                raise ValueError("message is no event, request or answer")

    def _settle(self, request_id: int, message: Message) -> None:
        waiting = self._waiting.get(request_id)
        if waiting is None or waiting.done():
            return
        if "error" in message:
            waiting.set_exception(ChannelError(str(message["error"])))
        else:
            waiting.set_result(message.get("result"))

    async def _answer(self, request_id: int, method: str, params: dict[str, Any]) -> None:
        answer: Message = {"id": request_id}
        try:
            answer["result"] = await self._on_request(method, params)
        except (OperatorError, ValueError) as error:
            answer["error"] = str(error)
        except TypeError:
            answer["error"] = (
                f"{method!r} does not take {', '.join(f'{k}={v!r}' for k, v in params.items()) or 'nothing'}"
            )
        except Exception:
            logger.exception("%s failed", method)
            answer["error"] = f"{method!r} failed; the supervisor's log says why"
        if not self._writer.is_closing():
            self._write(answer)


STREAM_LIMIT = MAX_LINE_BYTES
