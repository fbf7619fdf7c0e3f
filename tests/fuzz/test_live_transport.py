"""Malformed DTLS, SCTP and bytes of no protocol: the call, and all others, go on."""

from collections.abc import Callable, Coroutine
from struct import pack
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.corpus import corpus, seeds
from tests.fuzz.live import Live, Media
from tests.fuzz.mutations import bursts, fuzzed, mutated
from tests.wire.network import fault_of
from wire.sctp import parse_sctp_untrusted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("live", [pytest.param(Media.PASSTHROUGH, id="")], indirect=True, scope="module"),
]

DATA, INIT, SACK, RECONFIGURATION = 0, 1, 3, 130
# transceiver/guards.py
MAX_STREAMS, MAX_HELD = 256, 2048


def chunk(kind: int, body: bytes, flags: int = 3) -> bytes:
    return pack("!BBH", kind, flags, 4 + len(body)) + body + bytes(-len(body) % 4)


def data(tsn: int, stream: int, user_data: bytes, ppid: int = 53, flags: int = 3) -> bytes:
    return chunk(DATA, pack("!IHHI", tsn, stream, 0, ppid) + user_data, flags)


def sending(chunks: bytes) -> Callable[[Live], Coroutine[Any, Any, None]]:
    return lambda live: live.send_sctp(chunks)


# DTLS, and what is none


@pytest.mark.parametrize("datagram", corpus("dtls"))
def test_dtls_of_the_corpus(live: Live, datagram: bytes) -> None:
    before = live.counters
    live.attack(*[lambda live: live.send_raw(datagram)] * 3)
    live.require_calls_go_on()
    assert live.counted(before) == {"dtls_no_data": 3}


DTLS_LIKE = st.builds(
    lambda kind, epoch, number, length, body: (
        pack("!BHHIH", kind, 0xFEFD, epoch, number, length) + bytes(2) + body
    ),
    st.integers(20, 63),
    st.integers(0, 2),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 80) | st.just(0xFFFF),
    st.binary(max_size=80),
)


@fuzzed
@given(bursts(DTLS_LIKE | mutated(seeds("dtls")) | st.binary(min_size=1, max_size=80)))
def test_any_datagram(live: Live, datagrams: list[bytes]) -> None:
    live.attack(*[lambda live, sent=sent: live.send_raw(sent) for sent in datagrams if sent])
    live.require_calls_go_on()


HANDSHAKES = [
    each
    for each in corpus("dtls")
    if each.id
    in ("alert-fatal-handshake-failure", "certificate-of-16-mb", "client-hello", "finished-epoch-1")
    or each.id
    in ("fragment-overruns-message", "fragments-overlapping", "hello-verify-request", "ones-behind-type")
]


@pytest.mark.parametrize("datagram", HANDSHAKES)
def test_forged_handshake_ends_at_most_its_own_call(live: Live, datagram: bytes) -> None:
    live.call_with_forged_handshake(datagram)
    live.require_calls_go_on()
    assert live.process.sessions.ended.keys() <= {
        "hung up",
        "peer connection failed",
        "peer connection closed",
    }


@pytest.mark.parametrize("first", [4, 15, 16, 19, 64, 79, 80, 127, 192, 255])
def test_datagram_of_no_protocol_is_counted(live: Live, first: int) -> None:
    before = live.counters
    live.attack(lambda live: live.send_raw(bytes((first,)) + bytes(40)))
    live.require_calls_go_on()
    assert live.counted(before) == {"not_webrtc": 1}


# SCTP


@pytest.mark.parametrize("chunks", corpus("sctp"))
def test_sctp_of_the_corpus(live: Live, chunks: bytes) -> None:
    live.revive()
    before = live.counters

    if chunks[:1] == bytes((SACK,)):
        live.await_data_to_acknowledge()
    live.attack(*[lambda live: live.send_sctp(chunks)] * 3)
    live.require_calls_go_on(data=False)
    if fault_of(parse_sctp_untrusted, bytes(12) + chunks):
        assert live.counted(before)["sctp_malformed"] == 3


SCTP_LIKE = st.lists(
    st.builds(
        lambda kind, flags, tsn, rest: chunk(kind, pack("!I", tsn) + rest, flags),
        st.sampled_from([0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 14, 130, 192, 255]),
        st.integers(0, 7),
        st.integers(0, 3) | st.integers(0, 0xFFFFFFFF),
        st.builds(
            lambda stream, sequence, ppid, rest: pack("!HHI", stream, sequence, ppid) + rest,
            st.integers(0, 5) | st.integers(0, 0xFFFF),
            st.integers(0, 2),
            st.sampled_from([0, 50, 51, 53, 56, 57]),
            st.binary(max_size=20),
        ),
    ),
    min_size=1,
    max_size=3,
).map(b"".join)


@fuzzed
@given(bursts(SCTP_LIKE | mutated(seeds("sctp"))))
def test_any_sctp(live: Live, packets: list[bytes]) -> None:
    live.attack(*[lambda live, chunks=chunks: live.send_sctp(chunks) for chunks in packets])
    live.require_calls_go_on(data=False)


@fuzzed
@given(bursts(st.binary(max_size=200)))
def test_any_application_data(live: Live, messages: list[bytes]) -> None:
    live.attack(*[lambda live, sent=sent: live.send_application_data(sent) for sent in messages if sent])
    live.require_calls_go_on(data=False)


def test_wrong_checksum_is_counted_and_the_association_goes_on(live: Live) -> None:
    live.redial()
    before = live.counters
    live.attack(lambda live: live.send_sctp_packet(data(0, 0, b"x"), 0, checksum_xor=1))
    live.require_calls_go_on()
    assert live.counted(before) == {"sctp_checksum": 1}


def test_channels_without_end_are_bounded(live: Live) -> None:
    live.redial()
    before = live.counters
    for start in range(0, 4000, 40):
        opens = [
            data(number, 2 * number + 10, pack("!BBHIHH", 3, 0, 0, 0, 1, 0) + b"x", 50)
            for number in range(start, start + 40)
        ]
        live.attack(sending(b"".join(opens)))
    live.require_calls_go_on(data=False)
    assert live.counted(before)["sctp_excess"] > 0
    sctp = live.server_sctp
    assert len(sctp._data_channels.keys() | sctp._inbound_streams.keys()) <= MAX_STREAMS


@pytest.mark.parametrize("step", [1, 2], ids=["fragments of one message", "a gap before each"])
def test_messages_that_are_never_whole_are_bounded(live: Live, step: int) -> None:
    live.redial()
    before = live.counters
    for start in range(0, 8000, 40):
        fragments = [
            data(step * number + step - 1, 1, b"x", flags=0 if number else 2)
            for number in range(start, start + 40)
        ]
        live.attack(sending(b"".join(fragments)))
    live.require_calls_go_on(data=False)
    assert live.counted(before)["sctp_excess"] > 0
    sctp = live.server_sctp
    assert sum(len(stream.reassembly) for stream in sctp._inbound_streams.values()) <= MAX_HELD + 40
    assert len(sctp._sack_misordered) <= MAX_HELD


def test_stream_that_is_reset_and_written_to_raises_nothing(live: Live) -> None:
    """The echo answers on a channel that is closing, which aiortc refuses."""
    live.redial()
    opened = data(0, 17, pack("!BBHIHH", 3, 0, 0, 0, 1, 0) + b"x", 50)
    reset = chunk(RECONFIGURATION, pack("!HHIIIH", 13, 18, 77, 0, live.due_tsn, 17))
    live.attack(lambda live: live.send_sctp(opened + reset + data(1, 17, b"are you there", 51)))
    live.require_calls_go_on(data=False)


def test_init_flood(live: Live) -> None:
    init = chunk(INIT, pack("!IIHHI", 5, 1 << 20, 10, 10, 0), 0)
    live.attack(*[lambda live: live.send_sctp(init)] * 500)
    live.require_calls_go_on(data=False)
    live.redial()
