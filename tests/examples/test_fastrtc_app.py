"""examples/fastrtc_app.py on the unmodified FastRTC, called by stock aiortc clients."""

from pathlib import Path

import pytest

from tests.examples.app import serving
from tests.examples.checks import check_two_calls

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


async def test_two_clients_at_once(tmp_path: Path, examples_python: Path) -> None:
    with serving(examples_python, "fastrtc_app.py", tmp_path) as app:
        await check_two_calls(
            app, "/webrtc/offer", "hello", lambda message: "Server received: hello" in message
        )
