"""A small fleet and what its network carries, written byte by byte and not by the code under test.

One relay with three VIPs, two of them IPv4; transceivers of both families; keys of two generations.
"""

from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha1, sha256
from hmac import digest
from ipaddress import ip_network
from struct import pack
from zlib import crc32

from relay.core.policy import RelayPolicy, Vip
from wire.address import Address
from wire.keys import FleetKey, KeyRing
from wire.ufrag import RouteHint, seal_ufrag, ufrag_tag

UNIX_S = 1_800_000_000
CLUSTER_ID = 7

OLD_KEY, NEW_KEY = FleetKey(1, bytes(range(32))), FleetKey(2, bytes(range(32, 64)))
KEYS = KeyRing([OLD_KEY, NEW_KEY], sealing_key_id=2)

VIP_V4, VIP_V6, OTHER_VIP_V4 = (
    Address.parse(text) for text in ("203.0.113.10:3478", "[2001:db8:10::10]:3478", "203.0.113.11:443")
)
LISTEN_V4, OTHER_LISTEN_V4 = Address.parse("192.0.2.10:3478"), Address.parse("192.0.2.11:443")
FLEET_SOCKET_V4, FLEET_SOCKET_V6 = Address.parse("10.9.0.1:7000"), Address.parse("[fd00:9::1]:7000")

POLICY = RelayPolicy(
    cluster_id=CLUSTER_ID,
    # both IPv4 addresses are behind a 1:1 NAT
    vips=(Vip(LISTEN_V4, VIP_V4), Vip(VIP_V6, VIP_V6), Vip(OTHER_LISTEN_V4, OTHER_VIP_V4)),
    transceiver_networks=(ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")),
    own_sockets=frozenset(
        (VIP_V4, VIP_V6, OTHER_VIP_V4, LISTEN_V4, OTHER_LISTEN_V4, FLEET_SOCKET_V4, FLEET_SOCKET_V6)
    ),
)

CLIENT_V4, CLIENT_V6 = Address.parse("198.51.100.7:40000"), Address.parse("[2001:db8:c::7]:40000")
OTHER_CLIENT_V4 = Address.parse("198.51.100.8:40000")

USERNAME, MESSAGE_INTEGRITY, PRIORITY, USE_CANDIDATE = 0x0006, 0x0008, 0x0024, 0x0025
FINGERPRINT, SOFTWARE, META_DTLS_IN_STUN = 0x8028, 0x8022, 0xC070
BINDING_REQUEST, BINDING_INDICATION, BINDING_SUCCESS, BINDING_ERROR = 0x0001, 0x0011, 0x0101, 0x0111
TRANSACTION_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")

CLIENT_HELLO = bytes.fromhex("16fefd 0000000000000000 0004 01020304")
SERVER_HELLO = bytes.fromhex("16fefd 0000000000000000 0004 02020304")
DTLS_ALERT = bytes.fromhex("15fefd 0001000000000007 0004 01020304")
RTP = bytes.fromhex("806f0001 00000002 00000003") + b"opus"


@dataclass(frozen=True, slots=True)
class Call:
    """What signaling has told a client of its session."""

    transceiver: Address
    ufrag: str
    pwd: bytes

    @property
    def tag(self) -> str:
        """What a flow knows of the ufrag."""
        return ufrag_tag(self.ufrag)


def call_at(
    transceiver: str,
    *,
    session: bytes = b"call1",
    cluster_id: int = CLUSTER_ID,
    issued_at: int = UNIX_S - 60,
    key: FleetKey = NEW_KEY,
) -> Call:
    """A call that ``transceiver`` (ADDRESS:PORT) has answered; ``session`` is its nonce of 5 bytes."""
    address = Address.parse(transceiver)
    ufrag = seal_ufrag(KeyRing([key], key.key_id), RouteHint(cluster_id, address, issued_at, session))
    pwd = b64encode(digest(key.ice_pwd, ufrag.encode(), sha256)).decode()[:32]
    return Call(address, ufrag, pwd.encode())


CALL = call_at("10.1.2.3:5000")
CALL_V6 = call_at("[fd00:1::3]:5000")
OTHER_CALL = call_at("10.1.2.4:5000", session=b"call2")
RESTARTED_CALL = call_at("10.1.2.3:5000", session=b"call3")


def spp(client: Address, proxy: Address, payload: bytes = b"") -> bytes:
    """A fleet datagram as Cloudflare specifies it."""

    def mapped(host: bytes) -> bytes:
        return host if len(host) == 16 else bytes(10) + b"\xff\xff" + host

    hosts = mapped(client.host) + mapped(proxy.host)
    return b"\x56\xec" + hosts + pack("!HH", client.port, proxy.port) + payload


def attribute(kind: int, value: bytes) -> bytes:
    return pack("!HH", kind, len(value)) + value + bytes(-len(value) % 4)


def stun(*attributes: tuple[int, bytes], message_type: int = BINDING_REQUEST) -> bytes:
    """A STUN message of these attributes, unsigned."""
    body = b"".join(attribute(*each) for each in attributes)
    return pack("!HHI", message_type, len(body), 0x2112A442) + TRANSACTION_ID + body


def _lengthened(datagram: bytes, extra: int) -> bytes:
    return datagram[:2] + pack("!H", len(datagram) - 20 + extra) + datagram[4:]


def signed(datagram: bytes, pwd: bytes) -> bytes:
    """``datagram`` with MESSAGE-INTEGRITY at its end."""
    covered = _lengthened(datagram, 24)
    return covered + attribute(MESSAGE_INTEGRITY, digest(pwd, covered, sha1))


def fingerprinted(datagram: bytes) -> bytes:
    """``datagram`` with FINGERPRINT at its end."""
    covered = _lengthened(datagram, 8)
    return covered + attribute(FINGERPRINT, pack("!I", crc32(covered) ^ 0x5354554E))


def username(call: Call) -> tuple[int, bytes]:
    return USERNAME, f"{call.ufrag}:h6vY".encode()


def check(call: Call, *extra: tuple[int, bytes], pwd: bytes | None = None) -> bytes:
    """The Binding request of a browser; ``pwd`` other than the call's makes it a forgery."""
    message = stun(username(call), (PRIORITY, bytes.fromhex("7e0000ff")), (USE_CANDIDATE, b""), *extra)
    return fingerprinted(signed(message, call.pwd if pwd is None else pwd))


def check_of_size(call: Call, size: int) -> bytes:
    """A check that DTLS in an unknown attribute fills up to ``size`` bytes, a multiple of 4."""
    empty = len(check(call, (META_DTLS_IN_STUN, b"")))
    return check(call, (META_DTLS_IN_STUN, bytes(at * 7 % 256 for at in range(size - empty))))


def answer(call: Call, message_type: int = BINDING_SUCCESS) -> bytes:
    """What a transceiver answers to a check."""
    return fingerprinted(signed(stun((SOFTWARE, b"answer"), message_type=message_type), call.pwd))
