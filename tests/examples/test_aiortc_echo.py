"""examples/aiortc_echo.py, called by stock aiortc clients and by Chromium."""

from pathlib import Path

import pytest

from bench.chromium import CONNECT_TIMEOUT_S, chromium
from tests.e2e.instance import wait_until
from tests.examples.app import serving
from tests.examples.checks import check_two_calls

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_STATS = """async () => {
    const stats = [...(await peer.getStats()).values()];
    const {packetsReceived, audioLevel} = stats.find(s => s.type === "inbound-rtp") ?? {};
    const candidates = stats.filter(s => s.type === "remote-candidate").map(s => `${s.address}:${s.port}`);
    return {received: packetsReceived ?? 0, level: audioLevel ?? 0, candidates};
}"""


async def test_two_clients_at_once(tmp_path: Path, plain_python: Path) -> None:
    with serving(plain_python, "aiortc_echo.py", tmp_path) as app:
        await check_two_calls(app, "/offer", "hello", lambda message: message == "hello")


def test_chromium_by_the_page(tmp_path: Path, plain_python: Path) -> None:
    with serving(plain_python, "aiortc_echo.py", tmp_path) as app, chromium(tmp_path / "profile") as context:
        page = context.pages[0]
        page.goto(app.url)
        page.click("#call")
        page.wait_for_function(
            "document.getElementById('state').value === 'connected'", timeout=CONNECT_TIMEOUT_S * 1000
        )
        wait_until(lambda: page.evaluate(_STATS)["level"] > 0.02, 30, "the microphone's beeps in the echo")
        wait_until(lambda: page.text_content("#messages") == "ping", 30, "data channel")
        stats = page.evaluate(_STATS)
        assert stats["candidates"] == [app.vip]
        assert stats["received"] > 0
        assert app.relay.verdicts()["forward_client"] >= stats["received"]
