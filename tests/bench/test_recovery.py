"""What packets on links are taken for, what is computed from them, and the rows and targets made of rounds."""

import json
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest

from bench.recovery.frames import Kind, Seen, read_frame_untrusted
from bench.recovery.results import Column, Recovery
from bench.recovery.rounds import SCENARIOS, CallRound, Played, Round, Way
from bench.recovery.tables import sheets
from bench.recovery.traces import Loss, Rtp, Spread, count_lost, first_at, longest_gap, unwrapped
from wire.address import Address
from wire.spp import encode_header
from wire.stun import write_binding_request, write_binding_success

CLIENT, VIP = Address.parse("198.18.1.2:40000"), Address.parse("203.0.113.10:3478")
RELAY, TRANSCEIVER = Address.parse("10.0.1.5:4000"), Address.parse("10.0.1.7:5000")
SSRC = 0xDECAFBAD
RTP = struct.pack("!BBHII", 0x80, 96, 65535, 160, SSRC) + bytes(40)
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def end(address: Address) -> tuple[bytes, int]:
    return address.host, address.port


def frame(
    source: Address, destination: Address, payload: bytes, options: bytes = b"", protocol: int = 17
) -> bytes:
    udp = struct.pack("!HHHH", source.port, destination.port, 8 + len(payload), 0) + payload
    header_words = 5 + len(options) // 4
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | header_words,
        0,
        header_words * 4 + len(udp),
        0,
        0,
        64,
        protocol,
        0,
        source.host,
        destination.host,
    )
    return bytes(12) + b"\x08\x00" + ip + options + udp


@pytest.mark.parametrize(
    ("payload", "kind", "ssrc", "number"),
    [
        pytest.param(RTP, Kind.MEDIA, SSRC, 65535, id="media"),
        pytest.param(RTP[:12], Kind.MEDIA, SSRC, 65535, id="media without a payload"),
        pytest.param(RTP[:11], Kind.OTHER, 0, 0, id="cut RTP"),
        pytest.param(b"\x80\xc8" + bytes(26), Kind.RTCP, 0, 0, id="RTCP"),
        pytest.param(b"\x17" + bytes(26), Kind.DTLS, 0, 0, id="DTLS"),
        pytest.param(write_binding_request(bytes(12), "a:b", b"c"), Kind.CHECK, 0, 0, id="check"),
        pytest.param(write_binding_success(bytes(12), CLIENT, b"c"), Kind.STUN, 0, 0, id="answer"),
        pytest.param(b"\xff", Kind.OTHER, 0, 0, id="other"),
        pytest.param(b"", Kind.OTHER, 0, 0, id="empty"),
    ],
)
def test_payload_is_what_it_is_with_and_without_spp(
    payload: bytes, kind: Kind, ssrc: int, number: int
) -> None:
    plain = read_frame_untrusted(frame(CLIENT, VIP, payload))
    assert plain == Seen(end(CLIENT), end(VIP), None, kind, ssrc, number)
    carried = read_frame_untrusted(frame(RELAY, TRANSCEIVER, encode_header(CLIENT, VIP) + payload))
    expected = kind if payload else Kind.PROMPT
    assert carried == Seen(end(RELAY), end(TRANSCEIVER), end(CLIENT), expected, ssrc, number)


@pytest.mark.parametrize(
    ("data", "is_read"),
    [
        pytest.param(frame(CLIENT, VIP, RTP, options=bytes(8)), True, id="IP options"),
        pytest.param(frame(CLIENT, VIP, b"") + bytes(18), True, id="padded"),
        pytest.param(frame(CLIENT, VIP, RTP, protocol=6), False, id="TCP"),
        pytest.param(bytes(12) + b"\x08\x06" + bytes(46), False, id="ARP"),
        pytest.param(frame(CLIENT, VIP, RTP)[:40], False, id="cut"),
        pytest.param(b"", False, id="nothing"),
    ],
)
def test_frame_is_read_or_left_alone(data: bytes, is_read: bool) -> None:
    seen = read_frame_untrusted(data)
    assert (seen is not None) is is_read
    assert seen is None or (seen.source, seen.destination) == (tuple(CLIENT), tuple(VIP))


def test_any_bytes_are_read_or_left_alone() -> None:
    chance = Random(1)
    good = frame(RELAY, TRANSCEIVER, encode_header(CLIENT, VIP) + RTP)
    for _ in range(5000):
        data = bytearray(good[: chance.randrange(len(good) + 1)])
        for _ in range(chance.randrange(4)):
            if data:
                data[chance.randrange(len(data))] = chance.randrange(256)
        read_frame_untrusted(bytes(data))


@pytest.mark.parametrize(
    ("times", "since", "expected"),
    [
        ([], 1.0, None),
        ([0.5], 1.0, None),
        ([0.5, 1.0, 2.0], 1.0, 1.0),
        ([0.5, 1.5, 2.0], 1.0, 1.5),
    ],
)
def test_first_packet_since(times: Sequence[float], since: float, expected: float | None) -> None:
    assert first_at(times, since) == expected


@pytest.mark.parametrize(
    ("times", "begin", "end", "expected"),
    [
        pytest.param([], 0, 10, None, id="nothing"),
        pytest.param([11.0], 0, 10, None, id="too late"),
        pytest.param([0.0, 1.0, 2.0, 3.0], 1.5, 3, 1.0, id="none"),
        pytest.param([0.0, 1.0, 5.0, 6.0], 2, 6, 4.0, id="begun before"),
        pytest.param([0.0, 1.0, 2.0, 6.0], 1.5, 6, 4.0, id="begun within"),
        pytest.param([0.0, 4.0, 5.0, 6.0], 4.5, 6, 1.0, id="over before"),
        pytest.param([0.0, 1.0, 2.0], 1.5, 9, 7.0, id="not over at the end"),
        pytest.param([5.0, 6.0], 4, 6, 1.0, id="nothing before"),
    ],
)
def test_longest_gap(times: Sequence[float], begin: float, end: float, expected: float | None) -> None:
    assert longest_gap(times, begin, end) == expected


@pytest.mark.parametrize(
    ("numbers", "near", "expected"),
    [
        ([], None, []),
        ([5, 6, 8], None, [5, 6, 8]),
        ([65534, 65535, 0, 1], None, [65534, 65535, 65536, 65537]),
        ([65535, 1, 0, 2], None, [65535, 65537, 65536, 65538]),
        ([1, 65535], None, [1, -1]),
        ([1], 65535, [65537]),
        ([65535], 65537, [65535]),
        ([0, 40000, 14464], None, [0, -25536, -51072]),
    ],
)
def test_sequence_numbers_go_on(numbers: list[int], near: int | None, expected: list[int]) -> None:
    assert unwrapped(numbers, near) == expected


def rtp(*numbers: int, ssrc: int = SSRC, late_s: float = 0.0) -> list[Rtp]:
    """One packet a second, from 0 on, in the order given."""
    return [Rtp(at + late_s, ssrc, number) for at, number in enumerate(numbers)]


@pytest.mark.parametrize(
    ("sent", "came", "begin", "end", "expected"),
    [
        pytest.param([], [], 0, 9, Loss(0, 0), id="nothing"),
        pytest.param(rtp(1, 2, 3), rtp(1, 2, 3, late_s=0.1), 0, 9, Loss(3, 0), id="all came"),
        pytest.param(rtp(1, 2, 3), rtp(1, 3), 0, 9, Loss(3, 1), id="one lost"),
        pytest.param(rtp(1, 2, 3), [], 0, 9, Loss(3, 3), id="all lost"),
        pytest.param(rtp(1, 2, 3), rtp(1, 2), 0, 9, Loss(3, 1), id="the last lost"),
        pytest.param(rtp(1, 2, 3), rtp(1, 2), 0, 1, Loss(2, 0), id="lost after the span"),
        pytest.param(rtp(1, 2, 3), rtp(3, 1, 2), 0, 9, Loss(3, 0), id="out of order"),
        pytest.param(rtp(1, 2, 3), rtp(1, 1, 2, 3), 0, 9, Loss(3, 0), id="came twice"),
        pytest.param(rtp(1, 2, 2), rtp(1, 2), 0, 9, Loss(2, 0), id="sent twice"),
        pytest.param(rtp(65534, 65535, 0, 1), rtp(65534, 0, 1), 0, 9, Loss(4, 1), id="wrap-around"),
        pytest.param(rtp(65534, 65535, 0, 1), rtp(0, 1), 0, 9, Loss(4, 2), id="lost before the wrap-around"),
        pytest.param(
            rtp(1, 2) + rtp(1, 2, ssrc=7), rtp(1, 2) + rtp(2, ssrc=7), 0, 9, Loss(4, 1), id="two streams"
        ),
    ],
)
def test_loss_by_sequence_numbers(
    sent: list[Rtp], came: list[Rtp], begin: float, end: float, expected: Loss
) -> None:
    assert count_lost(sent, came, begin, end) == expected


def test_loss_of_a_stream_that_wraps_twice() -> None:
    numbers = [number % 65536 for number in range(140_000)]
    came = [packet for packet in rtp(*numbers) if packet.at not in (5, 70_000)]
    assert count_lost(rtp(*numbers), came, 0, 1e9) == Loss(140_000, 2)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([], None),
        ([3.0], Spread(1, 3.0, 3.0)),
        ([9.0, 1.0, 2.0], Spread(3, 2.0, 9.0)),
        ([1.0, 2.0], Spread(2, 1.5, 2.0)),
    ],
)
def test_median_and_worst(figures: list[float], expected: Spread | None) -> None:
    assert Spread.of(figures) == expected


def call(kind: str, recovery_ms: float | None, *, lost: int = 0, is_back: bool = True) -> CallRound:
    way = Way(
        recovery_ms=recovery_ms,
        gap_ms=None if recovery_ms is None else recovery_ms + 400,
        loss=Loss(100, lost),
    )
    down = Way(recovery_ms=recovery_ms and recovery_ms + 80, gap_ms=500.0, loss=Loss(100, 0))
    return CallRound(kind=kind, client="198.18.1.2:1", up=way, down=down, is_back=is_back)


def played(name: str, *rounds: tuple[bool, list[CallRound]], **fields: Any) -> Played:
    made = [
        Round(redis=redis, phase_s=1.0, outage_ms=400.0, own_drops=0, calls=tuple(calls))
        for redis, calls in rounds
    ]
    return Played(BY_NAME[name], rounds=made, **fields)


RESTART = played(
    "restart",
    (False, [call("aiortc", 2000.0), call("aiortc", 4000.0), call("Chromium", 300.0)]),
    (True, [call("aiortc", 20.0), call("aiortc", 120.0), call("Chromium", 30.0)]),
)


def test_rows_have_both_columns_and_both_ways() -> None:
    recovery = Recovery(conditions={}, played=[RESTART])
    assert [(row.kind, row.way) for row in recovery.rows()] == [
        ("aiortc", "up"),
        ("aiortc", "down"),
        ("Chromium", "up"),
        ("Chromium", "down"),
    ]
    up, *_ = recovery.rows()
    assert up.columns == {
        False: Column(
            recovery_ms=Spread(2, 3000.0, 4000.0),
            gap_ms=Spread(2, 3400.0, 4400.0),
            sent=200,
            lost=0,
            not_back=0,
        ),
        True: Column(
            recovery_ms=Spread(2, 70.0, 120.0), gap_ms=Spread(2, 470.0, 520.0), sent=200, lost=0, not_back=0
        ),
    }
    table, targets = sheets(recovery)
    assert list(table.rows[0]) == [
        "aiortc up",
        "3,000, 4,000",
        "70, 120",
        "3,400, 4,400",
        "470, 520",
        "0 of 400",
    ]
    assert [row[1:] for row in targets.rows] == [["100 ms", "30.0", "yes"], ["100 ms", "120.0", "NO"]]


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        pytest.param(RESTART, [(30.0, True), (120.0, False)], id="median and worst"),
        pytest.param(
            played("restart", (False, [call("aiortc", 1.0)])),
            [(None, None), (None, None)],
            id="without Redis only",
        ),
        pytest.param(
            played("move", (True, [call("aiortc", 50.0), call("aiortc", None, is_back=False)])),
            [(50.0, True), (float("inf"), False)],
            id="one never came back",
        ),
        pytest.param(played("xdp", (False, [call("aiortc", None)])), [(0, True)], id="nothing lost"),
        pytest.param(
            played("xdp", (False, [call("aiortc", None)]), (True, [call("Chromium", None, lost=2)])),
            [(0, True), (2, False)],
            id="lost with Redis",
        ),
        pytest.param(played("xdp", why_not="no BCC"), [], id="not run"),
    ],
)
def test_targets(one: Played, expected: list[tuple[float | None, bool | None]]) -> None:
    assert [
        (target.measured, target.holds) for target in Recovery(conditions={}, played=[one]).targets()
    ] == expected


def test_document_has_every_round_and_says_what_was_not_run() -> None:
    missing = played("xdp", why_not="no BCC", dropped=[{"kind": "aiortc", "state": "failed"}])
    document = json.loads(json.dumps(Recovery(conditions={"seed": 1}, played=[RESTART, missing]).to_json()))
    restart, xdp = document["scenarios"]
    assert [one["redis"] for one in restart["rounds"]] == [False, True]
    assert restart["rounds"][1]["calls"][0] == {
        "kind": "aiortc",
        "client": "198.18.1.2:1",
        "is_back": True,
        "up": {"recovery_ms": 20.0, "gap_ms": 420.0, "sent": 100, "lost": 0},
        "down": {"recovery_ms": 100.0, "gap_ms": 500.0, "sent": 100, "lost": 0},
    }
    assert (xdp["rounds"], xdp["why_not"]) == ([], "no BCC")
    assert document["rows"][0]["with_redis"]["recovery_ms"] == {"figures": 2, "median": 70.0, "worst": 120.0}
    assert document["conditions"] == {"seed": 1}
    lines = [row[0] for sheet in sheets(Recovery(conditions={}, played=[missing])) for row in sheet.rows]
    assert lines == ["not run: no BCC", "dropped: 1 calls"]
