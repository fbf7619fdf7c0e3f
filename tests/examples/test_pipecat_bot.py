"""examples/pipecat_bot.py on the unmodified pipecat, called by stock aiortc clients."""

import json
from pathlib import Path

import aiohttp
import pytest

from tests.examples.app import serving
from tests.examples.caller import calling
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


async def test_trickled_candidates_and_a_restarted_connection(tmp_path: Path, examples_python: Path) -> None:
    with serving(examples_python, "pipecat_bot.py", tmp_path) as app:
        url = f"{app.url}/api/offer"
        async with calling(url, PITCHES_HZ[0], pause_s=60.0) as first:
            candidate = {
                "candidate": "candidate:1 1 udp 2130706431 127.0.0.1 9 typ host",
                "sdp_mid": "0",
                "sdp_mline_index": 0,
            }
            end_of_candidates = {**candidate, "candidate": ""}
            trickled = {"pc_id": first.answer["pc_id"], "candidates": [candidate, end_of_candidates]}
            async with aiohttp.ClientSession() as http, http.patch(url, json=trickled) as response:
                assert response.status == 200
            await first.wait_for_own_voice(0.5)
            # pipecat gives a bot up whose connection is restarted while it talks
            await first.wait_for_silence()
            async with calling(url, PITCHES_HZ[1], pc_id=first.answer["pc_id"], restart_pc=True) as second:
                await first.wait_for_end()
                await second.wait_for_own_voice(0.5)
                assert len(app.udp_addresses()) == 1
