"""What a network can deliver (hypothesis strategies), and what a parser says of it."""

from collections.abc import Callable
from typing import ParamSpec

from hypothesis import strategies as st

from wire.address import Address
from wire.errors import WireError, WireFault

P = ParamSpec("P")

_V4_MAPPED_PREFIX = bytes(10) + b"\xff\xff"

PORTS = st.integers(0, 0xFFFF)
IPV4 = st.builds(Address, st.binary(min_size=4, max_size=4), PORTS)
IPV6 = st.builds(
    Address,
    st.binary(min_size=16, max_size=16).filter(lambda host: not host.startswith(_V4_MAPPED_PREFIX)),
    PORTS,
)
ADDRESSES = IPV4 | IPV6


@st.composite
def one_byte_flipped(draw: st.DrawFn, datagram: bytes) -> bytes:
    """``datagram`` with one byte changed."""
    at = draw(st.integers(0, len(datagram) - 1))
    flip = draw(st.integers(1, 0xFF))
    return datagram[:at] + bytes((datagram[at] ^ flip,)) + datagram[at + 1 :]


def cut_short(datagram: bytes) -> st.SearchStrategy[bytes]:
    """``datagram`` with at least its last byte missing."""
    return st.integers(0, len(datagram) - 1).map(lambda length: datagram[:length])


@st.composite
def text_damaged(draw: st.DrawFn, text: str, alphabet: str) -> str:
    """``text`` with one character changed (to one of ``alphabet`` or any other), or cut short."""
    at = draw(st.integers(0, len(text) - 1))
    if draw(st.booleans()):
        return text[:at]
    other = draw((st.sampled_from(alphabet) | st.characters()).filter(lambda char: char != text[at]))
    return text[:at] + other + text[at + 1 :]


def fault_of(parse: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> WireFault | None:
    """The fault that a parser finds, None where it reads; any error but WireError is a defect and passes on."""
    try:
        parse(*args, **kwargs)
    except WireError as error:
        return error.fault
    return None
