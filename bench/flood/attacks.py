"""What attackers send: payloads that are made beforehand and take turns, from sources that are drawn at random."""

import os
import time
from base64 import b64encode
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from wire.address import Address
from wire.keys import KeyRing
from wire.stun import write_binding_request
from wire.ufrag import RouteHint, derive_ice_pwd, seal_ufrag

# Shared address space (RFC 6598): no client of a measurement has one of these.
ATTACKERS = Address.parse("100.64.0.0:1024")
ATTACKER_NETWORK = "100.64.0.0/10"
PORTS = 60_000
_SEALED_BYTES = 35  # wire/ufrag.py, IPv4
_FORGED, _FRESH, _MEDIA = 16_384, 8_192, 256


@dataclass(frozen=True)
class Attack:
    """``sources``: addresses that it claims to come from. ``named_by``: counters that tell an operator of it.

    rate: packets/s, where it has one of its own.
    """

    name: str
    what: str
    sources: int
    make_payloads: Callable[[KeyRing, Address], list[bytes]]
    named_by: frozenset[str]
    rate: int | None = None


def _forged_requests(keys: KeyRing, transceiver: Address) -> list[bytes]:
    """With the key id of a real one, which everybody sees, and a FINGERPRINT that fits."""
    key_id = bytes((keys.sealing.key_id,))
    return [
        write_binding_request(
            os.urandom(12), f"{_text(key_id + os.urandom(_SEALED_BYTES - 1))}:abcd", b"no key"
        )
        for _ in range(_FORGED)
    ]


def _text(sealed: bytes) -> str:
    return b64encode(sealed).decode().rstrip("=")


def make_checks(keys: KeyRing, transceiver: Address, number: int) -> list[bytes]:
    """Different Binding requests of one new session, all of which a relay admits."""
    issued_at = int(time.clock_gettime(time.CLOCK_REALTIME))
    ufrag = seal_ufrag(keys, RouteHint(1, transceiver, issued_at, os.urandom(5)))
    ice_pwd = derive_ice_pwd(keys, ufrag).encode()
    return [write_binding_request(os.urandom(12), f"{ufrag}:abcd", ice_pwd) for _ in range(number)]


def _captured_request(keys: KeyRing, transceiver: Address) -> list[bytes]:
    return make_checks(keys, transceiver, 1)


def _fresh_requests(keys: KeyRing, transceiver: Address) -> list[bytes]:
    return make_checks(keys, transceiver, _FRESH)


def _media_of_nobody(keys: KeyRing, transceiver: Address) -> list[bytes]:
    return [b"\x80\x6f" + os.urandom(98) for _ in range(_MEDIA)]


def _nothing(keys: KeyRing, transceiver: Address) -> list[bytes]:
    return [b"\x7f" * 100]


_OVERLOAD = frozenset({"drop_overload", "drop_rate_limited"})
ATTACKS: Sequence[Attack] = (
    # What the measurement itself costs.
    Attack("none", "no flood", 1, _nothing, frozenset({"drop_not_webrtc"}), rate=1),
    Attack(
        "forged",
        "forged Binding requests, random ufrags and sources",
        2**22,
        _forged_requests,
        _OVERLOAD | {"drop_ufrag_forged"},
    ),
    Attack(
        "replayed",
        "one captured request, from 100,000 sources",
        100_000,
        _captured_request,
        _OVERLOAD | {"flow_evicted"},
    ),
    Attack(
        "one-user",
        "fresh, valid requests of one user, from 100,000 sources",
        100_000,
        _fresh_requests,
        _OVERLOAD | {"flow_evicted"},
    ),
    Attack(
        "media",
        "RTP of nobody, from random sources",
        2**22,
        _media_of_nobody,
        _OVERLOAD | {"drop_unknown_flow"},
    ),
)
