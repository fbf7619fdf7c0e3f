"""Packets and what a relay does with each: plain data, for every data path that there is.

The relay is that of ``network.POLICY`` with ``network.KEYS``, at unix time ``network.UNIX_S``. Where ``known_flow`` is
not "none" there is a flow of the packet's client (a fleet packet's is in its SPP header) and the VIP ``vip_index`` to the
transceiver of ``call``. Every link carries IP packets of LINK_MTU bytes.
"""

from dataclasses import dataclass
from typing import Literal

from relay.core.verdict import Verdict
from tests.relay.network import (
    BINDING_ERROR,
    BINDING_INDICATION,
    BINDING_SUCCESS,
    CALL,
    CALL_V6,
    CLIENT_HELLO,
    CLIENT_V4,
    CLIENT_V6,
    CLUSTER_ID,
    DTLS_ALERT,
    FLEET_SOCKET_V4,
    FLEET_SOCKET_V6,
    LISTEN_V4,
    MESSAGE_INTEGRITY,
    OLD_KEY,
    OTHER_CALL,
    OTHER_LISTEN_V4,
    OTHER_VIP_V4,
    POLICY,
    PRIORITY,
    RESTARTED_CALL,
    RTP,
    SERVER_HELLO,
    SOFTWARE,
    UNIX_S,
    USERNAME,
    VIP_V4,
    VIP_V6,
    Call,
    answer,
    call_at,
    check,
    check_of_size,
    fingerprinted,
    signed,
    spp,
    stun,
    username,
)
from wire.address import Address
from wire.keys import FleetKey

KnownFlow = Literal["none", "provisional", "assured"]
LINK_MTU = 1500


@dataclass(frozen=True, slots=True, kw_only=True)
class PacketRow:
    """One packet.

    source: where it comes from, a client (public) or a transceiver (fleet).
    vip_index: the VIP that it came to (public), or whose ``listen`` address it leaves from (fleet; -1 if it is dropped
        and no flow is meant).
    forwarded, destination: what leaves the relay, whole, and where to; None if nothing does.
    call: whose session the known flow is.
    in_kernel: XDP forwards it, if it knows the way to the transceiver or to the client. So it may with what a worker would
        drop: XDP does not read a check to its end, and leaves to the transceiver to refuse it.
    """

    description: str
    side: Literal["public", "fleet"]
    source: Address
    vip_index: int
    datagram: bytes
    known_flow: KnownFlow
    verdict: Verdict
    forwarded: bytes | None
    destination: Address | None
    call: Call
    in_kernel: bool

    @property
    def client(self) -> Address:
        """Whose flow is meant; a fleet packet names it in its SPP header, however broken that is."""
        if self.side == "public":
            return self.source
        return Address.from_mapped(self.datagram[2:18], int.from_bytes(self.datagram[34:36], "big"))


def _is_forwarded(flow: KnownFlow, to: Address | None) -> bool:
    return flow == "assured" and to is not None


def _public(
    description: str,
    datagram: bytes,
    verdict: Verdict,
    to: Address | None = None,
    *,
    client: Address = CLIENT_V4,
    vip_index: int | None = None,
    flow: KnownFlow = "none",
    call: Call = CALL,
    in_kernel: bool | None = None,
) -> PacketRow:
    if vip_index is None:
        vip_index = 0 if client.family == 4 else 1
    return PacketRow(
        description=description,
        side="public",
        source=client,
        vip_index=vip_index,
        datagram=datagram,
        known_flow=flow,
        verdict=verdict,
        forwarded=None if to is None else spp(client, POLICY.vips[vip_index].address, datagram),
        destination=to,
        call=call,
        in_kernel=_is_forwarded(flow, to) if in_kernel is None else in_kernel,
    )


def _fleet(
    description: str,
    datagram: bytes,
    verdict: Verdict,
    to: Address | None = None,
    *,
    source: Address = CALL.transceiver,
    vip_index: int = -1,
    flow: KnownFlow = "none",
    call: Call = CALL,
    in_kernel: bool | None = None,
) -> PacketRow:
    return PacketRow(
        description=description,
        side="fleet",
        source=source,
        vip_index=vip_index,
        datagram=datagram,
        known_flow=flow,
        verdict=verdict,
        forwarded=None if to is None else datagram[38:],
        destination=to,
        call=call,
        in_kernel=_is_forwarded(flow, to) if in_kernel is None else in_kernel,
    )


V = Verdict
HOME, AWAY, HOME_V6 = CALL.transceiver, OTHER_CALL.transceiver, CALL_V6.transceiver
STRANGER_KEY = FleetKey(2, bytes(32))  # another fleet's, of the same id
UNKNOWN_KEY = FleetKey(3, bytes(32))
CLIENT_A = Address.parse("192.168.1.20:50000")
CLIENT_CGNAT = Address.parse("100.64.0.9:1")
OLDEST, NEWEST = UNIX_S - POLICY.max_session_s, UNIX_S + POLICY.clock_skew_s
HINT_OLDEST, HINT_NEWEST = (
    call_at("10.1.2.3:5000", issued_at=OLDEST),
    call_at("10.1.2.3:5000", issued_at=NEWEST),
)
HINT_RETIRED_KEY = call_at("10.1.2.3:5000", key=OLD_KEY)

# IP, UDP and SPP headers take the rest of LINK_MTU.
UP_V4, UP_V6 = LINK_MTU - 20 - 8 - 38, LINK_MTU - 40 - 8 - 38
DOWN_V4, DOWN_V6 = LINK_MTU - 20 - 8, LINK_MTU - 40 - 8

CHECKS_FORWARDED = (
    _public("first check, IPv4", check(CALL), V.FORWARD_STUN, HOME),
    _public("first check, IPv6", check(CALL), V.FORWARD_STUN, HOME, client=CLIENT_V6),
    _public("first check, IPv4 to an IPv6 transceiver", check(CALL_V6), V.FORWARD_STUN, HOME_V6),
    _public("first check, IPv6 all the way", check(CALL_V6), V.FORWARD_STUN, HOME_V6, client=CLIENT_V6),
    _public("first check to the second IPv4 VIP", check(CALL), V.FORWARD_STUN, HOME, vip_index=2),
    _public("first check without FINGERPRINT", signed(stun(username(CALL)), CALL.pwd), V.FORWARD_STUN, HOME),
    _public("first check under a retired key", check(HINT_RETIRED_KEY), V.FORWARD_STUN, HOME),
    _public("first check, ufrag of max_session_s", check(HINT_OLDEST), V.FORWARD_STUN, HOME),
    _public("first check, ufrag ahead by clock_skew_s", check(HINT_NEWEST), V.FORWARD_STUN, HOME),
    _public("first check of 1400 bytes, unknown attribute", check_of_size(CALL, 1400), V.FORWARD_STUN, HOME),
    _public("first check of 2048 bytes", check_of_size(CALL, 2048), V.FORWARD_STUN, HOME),
    _public("first check from RFC 1918", check(CALL), V.FORWARD_STUN, HOME, client=CLIENT_A),
    _public("first check from a CGNAT, port 1", check(CALL), V.FORWARD_STUN, HOME, client=CLIENT_CGNAT),
    _public("check on its provisional flow", check(CALL), V.FORWARD_STUN, HOME, flow="provisional"),
    _public("check on its assured flow", check(CALL), V.FORWARD_STUN, HOME, flow="assured"),
    _public(
        "check of 1400 bytes on its assured flow", check_of_size(CALL, 1400), V.FORWARD_STUN, HOME, flow="assured"
    ),
    _public(
        # the transceiver checks it, as on the kernel path, which has no keys
        "check with bad integrity on its assured flow", check(CALL, pwd=b"guess"), V.FORWARD_STUN, HOME, flow="assured"
    ),
    _public("other call's check on a provisional flow", check(OTHER_CALL), V.FORWARD_STUN, AWAY, flow="provisional"),
    _public("other call's check on an assured flow", check(OTHER_CALL), V.FORWARD_STUN, AWAY, flow="assured",
            in_kernel=False),
    _public("restarted call's check on an assured flow", check(RESTARTED_CALL), V.FORWARD_STUN, HOME, flow="assured",
            in_kernel=False),
)  # fmt: skip

_ATTRIBUTE = (SOFTWARE, b"relay tests")
_SAME_TAG = Call(HOME, CALL.ufrag[:10] + "x" * (len(CALL.ufrag) - 10), CALL.pwd)
_SHORT_SAME_TAG = Call(HOME, CALL.ufrag[:12], CALL.pwd)
OWN_CHECKS = (
    _public("check, IPv6", check(CALL), V.FORWARD_STUN, HOME, client=CLIENT_V6, flow="assured"),
    _public("check to the second IPv4 VIP", check(CALL), V.FORWARD_STUN, HOME, vip_index=2, flow="assured"),
    _public("check to an IPv6 transceiver", check(CALL_V6), V.FORWARD_STUN, HOME_V6, flow="assured", call=CALL_V6),
    _public("check, IPv6 all the way", check(CALL_V6), V.FORWARD_STUN, HOME_V6, client=CLIENT_V6, flow="assured",
            call=CALL_V6),
    _public("check with bad integrity, IPv6 all the way", check(CALL_V6, pwd=b"guess"), V.FORWARD_STUN, HOME_V6,
            client=CLIENT_V6, flow="assured", call=CALL_V6),
    _public("check without FINGERPRINT", signed(stun(username(CALL)), CALL.pwd), V.FORWARD_STUN, HOME, flow="assured"),
    _public("check without integrity", stun(username(CALL)), V.FORWARD_STUN, HOME, flow="assured"),
    _public("check of another ufrag with the flow's tag", check(_SAME_TAG), V.FORWARD_STUN, HOME, flow="assured"),
    # shorter than a sealed ufrag
    _public("check of a short ufrag with the flow's tag", check(_SHORT_SAME_TAG), V.FORWARD_STUN, HOME, flow="assured",
            in_kernel=False),
    *(_public(f"check, USERNAME behind {before} others", stun(*[_ATTRIBUTE] * before, username(CALL)), V.FORWARD_STUN,
              HOME, flow="assured", in_kernel=before < 8)
      for before in (1, 2, 6, 7, 8, 9)),
    *(_public(f"check of {size} bytes, {call.transceiver}, from {client}", check_of_size(call, size), V.FORWARD_STUN,
              call.transceiver, client=client, flow="assured", call=call, in_kernel=size <= longest)
      for call, longest in ((CALL, UP_V4), (CALL_V6, UP_V6)) for client in (CLIENT_V4, CLIENT_V6)
      for size in (longest // 4 * 4, longest // 4 * 4 + 4)),
    _public("check of 2048 bytes on its assured flow", check_of_size(CALL, 2048), V.FORWARD_STUN, HOME, flow="assured",
            in_kernel=False),
)  # fmt: skip

_KNOWN: tuple[KnownFlow, ...] = ("provisional", "assured")
MEDIA_FORWARDED = (
    *(_public(f"first byte {first} on a flow {flow}", bytes((first, 0, 0)), V.FORWARD_FLOW, HOME, flow=flow)
      for first in (20, 63, 128, 191) for flow in _KNOWN),
    _public("DTLS on an assured flow, IPv6", CLIENT_HELLO, V.FORWARD_FLOW, HOME, client=CLIENT_V6, flow="assured"),
    _public("RTP on an assured flow of the second VIP", RTP, V.FORWARD_FLOW, HOME, vip_index=2, flow="assured"),
    _public("RTP of one byte", b"\x80", V.FORWARD_FLOW, HOME, flow="assured"),
    _public("RTP of 2048 bytes", RTP.ljust(2048), V.FORWARD_FLOW, HOME, flow="assured", in_kernel=False),
    _public("indication", stun(message_type=BINDING_INDICATION), V.FORWARD_FLOW, HOME, flow="provisional"),
    _public("indication, assured", stun(message_type=BINDING_INDICATION), V.FORWARD_FLOW, HOME, flow="assured",
            in_kernel=False),
    _public("success", answer(CALL), V.FORWARD_FLOW, HOME, flow="provisional"),
    _public("error", answer(CALL, BINDING_ERROR), V.FORWARD_FLOW, HOME, flow="assured", in_kernel=False),
    _public("success, assured", answer(CALL), V.FORWARD_FLOW, HOME, flow="assured", in_kernel=False),
    _public("indication with its USERNAME, assured", stun(username(CALL), message_type=BINDING_INDICATION),
            V.FORWARD_FLOW, HOME, flow="assured", in_kernel=False),
    _public("DTLS alert on an assured flow", DTLS_ALERT, V.FORWARD_FLOW, HOME, flow="assured"),
    _public("RTP to an IPv6 transceiver", RTP, V.FORWARD_FLOW, HOME_V6, flow="assured", call=CALL_V6),
    _public("RTP to an IPv6 transceiver, IPv6 client", RTP, V.FORWARD_FLOW, HOME_V6, client=CLIENT_V6, flow="assured",
            call=CALL_V6),
    _public("RTP to an IPv6 transceiver, provisional", RTP, V.FORWARD_FLOW, HOME_V6, flow="provisional", call=CALL_V6),
    *(_public(f"RTP of {size} bytes, {call.transceiver}, from {client}", RTP.ljust(size, b"."), V.FORWARD_FLOW,
              call.transceiver, client=client, flow="assured", call=call, in_kernel=size <= longest)
      for call, longest in ((CALL, UP_V4), (CALL_V6, UP_V6)) for client in (CLIENT_V4, CLIENT_V6)
      for size in (longest - 1, longest, longest + 1)),
)  # fmt: skip

NOT_WEBRTC = tuple(
    _public(f"first byte {first}, {name}", bytes((first, 0, 0)), V.DROP_NOT_WEBRTC, flow="assured")
    for first, name in (
        (4, "unassigned"),
        (15, "unassigned"),
        (16, "ZRTP"),
        (19, "ZRTP"),
        (64, "TURN channel"),
        (79, "TURN channel"),
        (80, "QUIC"),
        (127, "QUIC"),
        (192, "QUIC"),
        (255, "QUIC"),
    )
)

NO_PACKET = (
    _public("empty", b"", V.DROP_MALFORMED),
    _public("empty, IPv6", b"", V.DROP_MALFORMED, client=CLIENT_V6),
    _public("empty on an assured flow", b"", V.DROP_MALFORMED, flow="assured"),
    _public("2049 bytes", RTP.ljust(2049), V.DROP_OVERSIZE, flow="assured"),
    _public("2052 bytes of a good check", check_of_size(CALL, 2052), V.DROP_OVERSIZE),
    _public("source port 0", check(CALL), V.DROP_SOURCE_PORT_ZERO, client=Address(CLIENT_V4.host, 0)),
    _public("source port 0, IPv6", check(CALL), V.DROP_SOURCE_PORT_ZERO, client=Address(CLIENT_V6.host, 0)),
)

_MAPPED = Address(bytes(10) + b"\xff\xff" + CLIENT_V4.host, 40000)  # as an IPv6 packet would say it
_FORGED_SOURCES = (
    ("0/8, lowest", Address.parse("0.0.0.0:40000")),
    ("0/8, highest", Address.parse("0.255.255.255:40000")),
    ("multicast, lowest", Address.parse("224.0.0.0:40000")),
    ("multicast, highest", Address.parse("239.255.255.255:40000")),
    ("reserved", Address.parse("240.0.0.0:40000")),
    ("broadcast", Address.parse("255.255.255.255:40000")),
    ("loopback", Address.parse("127.0.0.1:40000")),
    ("loopback, highest", Address.parse("127.255.255.255:40000")),
    ("IPv6 unspecified", Address.parse("[::]:40000")),
    ("IPv6 loopback", Address.parse("[::1]:40000")),
    ("IPv4 mapped", _MAPPED),
    ("link-local, lowest", Address.parse("[fe80::]:40000")),
    ("link-local, highest", Address.parse("[febf:ffff::1]:40000")),
    ("IPv6 multicast", Address.parse("[ff02::1]:40000")),
    ("our VIP", VIP_V4),
    ("our IPv6 VIP", VIP_V6),
    ("our listen address", LISTEN_V4),
    ("our second listen address", OTHER_LISTEN_V4),
    ("our fleet socket", FLEET_SOCKET_V4),
    ("our IPv6 fleet socket", FLEET_SOCKET_V6),
    ("a transceiver", HOME),
    ("the transceivers' network", Address.parse("10.1.255.255:40000")),
    ("an IPv6 transceiver", HOME_V6),
)
MARTIANS = tuple(
    _public(f"check from {name}", check(CALL), V.DROP_MARTIAN, client=source)
    for name, source in _FORGED_SOURCES
)

_GOOD = check(CALL)
_BARE = stun(username(CALL))
_OVERRUN = stun(username(CALL), (PRIORITY, bytes(4)))[:-8] + bytes.fromhex("00240008 00000000")
_OVERRUN_FIRST = stun((PRIORITY, bytes(4)))[:20] + bytes.fromhex("00240400 00000000") + _BARE[20:]
_OVERRUN_FIRST = _OVERRUN_FIRST[:2] + (len(_OVERRUN_FIRST) - 20).to_bytes(2, "big") + _OVERRUN_FIRST[4:]
_BEHIND_INTEGRITY = stun((MESSAGE_INTEGRITY, bytes(20)), username(CALL))
STUN_REFUSED = (
    _public("wrong cookie", _BARE[:7] + b"\x43" + _BARE[8:], V.DROP_STUN_MALFORMED),
    _public("no cookie, RFC 3489", _BARE[:4] + bytes(4) + _BARE[8:], V.DROP_STUN_MALFORMED),
    _public("one byte, 0", b"\x00", V.DROP_STUN_MALFORMED),
    _public("header cut short, first byte 3", b"\x03" + bytes(18), V.DROP_STUN_MALFORMED, flow="assured"),
    _public("length too small", _BARE + bytes(4), V.DROP_STUN_MALFORMED),
    _public("length too large", _BARE[:-4], V.DROP_STUN_MALFORMED),
    _public("attribute overruns", stun((PRIORITY, bytes(4)))[:20] + bytes.fromhex("00240008 00000000"),
            V.DROP_STUN_MALFORMED),
    _public("bad fingerprint", _GOOD[:-1] + bytes((_GOOD[-1] ^ 1,)), V.DROP_STUN_MALFORMED),
    _public("bad fingerprint on its assured flow", _GOOD[:-1] + bytes((_GOOD[-1] ^ 1,)), V.DROP_STUN_MALFORMED,
            flow="assured", in_kernel=True),
    _public("attribute overruns behind the USERNAME, assured", _OVERRUN, V.DROP_STUN_MALFORMED, flow="assured",
            in_kernel=True),
    _public("attribute overruns before the USERNAME, assured", _OVERRUN_FIRST, V.DROP_STUN_MALFORMED, flow="assured"),
    _public("too many attributes behind the USERNAME, assured", stun(username(CALL), *[(SOFTWARE, b"x")] * 99),
            V.DROP_STUN_MALFORMED, flow="assured", in_kernel=True),
    _public("malformed indication on an assured flow", stun(message_type=BINDING_INDICATION)[:-1],
            V.DROP_STUN_MALFORMED, flow="assured"),
    _public("no USERNAME", fingerprinted(signed(stun((SOFTWARE, b"x")), CALL.pwd)), V.DROP_STUN_USERNAME),
    _public("no USERNAME on an assured flow", stun(), V.DROP_STUN_USERNAME, flow="assured"),
    _public("USERNAME doubled", signed(stun(username(CALL), username(OTHER_CALL)), CALL.pwd), V.DROP_STUN_USERNAME),
    _public("USERNAME doubled on its assured flow", stun(username(CALL), username(OTHER_CALL)), V.DROP_STUN_USERNAME,
            flow="assured", in_kernel=True),
    _public("USERNAME doubled, the other call's first", stun(username(OTHER_CALL), username(CALL)),
            V.DROP_STUN_USERNAME, flow="assured"),
    _public("USERNAME behind the integrity, assured", _BEHIND_INTEGRITY,
            V.DROP_STUN_USERNAME, flow="assured", in_kernel=True),
    _public("USERNAME without a colon, assured", stun((USERNAME, CALL.ufrag.encode())), V.DROP_STUN_USERNAME,
            flow="assured"),
    _public("long USERNAME without a colon, assured", stun((USERNAME, CALL.ufrag.encode() + b"h6vY")),
            V.DROP_STUN_USERNAME, flow="assured", in_kernel=True),
    _public("empty USERNAME, assured", stun((USERNAME, b"")), V.DROP_STUN_USERNAME, flow="assured"),
    _public("USERNAME without a colon", signed(stun((USERNAME, CALL.ufrag.encode())), CALL.pwd), V.DROP_STUN_USERNAME),
    _public("bad integrity", check(CALL, pwd=b"guess"), V.DROP_STUN_INTEGRITY),
    _public("bad integrity, IPv6", check(CALL_V6, pwd=b"guess"), V.DROP_STUN_INTEGRITY, client=CLIENT_V6),
    _public("bad integrity on its provisional flow", check(CALL, pwd=b"guess"), V.DROP_STUN_INTEGRITY,
            flow="provisional"),
    _public("other call's ufrag, bad integrity, on an assured flow", check(OTHER_CALL, pwd=CALL.pwd),
            V.DROP_STUN_INTEGRITY, flow="assured"),
    _public("no integrity", _BARE, V.DROP_STUN_INTEGRITY),
    _public("integrity of zeros", stun(username(CALL), (MESSAGE_INTEGRITY, bytes(20))), V.DROP_STUN_INTEGRITY),
    _public("indication of no flow", stun(message_type=BINDING_INDICATION), V.DROP_STUN_UNKNOWN_FLOW),
    _public("indication of no flow, IPv6", stun(message_type=BINDING_INDICATION), V.DROP_STUN_UNKNOWN_FLOW,
            client=CLIENT_V6),
    _public("indication with a good USERNAME, no flow", stun(username(CALL), message_type=BINDING_INDICATION),
            V.DROP_STUN_UNKNOWN_FLOW),
    _public("success of no flow", stun(message_type=BINDING_SUCCESS), V.DROP_STUN_UNKNOWN_FLOW),
    _public("error of no flow", stun(message_type=BINDING_ERROR), V.DROP_STUN_UNKNOWN_FLOW),
    _public("TURN Allocate", stun(message_type=0x0003), V.DROP_STUN_UNKNOWN_FLOW),
    _public("DTLS of no flow", CLIENT_HELLO, V.DROP_UNKNOWN_FLOW),
    _public("DTLS of no flow, IPv6", CLIENT_HELLO, V.DROP_UNKNOWN_FLOW, client=CLIENT_V6),
    _public("RTP of no flow", RTP, V.DROP_UNKNOWN_FLOW),
)  # fmt: skip

_ALTERED = Call(HOME, CALL.ufrag[:20] + CALL.ufrag[20].swapcase() + CALL.ufrag[21:], CALL.pwd)
_NO_UFRAG_OF_OURS = Call(HOME, "evtj", CALL.pwd)
_STRANGER = call_at("10.1.2.3:5000", key=STRANGER_KEY)
_UNKNOWN = call_at("10.1.2.3:5000", key=UNKNOWN_KEY)
_EXPIRED, _FUTURE = (call_at("10.1.2.3:5000", issued_at=at) for at in (OLDEST - 1, NEWEST + 1))
_ELSEWHERE = call_at("10.1.2.3:5000", cluster_id=CLUSTER_ID + 1)
_OUTSIDE, _OUTSIDE_V6 = call_at("10.2.0.1:5000"), call_at("[fd00:2::1]:5000")
_CLIENTS_OWN, _PORT_ZERO = call_at(str(CLIENT_V4)), call_at("10.1.2.3:0")
UFRAGS_REFUSED = (
    _public("ufrag altered", check(_ALTERED), V.DROP_UFRAG_FORGED),
    _public("ufrag of no fleet", check(_NO_UFRAG_OF_OURS), V.DROP_UFRAG_FORGED),
    _public("ufrag of another fleet", check(_STRANGER), V.DROP_UFRAG_FORGED),
    _public("ufrag of another fleet on an assured flow", check(_STRANGER), V.DROP_UFRAG_FORGED, flow="assured"),
    _public("ufrag under an unknown key", check(_UNKNOWN), V.DROP_UFRAG_UNKNOWN_KEY),
    _public("ufrag expired", check(_EXPIRED), V.DROP_UFRAG_EXPIRED),
    _public("ufrag from the future", check(_FUTURE), V.DROP_UFRAG_EXPIRED),
    _public("ufrag of another cluster", check(_ELSEWHERE), V.DROP_UFRAG_CLUSTER),
    _public("ufrag out of network", check(_OUTSIDE), V.DROP_UFRAG_NETWORK),
    _public("ufrag out of network, IPv6", check(_OUTSIDE_V6), V.DROP_UFRAG_NETWORK, client=CLIENT_V6),
    _public("ufrag that names its client", check(_CLIENTS_OWN), V.DROP_UFRAG_NETWORK),
    _public("ufrag with port 0", check(_PORT_ZERO), V.DROP_UFRAG_NETWORK),
)  # fmt: skip

_DOWN, _DOWN_V6 = spp(CLIENT_V4, VIP_V4, SERVER_HELLO), spp(CLIENT_V6, VIP_V6, SERVER_HELLO)
_FOREIGN = Address.parse("203.0.113.12:3478")
TO_CLIENTS = (
    _fleet("no flow", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, vip_index=0),
    _fleet("provisional flow", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, vip_index=0, flow="provisional"),
    _fleet("assured flow", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, vip_index=0, flow="assured"),
    _fleet("IPv6", _DOWN_V6, V.FORWARD_CLIENT, CLIENT_V6, vip_index=1, flow="assured"),
    _fleet("IPv6 transceiver, IPv4 client", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, source=HOME_V6, vip_index=0),
    _fleet("second VIP", spp(CLIENT_V4, OTHER_VIP_V4, RTP), V.FORWARD_CLIENT, CLIENT_V4, vip_index=2),
    _fleet("STUN success", spp(CLIENT_V4, VIP_V4, answer(CALL)), V.FORWARD_CLIENT, CLIENT_V4, vip_index=0),
    _fleet("from another transceiver", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, source=AWAY, vip_index=0, flow="assured",
           in_kernel=False),
    _fleet("from another process of its transceiver", _DOWN, V.FORWARD_CLIENT, CLIENT_V4,
           source=Address(HOME.host, HOME.port + 1), vip_index=0, flow="assured", in_kernel=False),
    _fleet("from an IPv6 transceiver on the flow of an IPv4 one", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, source=HOME_V6,
           vip_index=0, flow="assured", in_kernel=False),
    _fleet("2048 bytes", spp(CLIENT_V4, VIP_V4, RTP.ljust(2048)), V.FORWARD_CLIENT, CLIENT_V4, vip_index=0),
    _fleet("one byte", spp(CLIENT_A, VIP_V4, b"\x80"), V.FORWARD_CLIENT, CLIENT_A, vip_index=0),
    *(_fleet(f"{name} on an assured flow", spp(CLIENT_V4, VIP_V4, payload), V.FORWARD_CLIENT, CLIENT_V4, vip_index=0,
             flow="assured")
      for name, payload in (
          ("RTP", RTP), ("DTLS alert", DTLS_ALERT), ("STUN success", answer(CALL)),
          ("STUN error", answer(CALL, BINDING_ERROR)), ("check", check(CALL)), ("one byte", b"\x80"), ("zero", b"\0"),
          ("what is no WebRTC", b"\x7f\0"), ("two bytes of ff", b"\xff\xff"))),
    _fleet("second VIP, assured", spp(CLIENT_V4, OTHER_VIP_V4, RTP), V.FORWARD_CLIENT, CLIENT_V4, vip_index=2,
           flow="assured"),
    _fleet("IPv6 all the way", _DOWN_V6, V.FORWARD_CLIENT, CLIENT_V6, source=HOME_V6, vip_index=1, flow="assured",
           call=CALL_V6),
    _fleet("IPv6 transceiver, IPv4 client, assured", _DOWN, V.FORWARD_CLIENT, CLIENT_V4, source=HOME_V6, vip_index=0,
           flow="assured", call=CALL_V6),
    *(_fleet(f"{size} bytes from {call.transceiver} to {client}", spp(client, vip, RTP.ljust(size, b".")),
             V.FORWARD_CLIENT, client, source=call.transceiver, vip_index=vip_index, flow="assured", call=call,
             in_kernel=size <= longest)
      for client, vip, vip_index, longest in ((CLIENT_V4, VIP_V4, 0, DOWN_V4), (CLIENT_V6, VIP_V6, 1, DOWN_V6))
      for call in (CALL, CALL_V6) for size in (longest - 1, longest, longest + 1, 1536, 1537)),
)  # fmt: skip

_V4_TO_V6_VIP, _V6_TO_V4_VIP = spp(CLIENT_V4, VIP_V6, RTP), spp(CLIENT_V6, VIP_V4, RTP)
_VIP_PORT_OFF = spp(CLIENT_V4, Address(VIP_V4.host, 3479), RTP)
FLEET_REFUSED = (
    _fleet("source out of network", _DOWN, V.DROP_SPP_SOURCE, source=Address.parse("10.2.0.1:5000")),
    _fleet("source out of network, IPv6", _DOWN_V6, V.DROP_SPP_SOURCE, source=Address.parse("[fd00:2::1]:5000")),
    _fleet("source is a client", _DOWN, V.DROP_SPP_SOURCE, source=CLIENT_V4, flow="assured", vip_index=0),
    _fleet("source is our fleet socket", _DOWN, V.DROP_SPP_SOURCE, source=FLEET_SOCKET_V4),
    _fleet("2087 bytes", spp(CLIENT_V4, VIP_V4, RTP.ljust(2049)), V.DROP_OVERSIZE),
    _fleet("nothing", b"", V.DROP_SPP_MALFORMED),
    _fleet("header cut short", _DOWN[:37], V.DROP_SPP_MALFORMED),
    _fleet("wrong magic", b"\x56\xed" + _DOWN[2:], V.DROP_SPP_MALFORMED),
    _fleet("no header at all", SERVER_HELLO.ljust(60), V.DROP_SPP_MALFORMED),
    _fleet("no payload", _DOWN[:38], V.DROP_SPP_MALFORMED),
    _fleet("no payload, IPv6", _DOWN_V6[:38], V.DROP_SPP_MALFORMED, source=HOME_V6),
    _fleet("no payload, source out of network", _DOWN[:38], V.DROP_SPP_SOURCE, source=Address.parse("10.2.0.1:5000")),
    _fleet("no payload, proxy is no VIP", spp(CLIENT_V4, _FOREIGN), V.DROP_SPP_PROXY),
    _fleet("no payload, client port 0", spp(Address(CLIENT_V4.host, 0), VIP_V4), V.DROP_SPP_CLIENT),
    *(_fleet(f"{name} on an assured flow", datagram, verdict, vip_index=0, flow="assured")
      for name, datagram, verdict in (
          ("wrong magic", b"\x56\xed" + _DOWN[2:], V.DROP_SPP_MALFORMED),
          ("wrong magic, first byte", b"\x57\xec" + _DOWN[2:], V.DROP_SPP_MALFORMED),
          ("header cut short", _DOWN[:37], V.DROP_SPP_MALFORMED),
          ("no payload", _DOWN[:38], V.DROP_SPP_MALFORMED),
          ("no VIP", spp(CLIENT_V4, _FOREIGN, RTP), V.DROP_SPP_PROXY),
          ("another port of the VIP", _VIP_PORT_OFF, V.DROP_SPP_PROXY),
          ("the listen address behind the NAT", spp(CLIENT_V4, LISTEN_V4, RTP), V.DROP_SPP_PROXY),
          ("a VIP of the other family", _V4_TO_V6_VIP, V.DROP_SPP_CLIENT))),
    _fleet("proxy is no VIP", spp(CLIENT_V4, _FOREIGN, RTP), V.DROP_SPP_PROXY),
    _fleet("proxy has another port", _VIP_PORT_OFF, V.DROP_SPP_PROXY),
    _fleet("proxy is the listen address behind the NAT", spp(CLIENT_V4, LISTEN_V4, RTP), V.DROP_SPP_PROXY),
    _fleet("client port 0", spp(Address(CLIENT_V4.host, 0), VIP_V4, RTP), V.DROP_SPP_CLIENT),
    _fleet("IPv4 client, IPv6 VIP", _V4_TO_V6_VIP, V.DROP_SPP_CLIENT),
    _fleet("IPv6 client, IPv4 VIP", _V6_TO_V4_VIP, V.DROP_SPP_CLIENT),
    _fleet("another service of our own host", spp(Address(VIP_V4.host, 53), VIP_V4, RTP), V.DROP_SPP_CLIENT),
    _fleet("another service of our fleet address", spp(Address(LISTEN_V4.host, 53), VIP_V4, RTP), V.DROP_SPP_CLIENT),
    *(_fleet(f"client is {name}", spp(client, VIP_V4 if client.family == 4 else VIP_V6, RTP), V.DROP_SPP_CLIENT)
      for name, client in _FORGED_SOURCES
      if client is not _MAPPED),  # an SPP header maps every IPv4 address: this is a client like any other
)  # fmt: skip

ROWS: tuple[PacketRow, ...] = (
    *CHECKS_FORWARDED,
    *OWN_CHECKS,
    *MEDIA_FORWARDED,
    *NOT_WEBRTC,
    *NO_PACKET,
    *MARTIANS,
    *STUN_REFUSED,
    *UFRAGS_REFUSED,
    *TO_CLIENTS,
    *FLEET_REFUSED,
)
