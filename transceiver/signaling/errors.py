"""One error for everything that signaling refuses; HTTP and the WebSocket each render it in their way."""

from collections.abc import Mapping


class SignalingError(Exception):
    """``status`` as in HTTP; the message tells the client's developer what to do."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = dict(headers or {})
