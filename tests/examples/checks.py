"""What holds for every example."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.e2e.instance import print_report
from tests.examples.app import App
from tests.examples.caller import Caller, calling

PITCHES_HZ = (140.0, 200.0)
_VOICE_S = 2.0


async def check_two_calls(app: App, path: str, question: str, is_answer: Callable[[str], bool]) -> None:
    """Two callers at once: each hears itself and not the other, through the VIP and the one socket of the example."""
    before = app.relay.verdicts()
    assert len(app.udp_addresses()) == 1
    async with AsyncExitStack() as stack:
        calls = [calling(app.url + path, pitch) for pitch in PITCHES_HZ]
        callers = await asyncio.gather(*(stack.enter_async_context(call) for call in calls))
        await asyncio.gather(*(_converse(caller, question, is_answer) for caller in callers))
        assert {candidate for caller in callers for candidate in caller.candidates} == {f"{app.vip} host"}
        [address] = app.udp_addresses()
        flows = [flow for flow in app.relay.ask("flows") if flow["state"] == "assured"]
        assert [flow["transceiver"] for flow in flows] == [address, address]
    after = app.relay.verdicts()
    forwarded = {
        name: after[name] - before[name] for name in ("forward_stun", "forward_flow", "forward_client")
    }
    assert min(forwarded.values()) > 0
    assert forwarded["forward_flow"] > 2 * _VOICE_S * 50 < forwarded["forward_client"]
    heard = [caller.heard()._asdict() for caller in callers]
    print_report(path, {"UDP sockets of the example": 1, **forwarded, "heard": heard})


async def _converse(caller: Caller, question: str, is_answer: Callable[[str], bool]) -> None:
    await caller.ask(question, is_answer)
    await caller.wait_for_own_voice(_VOICE_S)
    heard = caller.heard()
    assert heard.in_pitch_s > 0.8 * heard.loud_s, "a voice that is not our own, or one that is badly damaged"
