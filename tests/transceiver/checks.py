"""What a client, a relay and a replaying attacker send: addresses, STUN checks and SPP datagrams."""

from itertools import count

from transceiver.ice import Credential, Path
from wire.address import Address
from wire.stun import Attribute, StunMessage, parse_stun_untrusted, write_binding_request

VIP = Address.parse("203.0.113.10:3478")
VIP_V6 = Address.parse("[2001:db8::10]:3478")
RELAY = Address.parse("127.0.0.1:7000")
OTHER_RELAY = Address.parse("127.0.0.2:7000")
CREDENTIAL = Credential("serverUfrag", "passwordOf32CharactersOrSo", "clientUfrag")

_transaction_ids = count(1)


class Clock:
    """Monotonic seconds that stand still until a test moves them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def client(index: int) -> Path:
    """The path of one client address; index 0 to 65535."""
    return Path(Address(bytes((198, 51, 100, index & 0xFF)), 40_000 + (index >> 8)), VIP)


def write_check(
    credential: Credential = CREDENTIAL,
    *,
    use_candidate: bool = False,
    controlled: bool = False,
    username: str | None = None,
    password: str | None = None,
) -> bytes:
    """A Binding request with a transaction id that was never used before."""
    return write_binding_request(
        next(_transaction_ids).to_bytes(12, "big"),
        username if username is not None else f"{credential.server_ufrag}:{credential.client_ufrag}",
        (password if password is not None else credential.ice_pwd).encode(),
        use_candidate=use_candidate,
        controlled_tie_breaker=7 if controlled else None,
        controlling_tie_breaker=None if controlled else 7,
    )


def mapped_address(answer: bytes) -> Address:
    """XOR-MAPPED-ADDRESS of a success answer (RFC 8489 section 14.2)."""
    message = parse_stun_untrusted(answer)
    value = message.attributes[Attribute.XOR_MAPPED_ADDRESS]
    pad = answer[4:20]
    host = bytes(a ^ b for a, b in zip(value[4:], pad, strict=False))
    return Address(host, int.from_bytes(value[2:4], "big") ^ 0x2112)


def error_code(message: StunMessage) -> int:
    """The code of an error answer (RFC 8489 section 14.8)."""
    value = message.attributes[Attribute.ERROR_CODE]
    return value[2] * 100 + value[3]
