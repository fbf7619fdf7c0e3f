"""What the callers of the transceiver's benchmark take for lost, late and doubled; its speech, its search, its ratios."""

from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from bench.transceiver.caller import Packet
from bench.transceiver.results import CallsRow, Found, MemoryRow, PhasesRow, SetupRow
from bench.transceiver.running_load import Run
from bench.transceiver.search import highest
from bench.transceiver.speech import FRAME_SAMPLES, Speech, decode, make_speech
from bench.transceiver.tables import sheets
from bench.transceiver.tally import (
    FRAME_NS,
    HELD,
    LATE_NS,
    Came,
    Said,
    count_exact,
    count_stream,
    delays_by_sound,
)
from bench.transceiver.variants import STOCK

FRAMES = 20
FRAME_OF = {bytes([frame]): frame for frame in range(FRAMES)}
DELAY_NS = 30_000_000


@pytest.fixture(scope="module")
def speech() -> Speech:
    return make_speech(200)


def said(packets: int, first_frame: int = 15, frames: int = FRAMES) -> Said:
    return Said([7 + i * FRAME_NS for i in range(packets)], first_frame, frames)


def echo(sent: Said, packets: Sequence[int], late: Sequence[int] = (), number: int = 65_530) -> list[Came]:
    """Those packets of what was sent, in that order."""
    return [
        Came(
            sent.at[index] + DELAY_NS + (LATE_NS + 1 if index in late else 0),
            (number + index) & 0xFFFF,
            bytes([(sent.first_frame + index) % sent.frames]),
        )
        for index in packets
    ]


@pytest.mark.parametrize(
    ("came", "late", "found"),
    [
        pytest.param(range(10), (), (8, 0, 0, 0), id="all"),
        pytest.param([0, 1, 2, 4, 5, 6, 7, 9], (), (6, 2, 0, 0), id="two lost"),
        pytest.param([1, 0, 3, 2, 4, 5, 7, 6, 8, 9], (), (8, 0, 0, 0), id="reordered"),
        pytest.param([*range(10), 5, 5], (), (8, 0, 0, 2), id="doubled"),
        pytest.param(range(10), (3, 9), (8, 0, 2, 0), id="late"),
        pytest.param([], (), (0, 8, 0, 0), id="nothing"),
        pytest.param([0, 1], (), (0, 8, 0, 0), id="only the warm-up"),
    ],
)
def test_passed_through_packets_are_told_by_their_payload(
    came: Sequence[int], late: Sequence[int], found: tuple[int, int, int, int]
) -> None:
    sent = said(10)
    tally = count_exact(sent, echo(sent, came, late), FRAME_OF, 2, 10)
    assert (tally.received, tally.lost, tally.late, tally.doubled) == found
    assert (tally.sent, tally.damaged) == (8, 0)
    assert sum(delay == DELAY_NS / 1e6 for delay in tally.delays_ms) == found[0] - found[2]


def test_payload_of_nobody_is_damaged() -> None:
    sent = said(4)
    tally = count_exact(sent, [*echo(sent, range(4)), Came(9, 9, b"other")], FRAME_OF, 0, 4)
    assert (tally.received, tally.damaged) == (4, 1)


@pytest.mark.parametrize(
    ("came", "late", "found"),
    [
        pytest.param(range(40), (), (40, 0, 0, 0), id="all"),
        pytest.param(range(40 - HELD), (), (32, 0, 0, 0), id="the last still held back"),
        pytest.param(range(40 - HELD - 3), (), (29, 3, 0, 0), id="too few"),
        pytest.param([*range(10), *range(12, 40)], (), (38, 2, 0, 0), id="a gap"),
        pytest.param([*range(40), 7], (), (40, 0, 0, 1), id="doubled"),
        pytest.param(range(40), (5,), (40, 0, 1, 0), id="late"),
        pytest.param([], (), (0, 40, 0, 0), id="nothing"),
    ],
)
def test_a_voice_encoded_anew_is_counted_by_sequence_numbers(
    came: Sequence[int], late: Sequence[int], found: tuple[int, int, int, int]
) -> None:
    sent = said(40)
    tally = count_stream(sent, echo(sent, came, late), 0)
    assert (tally.received, tally.lost, tally.late, tally.doubled) == found


def test_a_sender_that_goes_on_by_itself_is_not_counted_beyond_the_call() -> None:
    sent, longer = said(40), said(140)
    assert count_stream(sent, echo(longer, range(140)), 0).received <= 40 + HELD


@pytest.mark.parametrize("later_ms", [0, 45, 187])
def test_delay_is_that_of_the_sound(speech: Speech, later_ms: int) -> None:
    """The echo is the same speech: packet 30 comes where packet 0 was due, and later."""
    count, skipped = 150, 30
    sent = Said([i * FRAME_NS for i in range(count)], 190, len(speech.frames))
    came = [
        Came(sent.at[i] + later_ms * 1_000_000, i, speech.frames[(190 + i) % len(speech.frames)])
        for i in range(skipped, count)
    ]
    delays = delays_by_sound(sent, came, speech.heard)
    assert len(delays) == (count - skipped) // 50 * 50
    assert np.median(delays) == pytest.approx(later_ms, abs=1)


def test_another_voice_has_no_delay(speech: Speech) -> None:
    noise = Random(3)
    sent = Said([i * FRAME_NS for i in range(50)], 0, len(speech.frames))
    others = [speech.frames[noise.randrange(len(speech.frames))] for _ in range(50)]
    came = [Came(sent.at[i], i, other) for i, other in enumerate(others)]
    assert delays_by_sound(sent, came, speech.heard) == []


def test_speech_never_says_the_same_twice(speech: Speech) -> None:
    assert len(set(speech.frames)) == len(speech.frames) == 200
    assert len(decode(speech.frames)) == len(speech.heard) == 200 * FRAME_SAMPLES
    assert np.abs(speech.heard).max() > 0.1


@pytest.mark.parametrize(
    ("packet", "payload"),
    [
        pytest.param(bytes([0x80, 111]) + bytes(10) + b"opus", b"opus", id="plain"),
        pytest.param(
            bytes([0x90, 111]) + bytes(10) + b"\xbe\xde\0\1" + bytes(4) + b"opus", b"opus", id="extension"
        ),
        pytest.param(bytes([0x81, 111]) + bytes(14) + b"opus", b"opus", id="contributing source"),
        pytest.param(bytes([0xA0, 111]) + bytes(10) + b"opus\0\0\3", b"opus", id="padding"),
    ],
)
def test_payload_is_what_is_behind_the_header(packet: bytes, payload: bytes) -> None:
    assert Packet(packet).payload == payload


@pytest.mark.parametrize("start", [1, 20, 95, 300])
@pytest.mark.parametrize(("truth", "limit"), [(0, 200), (1, 200), (97, 200), (150, 200), (500, 200)])
def test_search_finds_what_holds(start: int, truth: int, limit: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count <= truth

    found = highest(holds, start, limit)
    assert found == 0 or found in tried
    assert found <= min(truth, limit)
    assert max(tried) <= limit
    assert len(tried) <= 10
    if len(tried) < 10:
        assert found >= min(truth, limit) - max(1, 0.05 * truth)


def run(calls: int = 10, cpu_s: float = 1.0, lost: int = 0) -> Run:
    return Run(
        calls=calls,
        sent=1000,
        received=1000 - lost,
        lost=lost,
        late=0,
        doubled=0,
        damaged=0,
        delay_p50_ms=1.0,
        delay_p99_ms=2.0,
        measured_s=10.0,
        cpu_s=cpu_s,
        others_s=0.5,
        waited_s=0.1,
        lag_p99_ms=0.1,
        lag_max_ms=0.2,
        dropped=0,
        own_drops=0,
    )


def test_ratios_are_those_of_stock_over_ours() -> None:
    found = Found(
        conditions={"cores": 2},
        calls=[
            CallsRow(name="ours", what="", calls=10, runs=[run(cpu_s=0.5)], steps=[run(200)], highest=200),
            CallsRow(name=STOCK, what="", calls=10, runs=[run(cpu_s=5)], steps=[run(20)], highest=20),
        ],
        setups=[
            SetupRow(name="ours", made=1, cpu_ms=[2.0], wall_ms=[3.0]),
            SetupRow(name=STOCK, cpu_ms=[5.0]),
        ],
        phases=[PhasesRow(client="aiortc", round_trip_ms=100, phases_ms={"dtls": [200.0, 400.0, 256.0]})],
        memory=[
            MemoryRow(name="ours", sessions=10, empty_pss=100, full_pss=1100),
            MemoryRow(name=STOCK, sessions=10, empty_pss=100, full_pss=4100),
        ],
    )
    assert found.ratios() == {
        "calls a core: ours": 10,
        "CPU a call: ours": 10,
        "CPU a setup: ours": 2.5,
        "memory a session: ours": 4,
    }
    assert found.calls[0].cpu_ms == pytest.approx(5)
    assert found.calls[0].extrapolated == pytest.approx(200)
    dtls, audio = found.targets()
    assert [dtls.limit_ms, audio.limit_ms] == pytest.approx([255, 350])
    assert [dtls.holds, audio.holds] == [False, None]
    for sheet in sheets(found):
        assert {len(row) for row in sheet.rows} == {len(sheet.columns)}, sheet.title


def test_a_turn_is_whole_only_with_everything() -> None:
    assert run().is_whole
    assert not run(lost=1).is_whole
    assert run().disturbed == pytest.approx(0.01)
