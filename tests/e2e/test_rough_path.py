"""A path that loses one packet in twenty, doubles and reorders others: audio goes on, and no message is missing."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bench.path import CLEAN, Counts, Direction, Impairment, Kind, ThreadedPath
from tests.e2e.chromium import PageCall, page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.survival import echo_call, media_gaps_ms, on_path, only_session
from tests.host.deadline import until

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

ROUGH = Impairment(delay_s=0.03, jitter_s=0.01, loss=0.05, doubled=0.03, reordered=0.03)
ROUGH_S = 30
_MESSAGES = 300
# SCTP waits up to 60 s before it tries a lost chunk once more.
_DELIVERED_TIMEOUT_S = 150.0
# Five frames in succession, lost at 5 %, are one in three million; a busy machine needs more.
_SILENCE_S = 2.0

_SEND_NUMBERS = """([count, interval_ms]) => {
    const channel = relayDemo.pc.createDataChannel("numbers");
    window.echoedNumbers = [];
    channel.onmessage = ({ data }) => echoedNumbers.push(Number(data));
    let next = 0;
    channel.onopen = () => {
        const timer = setInterval(() => {
            channel.send(String(next++));
            if (next === count) clearInterval(timer);
        }, interval_ms);
    };
}"""
_HEARD = """async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    const s = stats.find(s => s.type === "inbound-rtp");
    return { samples: s.totalSamplesReceived, concealed: s.concealedSamples, silent: s.silentConcealedSamples };
}"""


def echoing(directory: Path, echo: str) -> tuple[str, str]:
    """Arguments for an echo of packets as they are, or of what was heard."""
    config = directory / "relayctl.toml"
    config.write_text(f'[transceiver]\necho = "{echo}"\n')
    return "--config", str(config)


def lost(path: ThreadedPath, echo: str) -> tuple[int, int]:
    """RTP, up and down, as receivers count it: passed on as they are, packets have the numbers that the client gave them."""
    up, down = (path.counts(direction, Kind.RTP).lost for direction in Direction)
    return up, down + up if echo == "passthrough" else down


def media_counts(path: ThreadedPath) -> dict[Direction, Counts]:
    """Of RTP."""
    return {direction: path.counts(direction, Kind.RTP) for direction in Direction}


def assert_was_rough(path: ThreadedPath, before: dict[Direction, Counts]) -> dict[str, Any]:
    """It did all that it should have, both ways; what it did to media, for people."""
    counted = {d: counts.minus(before[d]) for d, counts in media_counts(path).items()}
    for counts in counted.values():
        assert counts.received >= 0.8 * ROUGH_S * 50
        assert counts.lost >= 0.02 * counts.received
        assert counts.doubled >= 0.01 * counts.received
        assert counts.reordered >= 0.01 * counts.received
        assert counts.overflowed == counts.refused == 0
    assert path.kernel_drops() == 0
    return {f"path {direction.name.lower()}": shown(counts) for direction, counts in counted.items()}


def wait_until_told(instance: Instance, path: ThreadedPath, echo: str) -> dict[str, Any]:
    """What the transceiver tells of its client's media becomes what the path did to it; the session, for people."""

    def told() -> dict[str, Any] | None:
        session = only_session(instance)
        up, did = session["up"], path.counts(Direction.UP, Kind.RTP)
        # SRTP and SRTCP that come twice are refused alike
        doubled = did.doubled + path.counts(Direction.UP, Kind.RTCP).doubled
        seen = (up["lost"], up["reordered"], up["duplicates"])
        return session if seen == (did.lost, did.reordered, doubled) else None

    # what was held back, or comes a second time, is on its way for as long as the pattern holds it
    session: dict[str, Any] = wait_until(told, 10, "the losses, reorderings and duplicates of the path, told")
    up = session["up"]
    if echo == "passthrough":
        assert up["concealed"] == up["filled"] == up["late"] == 0
    else:
        # what was made up: what was lost, what came too late, less what silence was heard for on a machine that stood still
        missing = path.counts(Direction.UP, Kind.RTP).lost + up["late"]
        assert missing - up["filled"] <= up["concealed"] <= missing
    return session


def shown(counts: Counts) -> dict[str, int]:
    return {name: count for name, count in vars(counts).items() if count}


@pytest.mark.parametrize("echo", ["passthrough", "transcode"])
async def test_aiortc_call_over_a_rough_path(own_network: Network | None, tmp_path: Path, echo: str) -> None:
    with on_path(own_network, tmp_path / "s", *echoing(tmp_path, echo)) as (instance, path):
        async with echo_call(instance) as call:
            await until(lambda: min(path.counts(d, Kind.RTP).forwarded for d in Direction) > 50, "media")
            echoed: list[int] = []
            numbers = call.peer.createDataChannel("numbers")
            numbers.on("message", lambda message: echoed.append(int(message)))
            await until(lambda: numbers.readyState == "open", "the second data channel")
            before = media_counts(path)
            path.impair(up=ROUGH, down=ROUGH)
            longest_silence_s = 0.0
            for number in range(_MESSAGES):
                numbers.send(str(number))
                await asyncio.sleep(ROUGH_S / _MESSAGES)
                longest_silence_s = max(longest_silence_s, (await call.report()).silent_s)
            counted = assert_was_rough(path, before)
            path.impair(up=CLEAN, down=CLEAN)
            assert longest_silence_s < _SILENCE_S
            await until(lambda: len(echoed) >= _MESSAGES, "every message and its echo", _DELIVERED_TIMEOUT_S)
            assert echoed == list(range(_MESSAGES))

            async def reported() -> tuple[int, int]:
                report = await call.report()
                return report.uplink["lost"], report.downlink["lost"]

            async with asyncio.timeout(30):
                while await reported() != lost(path, echo):  # noqa: ASYNC110  # RTCP comes once a second
                    await asyncio.sleep(0.2)
            session = await asyncio.to_thread(wait_until_told, instance, path, echo)
            report = await call.report()
            assert (report.state, session["state"], session["moves"]) == ("connected", "connected", 0)
            print_report(
                f"aiortc over a rough path for {ROUGH_S} s, {echo}",
                {
                    **counted,
                    "lost, as both ends report": dict(zip(("up", "down"), lost(path, echo), strict=True)),
                    "longest silence_s": longest_silence_s,
                    "up": session["up"],
                    "messages there and back": len(echoed),
                    **media_gaps_ms(path),
                },
            )


@pytest.mark.parametrize("echo", ["passthrough", "transcode"])
def test_chromium_call_over_a_rough_path(own_network: Network | None, tmp_path: Path, echo: str) -> None:
    with (
        on_path(own_network, tmp_path / "s", *echoing(tmp_path, echo)) as (instance, path),
        page_call(instance, tmp_path / "profile") as call,
    ):
        call.wait_for_audio()
        heard = call.page.evaluate(_HEARD)
        before = media_counts(path)
        path.impair(up=ROUGH, down=ROUGH)
        call.page.evaluate(_SEND_NUMBERS, [_MESSAGES, 1000 * ROUGH_S / _MESSAGES])
        call.page.wait_for_timeout(ROUGH_S * 1000)
        counted = assert_was_rough(path, before)
        path.impair(up=CLEAN, down=CLEAN)
        wait_until(
            lambda: call.page.evaluate("echoedNumbers.length") >= _MESSAGES,
            _DELIVERED_TIMEOUT_S,
            "every message and its echo",
        )
        assert call.page.evaluate("echoedNumbers") == list(range(_MESSAGES))
        wait_until(lambda: reported(call) == lost(path, echo), 30, "what was lost, as both ends report it")
        now = call.page.evaluate(_HEARD)
        samples, concealed = (now[name] - heard[name] for name in ("samples", "concealed"))
        # played on throughout, and most of it was what was sent
        assert samples >= 0.95 * ROUGH_S * 48_000
        assert concealed < 0.4 * samples
        call.wait_for_audio()
        assert wait_until_told(instance, path, echo)["moves"] == 0
        print_report(
            f"Chromium over a rough path for {ROUGH_S} s, {echo}",
            {
                **counted,
                "lost, as both ends report": dict(zip(("up", "down"), lost(path, echo), strict=True)),
                "concealed by Chromium": round(concealed / samples, 3),
                "messages there and back": _MESSAGES,
                **media_gaps_ms(path),
            },
        )


def reported(call: PageCall) -> tuple[int, int]:
    counts = call.counts()
    return counts["lost_up"], counts["lost_down"]


async def test_aiortc_call_comes_up_over_a_rough_path(own_network: Network | None, tmp_path: Path) -> None:
    with on_path(own_network, tmp_path / "s", up=ROUGH, down=ROUGH) as (instance, path):
        async with echo_call(instance) as call:
            await until(lambda: min(path.counts(d, Kind.RTP).forwarded for d in Direction) > 100, "media")
            assert (await call.report()).heard


def test_chromium_call_comes_up_over_a_rough_path(own_network: Network | None, tmp_path: Path) -> None:
    with (
        on_path(own_network, tmp_path / "s", up=ROUGH, down=ROUGH) as (instance, _),
        page_call(instance, tmp_path / "profile") as call,
    ):
        call.wait_for_audio()
