"""Messages of the admin socket and of the channels between a supervisor and its processes.

One JSON object a line, UTF-8. A request has ``id`` and ``method`` (and ``params``), its answer the same ``id`` and
``result`` or ``error``; a message with ``event`` expects no answer.
"""

import json
from math import isfinite
from typing import Any

from wire.errors import WireError, WireFault

Message = dict[str, Any]

# A line holds at most one page of flows (see the `flows` method), far below this.
MAX_LINE_BYTES = 4 * 1024 * 1024


def encode_message(message: Message) -> bytes:
    """One line, with its newline."""
    return json.dumps(message, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def decode_message_untrusted(line: bytes) -> Message:
    """Read one line. Raises WireError (ADMIN_MALFORMED)."""
    try:
        message = json.loads(line.decode(), parse_constant=_refuse_number, parse_float=_parse_finite)
    except (ValueError, RecursionError) as error:
        raise WireError(WireFault.ADMIN_MALFORMED, f"not a JSON line: {error}") from None
    if not isinstance(message, dict):
        raise WireError(WireFault.ADMIN_MALFORMED, "not a JSON object")
    return message


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text} is not JSON")


def _parse_finite(text: str) -> float:
    number = float(text)
    return number if isfinite(number) else _refuse_number(text)


class LineReader:
    """Cuts a byte stream into messages; holds at most MAX_LINE_BYTES."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, data: bytes) -> list[Message]:
        """Messages that ``data`` completes, in order. Raises WireError on a bad or endless line."""
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if any(len(line) > MAX_LINE_BYTES for line in (*lines, self._buffer)):
            raise WireError(WireFault.ADMIN_MALFORMED, f"a line of more than {MAX_LINE_BYTES} bytes")
        return [decode_message_untrusted(line) for line in lines]
