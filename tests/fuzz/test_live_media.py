"""Malformed RTP and RTCP of a client with the right keys: its call, and all others, go on."""

from struct import pack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.corpus import corpus, seeds
from tests.fuzz.live import ANY_SSRC, Live, Media
from tests.fuzz.mutations import bursts, fuzzed, mutated
from tests.wire.network import fault_of
from wire.rtcp import is_rtcp, parse_rtcp_untrusted, write_bye
from wire.rtp import parse_rtp_untrusted, write_rtp_header

pytestmark = pytest.mark.slow

OPUS, PCMU, UNKNOWN = 96, 0, 55
SILENCE = b"\xf8\xff\xfe"
# Our own limit is 64; the client's audio has one of them.
MANY_SSRCS = 2_000


def rtp(payload: bytes, payload_type: int = OPUS, timestamp: int = 960, ssrc: bytes = ANY_SSRC) -> bytes:
    return write_rtp_header(payload_type, 0, timestamp, int.from_bytes(ssrc, "big")) + payload


@pytest.mark.parametrize("packet", corpus("rtp"))
def test_rtp_of_the_corpus(live: Live, packet: bytes) -> None:
    before = live.counters
    live.attack(*[lambda live: live.send_rtp(packet)] * 3)
    live.require_calls_go_on()
    if fault_of(parse_rtp_untrusted, packet) and packet:
        assert live.counted(before).total() >= 3


@pytest.mark.parametrize("packet", corpus("rtcp"))
def test_rtcp_of_the_corpus(live: Live, packet: bytes) -> None:
    before = live.counters
    live.attack(*[lambda live: live.send_rtcp(packet)] * 3)
    live.require_calls_go_on()
    if fault_of(parse_rtcp_untrusted, packet):
        assert live.counted(before).total() >= 3


RTP_LIKE = st.builds(
    lambda first, second, timestamp, rest: (
        bytes((first, second, 0, 0)) + pack("!I", timestamp) + ANY_SSRC + rest
    ),
    st.integers(0x80, 0xBF),
    st.sampled_from([OPUS, OPUS | 0x80, PCMU, 8, 9, 13, UNKNOWN, 127]),
    st.integers(0, 0xFFFFFFFF),
    st.binary(max_size=80),
)
RTCP_LIKE = st.builds(
    lambda first, kind, words, rest: bytes((first, kind)) + pack("!H", words) + rest,
    st.integers(0x80, 0xBF),
    st.integers(192, 208),
    st.integers(0, 12) | st.just(0xFFFF),
    st.binary(min_size=4, max_size=60),
)


@fuzzed
@given(bursts(RTP_LIKE | mutated(seeds("rtp"))))
def test_any_rtp(live: Live, packets: list[bytes]) -> None:
    live.attack(
        *[lambda live, packet=packet: live.send_rtp(packet) for packet in packets if not is_rtcp(packet)]
    )
    live.require_calls_go_on()


@fuzzed
@given(bursts(RTCP_LIKE | mutated(seeds("rtcp"))))
def test_any_rtcp(live: Live, packets: list[bytes]) -> None:
    live.attack(*[lambda live, packet=packet: live.send_rtcp(packet) for packet in packets])
    live.require_calls_go_on()


def test_codec_that_changes_with_every_packet(live: Live) -> None:
    """What a jitter buffer holds, and what it makes up, must not be given to a decoder of another codec."""
    packets = [rtp(b"\x55" * 1100, PCMU, 960), rtp(SILENCE, OPUS, 96_000), rtp(b"\x01", 9, 5)] * 20
    live.attack(*[lambda live, packet=packet: live.send_rtp(packet) for packet in packets])
    live.wait_until(lambda: live.has_ticked(10))
    live.require_calls_go_on()


def test_ssrcs_without_end_are_bounded(live: Live) -> None:
    before = live.counters
    packets = [rtp(SILENCE, ssrc=pack("!I", 0x40000000 + number)) for number in range(MANY_SSRCS)]
    for start in range(0, MANY_SSRCS, 50):
        batch = packets[start : start + 50]
        live.attack(*[lambda live, packet=packet: live.send_rtp(packet) for packet in batch])
    live.require_calls_go_on()
    assert live.counted(before)["srtp_excess"] >= MANY_SSRCS / 2
    live.redial()


def test_timestamps_that_leap_do_not_stop_reports(live: Live) -> None:
    leaps = [rtp(SILENCE, timestamp=(number % 2) << 31) for number in range(200)]
    live.attack(*[lambda live, packet=packet: live.send_rtp(packet) for packet in leaps])
    reports = live.reports_received()
    live.wait_until(lambda: live.reports_received() >= reports + 2)
    live.require_calls_go_on()


def test_goodbye_of_the_clients_own_source_does_not_stop_it_for_ever(live: Live) -> None:
    live.attack(lambda live: live.send_rtcp(write_bye([live.own_ssrc])))
    live.require_calls_go_on()


def test_replayed_packet_is_counted(live: Live) -> None:
    before = live.counters
    packet = rtp(SILENCE, ssrc=pack("!I", 0x50000000))
    live.attack(*[lambda live: live.send_numbered_rtp(packet)] * 3)
    live.require_calls_go_on()
    assert live.counted(before)["srtp_replayed"] == 2


@pytest.mark.parametrize("length", [1, 2, 11, 12, 28, 1500, 1501, 2000, 4000])
@pytest.mark.parametrize("second", [OPUS, 200], ids=["RTP", "RTCP"])
def test_forged_packet_of_any_length(live: Live, length: int, second: int) -> None:
    before = live.counters
    live.attack(*[lambda live: live.send_raw((bytes((0x80, second)) + bytes(length))[:length])] * 3)
    live.require_calls_go_on()
    counted = live.counted(before)
    assert counted["srtp_forged"] + counted["srtp_oversized"] == 3


def test_longest_packet_that_fits_is_not_echoed_when_it_would_not_fit(live: Live) -> None:
    """The echo needs room for the longest tag; nothing is raised where the datagram arrives."""
    before = live.counters
    live.attack(*[lambda live: live.send_rtp(rtp(b"\xfc" * 1460))] * 3)
    live.require_calls_go_on()
    if live.media is Media.PASSTHROUGH:
        assert live.counted(before)["send_oversized"] == 3
