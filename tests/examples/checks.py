"""What holds for every example."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.e2e.instance import print_report
from tests.examples.app import App
from tests.examples.caller import Caller, calling

PITCHES_HZ = (140.0, 200.0)
_VOICE_S = 2.0
_PACKET_S = 0.02


async def check_two_calls(app: App, path: str, question: str, is_answer: Callable[[str], bool]) -> None:
    """Two callers at once: each hears itself and not the other, through the VIP and the one socket of the example.

    At the end the example is told to end, and they hear of it.
    """
    [address] = app.udp_addresses()
    async with AsyncExitStack() as stack:
        calls = [calling(app.url + path, pitch) for pitch in PITCHES_HZ]
        callers = await asyncio.gather(*(stack.enter_async_context(call) for call in calls))
        await asyncio.gather(*(_converse(caller, question, is_answer) for caller in callers))
        for caller in callers:
            assert caller.candidates == {f"{app.vip} host"}
        assert app.udp_addresses() == [address]
        flows = [flow for flow in app.relay.ask("flows") if flow["state"] == "assured"]
        assert [flow["transceiver"] for flow in flows] == [address] * len(callers)
        _check_forwarded(app, path, callers)
        app.terminate()
        await asyncio.gather(*(caller.wait_for_end() for caller in callers))


def _check_forwarded(app: App, path: str, callers: list[Caller]) -> None:
    """The relay counted the calls' checks, and at least the packets of the voices that were heard."""
    verdicts = app.relay.verdicts()
    assert verdicts["forward_stun"] >= len(callers)
    for direction in ("forward_flow", "forward_client"):
        assert verdicts[direction] > len(callers) * _VOICE_S / _PACKET_S
    heard = [
        {name: round(seconds, 2) for name, seconds in caller.heard()._asdict().items()} for caller in callers
    ]
    forwarded = {name: count for name, count in verdicts.items() if count}
    print_report(path, {"UDP sockets of the example": 1, **forwarded, "heard": heard})


async def _converse(caller: Caller, question: str, is_answer: Callable[[str], bool]) -> None:
    await caller.ask(question, is_answer)
    await caller.wait_for_own_voice(_VOICE_S)
    heard = caller.heard()
    assert heard.in_pitch_s > 0.6 * heard.loud_s, "a voice that is not our own, or one that is badly damaged"
