"""examples/pipecat_bot.py on the unmodified pipecat, called by stock aiortc clients."""

import json
from pathlib import Path

import aiohttp
import pytest

from tests.examples.app import serving
from tests.examples.caller import calling, until
from tests.examples.checks import PITCHES_HZ, check_two_calls

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

_CLIENT_READY = {
    "label": "rtvi-ai",
    "type": "client-ready",
    "id": "1",
    "data": {"version": "1.0.0", "about": {"library": "test"}},
}


def _is_bot_ready(message: str) -> bool:
    return bool(json.loads(message).get("type") == "bot-ready")


async def test_two_clients_at_once(tmp_path: Path, examples_python: Path) -> None:
    with serving(examples_python, "pipecat_bot.py", tmp_path) as app:
        await check_two_calls(app, "/api/offer", json.dumps(_CLIENT_READY), _is_bot_ready)


async def test_what_pipecats_own_client_does(tmp_path: Path, examples_python: Path) -> None:
    """It offers two video sections, trickles candidates, negotiates anew, and restarts the connection of a bot."""
    with serving(examples_python, "pipecat_bot.py", tmp_path) as app:
        url = f"{app.url}/api/offer"
        async with calling(url, PITCHES_HZ[0], video_sections=2) as first:
            await _trickle(url, first.answer["pc_id"])
            await first.wait_for_own_voice(0.5)
            first.forget()
            await first.negotiate(pc_id=first.answer["pc_id"])
            await first.wait_for_own_voice(0.5)
            # pipecat gives a bot up whose connection is restarted while it talks
            await first.fall_silent()
            restart = {"pc_id": first.answer["pc_id"], "restart_pc": True}
            async with calling(url, PITCHES_HZ[1], video_sections=2, **restart) as second:
                await first.wait_for_end()
                await second.wait_for_own_voice(0.5)
                assert len(app.udp_addresses()) == 1


async def test_bot_of_a_client_that_vanished_ends(tmp_path: Path, examples_python: Path) -> None:
    with serving(examples_python, "pipecat_bot.py", tmp_path) as app:
        async with calling(f"{app.url}/api/offer", PITCHES_HZ[0]) as caller:
            await caller.wait_for_own_voice(0.5)
            await caller.vanish()
            log = tmp_path / "pipecat_bot.py.log"
            assert "has finished" not in log.read_text()
            # consent lasts for 30 s
            await until(
                lambda: "Pipeline worker PipelineWorker#0 has finished" in log.read_text(), "end of the bot"
            )


async def _trickle(url: str, pc_id: str) -> None:
    candidates = [
        {
            "candidate": "candidate:1 1 udp 2130706431 127.0.0.1 9 typ host",
            "sdp_mid": "0",
            "sdp_mline_index": 0,
        },
        {"candidate": "", "sdp_mid": "0", "sdp_mline_index": 0},
    ]
    async with (
        aiohttp.ClientSession() as http,
        http.patch(url, json={"pc_id": pc_id, "candidates": candidates}) as response,
    ):
        assert response.status == 200
