"""The mux: what finds its session, what is counted and dropped, and that nothing raises."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from ipaddress import ip_network

import pytest
import pytest_asyncio
from hypothesis import example, given
from hypothesis import strategies as st

from host.sockets import bind_udp, bound_address, is_ipv6_available
from tests.transceiver.checks import (
    CREDENTIAL,
    OTHER_RELAY,
    RELAY,
    VIP,
    VIP_V6,
    Clock,
    client,
    error_code,
    mapped_address,
    write_check,
)
from tests.transceiver.waiting import until
from transceiver.ice import CONSENT_S, MAX_PATHS, Credential, IceLiteAgent, Path
from transceiver.mux import Mux
from wire.address import Address
from wire.spp import HEADER_BYTES, decode_header_untrusted, encode_header
from wire.stun import parse_stun_untrusted, write_binding_success

RELAY_NETWORKS = (ip_network("127.0.0.0/30"), ip_network("::1/128"))
FOREIGN_RELAY = Address.parse("127.0.0.4:7000")
HOME, MOBILE, ATTACKER = client(1), client(2), client(666)
HOME_V6 = Path(Address.parse("[2001:db8:ffff::7]:40000"), VIP_V6)
OTHER_CREDENTIAL = Credential("otherServer", "anotherPassword", "otherClient")
CLIENT_HELLO = b"\x16\xfe\xfd" + bytes(60)
RTP = b"\x80\x6f" + bytes(60)


class Endpoint:
    """A session that notes what it gets."""

    def __init__(self, clock: Clock, credential: Credential = CREDENTIAL) -> None:
        self.agent = IceLiteAgent(credential, clock())
        self.validated = 0
        self.received: list[tuple[bytes, Path, Address]] = []

    def path_validated(self) -> None:
        self.validated += 1

    def dtls_received(self, datagram: bytes, path: Path, relay: Address) -> None:
        self.received.append((datagram, path, relay))

    srtp_received = dtls_received


class FakeSocket:
    """Keeps what the mux sends: (datagram, address)."""

    def __init__(self) -> None:
        self.sent: list[tuple[bytes, tuple[str, int]]] = []

    def sendto(self, datagram: bytes, address: tuple[str, int]) -> None:
        self.sent.append((datagram, address))


class Fleet:
    """A mux with a fake socket and one session."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.socket = FakeSocket()
        self.mux = Mux(self.socket, RELAY_NETWORKS, self.clock)  # type: ignore[arg-type]  # a socket that keeps
        self.session = Endpoint(self.clock)
        self.mux.add(self.session)

    def arrive(self, payload: bytes, path: Path = HOME, relay: Address = RELAY) -> None:
        self.mux.receive_untrusted(encode_header(*path) + payload, relay)

    def counted(self) -> dict[str, int]:
        return dict(self.mux.counters)


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


# who may deliver


@pytest.mark.parametrize(
    "relay",
    [
        pytest.param(FOREIGN_RELAY, id="next network"),
        pytest.param(Address.parse("198.51.100.1:7000"), id="far away"),
        pytest.param(Address.parse("[2001:db8::1]:7000"), id="IPv6"),
    ],
)
def test_spp_from_outside_the_relay_networks_is_counted_and_dropped(fleet: Fleet, relay: Address) -> None:
    fleet.arrive(write_check(), relay=relay)
    assert fleet.counted() == {"foreign_relay": 1}
    assert fleet.socket.sent == []
    assert fleet.session.agent.paths == ()


def test_relay_is_known_by_its_address_whatever_its_port(fleet: Fleet) -> None:
    for port in (1, 7000, 65535):
        fleet.arrive(write_check(), relay=RELAY._replace(port=port))
    assert fleet.counted() == {"checks": 3}


# garbage


@pytest.mark.parametrize(
    ("datagram", "outcome"),
    [
        pytest.param(b"", "spp_malformed", id="empty"),
        pytest.param(encode_header(*HOME)[:-1], "spp_malformed", id="header cut short"),
        pytest.param(b"\xec\x56" + encode_header(*HOME)[2:], "spp_malformed", id="wrong magic"),
        pytest.param(write_check(), "spp_malformed", id="check without header"),
        pytest.param(encode_header(*HOME), "not_confirmed", id="header alone"),
        pytest.param(encode_header(*HOME) + b"\x40\x01", "not_webrtc", id="TURN channel"),
        pytest.param(encode_header(*HOME) + b"GET / HTTP/1.1\r\n", "not_webrtc", id="HTTP"),
        pytest.param(encode_header(*HOME) + b"\x10" * 40, "not_webrtc", id="ZRTP"),
        pytest.param(encode_header(*HOME) + b"\xff" * 40, "not_webrtc", id="ones"),
        pytest.param(encode_header(*HOME) + bytes(40), "stun_malformed", id="zeros"),
        pytest.param(encode_header(*HOME) + write_check()[:-4], "stun_malformed", id="check cut short"),
        pytest.param(
            encode_header(*HOME) + write_check()[:-1] + b"\x00", "stun_fingerprint", id="bad fingerprint"
        ),
        pytest.param(encode_header(*HOME) + write_check(username="alone"), "stun_username", id="one ufrag"),
        pytest.param(
            encode_header(*HOME) + write_check(username="noone:clientUfrag"),
            "unknown_ufrag",
            id="unknown ufrag",
        ),
        pytest.param(
            encode_header(*HOME) + write_check(username="serverUfrag:noone"),
            "check_username",
            id="unknown client ufrag",
        ),
        pytest.param(
            encode_header(*HOME) + write_check(password="guess"), "check_integrity", id="wrong password"
        ),
        pytest.param(
            encode_header(*HOME) + write_binding_success(bytes(12), HOME.client, b"key"),
            "stun_non_request",
            id="STUN success",
        ),
        pytest.param(encode_header(*HOME) + CLIENT_HELLO, "unknown_path", id="DTLS of nobody"),
        pytest.param(encode_header(*HOME) + RTP, "unknown_path", id="RTP of nobody"),
    ],
)
def test_what_no_session_can_use_has_its_own_counter_and_no_answer(
    fleet: Fleet, datagram: bytes, outcome: str
) -> None:
    fleet.mux.receive_untrusted(datagram, RELAY)
    assert fleet.counted() == {outcome: 1}
    assert fleet.socket.sent == []
    assert fleet.session.received == []
    assert fleet.session.validated == 0


@given(
    st.lists(
        st.binary(max_size=120)
        | st.binary(max_size=120).map(encode_header(*HOME).__add__)
        | st.binary(max_size=80).map((encode_header(*HOME) + write_check()[:20]).__add__),
        max_size=10,
    )
)
@example([encode_header(*HOME) + bytes.fromhex("000100002112a442") + bytes(12)])
@example([encode_header(*HOME) + bytes([first]) for first in range(256)])
@example([encode_header(*HOME) + write_check(username="serverUfrag:\xe9")])
def test_any_bytes_are_counted_once_and_never_raise(datagrams: list[bytes]) -> None:
    fleet = Fleet()
    for datagram in datagrams:
        fleet.mux.receive_untrusted(datagram, RELAY)
    assert sum(fleet.mux.counters.values()) == len(datagrams)
    assert fleet.session.received == []


@given(st.binary(max_size=200))
def test_any_bytes_from_a_validated_address_never_raise(payload: bytes) -> None:
    fleet = Fleet()
    fleet.arrive(write_check())
    fleet.arrive(payload)
    assert sum(fleet.mux.counters.values()) == 2
    assert all(datagram == payload for datagram, _, _ in fleet.session.received)


# answers


@pytest.mark.parametrize("path", [HOME, HOME_V6], ids=["IPv4", "IPv6"])
def test_answer_names_the_client_that_spp_names(fleet: Fleet, path: Path) -> None:
    fleet.arrive(write_check(), path)
    [(datagram, address)] = fleet.socket.sent
    assert Path(*decode_header_untrusted(datagram)) == path
    assert mapped_address(datagram[HEADER_BYTES:]) == path.client
    assert address == ("127.0.0.1", 7000)


def test_answer_goes_through_the_relay_that_delivered_even_for_a_replay(fleet: Fleet) -> None:
    captured = write_check()
    fleet.arrive(captured)
    fleet.arrive(captured, ATTACKER, OTHER_RELAY)
    assert [address for _, address in fleet.socket.sent] == [("127.0.0.1", 7000), ("127.0.0.2", 7000)]


def test_role_conflict_is_answered_but_validates_no_path(fleet: Fleet) -> None:
    fleet.arrive(write_check(controlled=True))
    [(datagram, _)] = fleet.socket.sent
    assert error_code(parse_stun_untrusted(datagram[HEADER_BYTES:])) == 487
    fleet.arrive(RTP)
    assert fleet.mux.counters["unknown_path"] == 1
    assert fleet.session.validated == 0


def test_refused_send_is_counted(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(datagram: bytes, address: tuple[str, int]) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setattr(fleet.socket, "sendto", refuse)
    fleet.arrive(write_check())
    assert fleet.counted() == {"checks": 1, "send_failed": 1}


# media


@pytest.mark.parametrize("datagram", [CLIENT_HELLO, RTP], ids=["DTLS", "RTP"])
def test_media_of_a_validated_address_reaches_its_session(fleet: Fleet, datagram: bytes) -> None:
    fleet.arrive(write_check())
    fleet.arrive(datagram, relay=OTHER_RELAY)
    assert fleet.session.received == [(datagram, HOME, OTHER_RELAY)]
    assert fleet.mux.counters["media"] == 1


def test_handshake_goes_to_where_dtls_came_from_and_rtp_does_not_count(fleet: Fleet) -> None:
    fleet.arrive(write_check(), HOME)
    fleet.arrive(write_check(), MOBILE)
    fleet.arrive(RTP, MOBILE)
    assert fleet.session.agent.selected == HOME
    fleet.arrive(CLIENT_HELLO, MOBILE)
    assert fleet.session.agent.selected == MOBILE


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(MOBILE, id="other client"),
        pytest.param(HOME._replace(client=HOME.client._replace(port=1)), id="other port"),
        pytest.param(HOME._replace(vip=VIP_V6), id="other VIP"),
    ],
)
@pytest.mark.parametrize("datagram", [CLIENT_HELLO, RTP], ids=["DTLS", "RTP"])
def test_media_of_any_other_address_is_dropped(fleet: Fleet, path: Path, datagram: bytes) -> None:
    fleet.arrive(write_check())
    fleet.arrive(datagram, path)
    assert fleet.session.received == []
    assert fleet.mux.counters["unknown_path"] == 1


# a relay asks for a session


@pytest.mark.parametrize("relay", [RELAY, OTHER_RELAY], ids=["the relay of the path", "another relay"])
def test_relay_that_asks_for_a_session_gets_its_header_back(fleet: Fleet, relay: Address) -> None:
    fleet.arrive(write_check())
    selected, sent = (
        fleet.session.agent.destination(100, dtls=False, now=fleet.clock()),
        len(fleet.socket.sent),
    )
    fleet.clock.now += 7
    fleet.arrive(b"", relay=relay)
    assert fleet.socket.sent[sent:] == [(encode_header(*HOME), (str(relay.ip), relay.port))]
    assert fleet.counted() == {"checks": 1, "confirmed": 1}
    assert fleet.session.agent.destination(100, dtls=False, now=fleet.clock()) == selected, (
        "it moved to who asked"
    )
    assert (fleet.session.received, fleet.session.validated) == ([], 1)


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(MOBILE, id="other client"),
        pytest.param(HOME._replace(client=HOME.client._replace(port=1)), id="other port"),
        pytest.param(HOME._replace(vip=VIP_V6), id="other VIP"),
    ],
)
def test_relay_that_asks_for_any_other_path_is_not_answered(fleet: Fleet, path: Path) -> None:
    fleet.arrive(write_check())
    sent = len(fleet.socket.sent)
    fleet.arrive(b"", path)
    assert len(fleet.socket.sent) == sent
    assert fleet.counted() == {"checks": 1, "not_confirmed": 1}


@pytest.mark.parametrize("end", ["removed", "expired", "made room"])
def test_relay_that_asks_for_what_is_over_is_not_answered(fleet: Fleet, end: str) -> None:
    fleet.arrive(write_check(), MOBILE)
    fleet.arrive(write_check())
    if end == "removed":
        fleet.mux.remove(fleet.session)
    elif end == "expired":
        fleet.clock.now += CONSENT_S
    else:
        for index in range(MAX_PATHS):
            fleet.clock.now += 0.01
            fleet.arrive(write_check(), client(100 + index))
    sent = len(fleet.socket.sent)
    fleet.arrive(b"")
    assert len(fleet.socket.sent) == sent
    assert fleet.mux.counters["not_confirmed"] == 1


def test_stranger_who_asks_for_a_session_is_not_answered(fleet: Fleet) -> None:
    fleet.arrive(write_check())
    sent = len(fleet.socket.sent)
    fleet.arrive(b"", relay=FOREIGN_RELAY)
    assert len(fleet.socket.sent) == sent
    assert fleet.counted() == {"checks": 1, "foreign_relay": 1}


def test_replayed_check_lets_no_media_in(fleet: Fleet) -> None:
    captured = write_check()
    fleet.arrive(captured)
    for _ in range(50):
        fleet.arrive(captured, ATTACKER)
        fleet.arrive(CLIENT_HELLO, ATTACKER)
    assert fleet.session.received == []
    assert fleet.mux.counters["unknown_path"] == 50


def test_media_of_an_address_that_made_room_is_dropped(fleet: Fleet) -> None:
    for index in range(MAX_PATHS + 1):
        fleet.arrive(write_check(), client(index))
        fleet.clock.now += 0.1
    fleet.arrive(RTP, client(1))
    fleet.arrive(RTP, client(0))
    fleet.arrive(RTP, client(MAX_PATHS))
    assert [path for _, path, _ in fleet.session.received] == [client(0), client(MAX_PATHS)]


def test_two_sessions_on_one_socket_stay_apart(fleet: Fleet) -> None:
    other = Endpoint(fleet.clock, OTHER_CREDENTIAL)
    fleet.mux.add(other)
    fleet.arrive(write_check(), HOME)
    fleet.arrive(write_check(OTHER_CREDENTIAL), MOBILE)
    fleet.arrive(RTP, HOME)
    fleet.arrive(CLIENT_HELLO, MOBILE)
    assert fleet.session.received == [(RTP, HOME, RELAY)]
    assert other.received == [(CLIENT_HELLO, MOBILE, RELAY)]


# contested addresses


@pytest.fixture
def rival(fleet: Fleet) -> Endpoint:
    endpoint = Endpoint(fleet.clock, OTHER_CREDENTIAL)
    fleet.mux.add(endpoint)
    return endpoint


def test_address_of_a_live_session_is_not_given_to_another(fleet: Fleet, rival: Endpoint) -> None:
    fleet.arrive(write_check())
    answered = len(fleet.socket.sent)
    fleet.clock.now += 5.9
    fleet.arrive(write_check(OTHER_CREDENTIAL))
    assert fleet.mux.counters["path_contested"] == 1
    assert len(fleet.socket.sent) == answered
    assert rival.agent.paths == ()
    fleet.arrive(RTP)
    assert len(fleet.session.received) == 1
    assert rival.received == []


def test_address_of_a_silent_session_goes_to_the_next(fleet: Fleet, rival: Endpoint) -> None:
    fleet.arrive(write_check())
    fleet.clock.now += 6
    fleet.arrive(write_check(OTHER_CREDENTIAL))
    fleet.arrive(RTP)
    assert fleet.mux.counters["path_contested"] == 0
    assert rival.received == [(RTP, HOME, RELAY)]
    assert fleet.session.received == []


@pytest.mark.parametrize("controlled", [False, True], ids=["replayed check", "role conflict"])
def test_old_owner_does_not_take_an_address_back_without_a_fresh_check(
    fleet: Fleet, rival: Endpoint, controlled: bool
) -> None:
    captured = write_check()
    fleet.arrive(captured)
    fleet.clock.now += 7
    fleet.arrive(write_check(OTHER_CREDENTIAL))
    fleet.clock.now += 7
    fleet.arrive(write_check(controlled=True) if controlled else captured)
    fleet.arrive(RTP)
    assert fleet.session.received == []
    assert rival.received == [(RTP, HOME, RELAY)]


def test_end_of_the_old_owner_leaves_the_address_to_the_new(fleet: Fleet, rival: Endpoint) -> None:
    fleet.arrive(write_check())
    fleet.clock.now += 7
    fleet.arrive(write_check(OTHER_CREDENTIAL))
    fleet.mux.remove(fleet.session)
    fleet.arrive(RTP)
    assert rival.received == [(RTP, HOME, RELAY)]


# removal


def test_removed_session_is_found_by_nothing(fleet: Fleet) -> None:
    fleet.arrive(write_check(), HOME)
    fleet.arrive(write_check(), MOBILE)
    fleet.mux.remove(fleet.session)
    fleet.mux.counters.clear()
    fleet.arrive(write_check())
    fleet.arrive(RTP, HOME)
    fleet.arrive(RTP, MOBILE)
    assert fleet.counted() == {"unknown_ufrag": 1, "unknown_path": 2}
    assert fleet.session.received == []


def test_indices_are_empty_after_a_thousand_sessions(fleet: Fleet) -> None:
    fleet.mux.remove(fleet.session)
    for number in range(1000):
        credential = Credential(f"server{number}", "password", "client")
        session = Endpoint(fleet.clock, credential)
        fleet.mux.add(session)
        for index in range(MAX_PATHS + 2):
            fleet.arrive(write_check(credential), client(index))
        session.agent.restart(Credential(f"again{number}", "password", "client"), fleet.clock())
        fleet.mux.add(session)
        fleet.mux.remove(session)
    assert not fleet.mux._by_ufrag
    assert not fleet.mux._by_path


def test_ice_restart_adds_a_ufrag_and_its_end_removes_the_old(fleet: Fleet) -> None:
    new = Credential("newServer", "newPassword", "newClient")
    fleet.session.agent.restart(new, fleet.clock())
    fleet.mux.add(fleet.session)
    fleet.arrive(write_check())
    fleet.arrive(write_check(new))
    assert fleet.counted() == {"checks": 2}
    fleet.clock.now += 30
    fleet.mux.remove_ufrags(fleet.session.agent.expire_credentials(fleet.clock()))
    fleet.arrive(write_check())
    fleet.arrive(write_check(new))
    assert fleet.counted() == {"checks": 3, "unknown_ufrag": 1}


# a real socket

_LOOPBACKS = [
    pytest.param("127.0.0.1:0", id="IPv4"),
    pytest.param(
        "[::1]:0", id="IPv6", marks=pytest.mark.skipif(not is_ipv6_available(), reason="no IPv6 loopback")
    ),
]


@pytest.fixture(params=_LOOPBACKS)
def relay_socket(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with closing(bind_udp("relay", Address.parse(request.param))) as sock:
        yield sock


@pytest_asyncio.fixture
async def served(relay_socket: socket.socket) -> AsyncIterator[tuple[Mux, Endpoint, Address]]:
    clock = Clock()
    sock = bind_udp("transceiver", bound_address(relay_socket)._replace(port=0))
    mux, session = Mux(sock, RELAY_NETWORKS, clock), Endpoint(clock)
    address = bound_address(sock)
    mux.add(session)
    mux.start()
    yield mux, session, address
    mux.stop()


async def test_check_over_a_real_socket_is_answered_through_its_relay(
    relay_socket: socket.socket, served: tuple[Mux, Endpoint, Address]
) -> None:
    _, session, address = served
    relay_socket.sendto(encode_header(*HOME_V6) + write_check(), (str(address.ip), address.port))
    loop = asyncio.get_running_loop()
    answer = await asyncio.wait_for(loop.sock_recv(relay_socket, 2048), 5)
    assert Path(*decode_header_untrusted(answer)) == HOME_V6
    assert mapped_address(answer[HEADER_BYTES:]) == HOME_V6.client
    relay = bound_address(relay_socket)
    relay_socket.sendto(encode_header(*HOME_V6) + RTP, (str(address.ip), address.port))
    await until(lambda: session.received)
    assert session.received == [(RTP, HOME_V6, relay)]


async def test_burst_of_garbage_over_a_real_socket_leaves_the_mux_serving(
    relay_socket: socket.socket, served: tuple[Mux, Endpoint, Address]
) -> None:
    mux, _, address = served
    for first in range(256):
        relay_socket.sendto(bytes([first]) * first, (str(address.ip), address.port))
    relay_socket.sendto(encode_header(HOME.client, VIP) + write_check(), (str(address.ip), address.port))
    await until(lambda: mux.counters["checks"])
    assert mux.counters["spp_malformed"] == 256
