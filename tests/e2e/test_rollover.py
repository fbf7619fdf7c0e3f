"""A client whose sequence numbers begin at 65,000: its SRTP rollover counter is 1 after ten seconds (RFC 3711 section 3.3.1).

What comes then is decrypted only by who has counted along; so is what comes from another port.
"""

import time
from pathlib import Path

import pytest

from bench.path import Direction, Kind, ThreadedPath
from tests.e2e.conftest import Network
from tests.e2e.instance import print_report
from tests.e2e.survival import echo_call, media_gaps_ms, on_path, only_session
from tests.host.deadline import until

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_FIRST = 65_000
_NUMBERS = 65_536
_REBIND_AT = _NUMBERS + 100
# aioice checks consent every 4 to 6 s; the relay learns of a new port by the next check.
_AGAIN_S = 20.0


def sent_up(path: ThreadedPath) -> int:
    """RTP of the only client, whose numbers run without a gap."""
    return path.counts(Direction.UP, Kind.RTP).received


async def test_call_goes_on_from_another_port_after_the_rollover(
    own_network: Network | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiortc.rtcrtpsender.random_sequence_number", lambda: _FIRST)
    with on_path(own_network, tmp_path / "s") as (instance, path):
        async with echo_call(instance) as call:
            await until(lambda: _FIRST + sent_up(path) > _REBIND_AT, "the rollover", 60)
            before = await call.report()
            assert before.silent_s < 2
            assert before.packets_lost == 0
            session = only_session(instance)
            assert (session["counters"], session["moves"]) == ({}, 0)
            [old] = path.outer_addresses()
            path.forget_gaps()
            path.rebind()
            rebound_at, down = time.monotonic(), path.counts(Direction.DOWN, Kind.RTP).forwarded
            await until(
                lambda: path.counts(Direction.DOWN, Kind.RTP).forwarded >= down + 50,
                "media down to the new port",
                _AGAIN_S,
            )
            again_s = time.monotonic() - rebound_at
            [new] = path.outer_addresses()
            session = only_session(instance)
            assert session["client"] == str(new) != str(old)
            assert session["moves"] == 1
            gap_ms = session["longest_gap_ms"]
            assert gap_ms < _AGAIN_S * 1000
            answered, sent = len((await call.report()).round_trips_ms), sent_up(path)
            await until(lambda: sent_up(path) >= sent + 250, "5 s more of media", 60)
            await until(lambda: len(call._report.round_trips_ms) > answered, "echoes of the data channel", 60)
            report = await call.report()
            assert report.state == "connected"
            # the echo: what came up was decrypted
            assert report.silent_s < 2
            session = only_session(instance)
            assert session["longest_gap_ms"] == gap_ms
            print_report(
                "rebind after SRTP's rollover",
                {
                    "50 packets down after_s": round(again_s, 2),
                    "longest gap up, as decrypted_ms": gap_ms,
                    **media_gaps_ms(path),
                    "sequence numbers up": f"{_FIRST} to {_FIRST + sent_up(path) - _NUMBERS}, rolled over",
                },
            )
