"""What becomes of bytes on their way through a fuzzer (hypothesis strategies), and how many of them are tried.

``FUZZ_EXAMPLES=5000 pytest tests/fuzz`` tries more of each.
"""

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# No deadline, since a busy CI machine is not a slow transceiver.
fuzzed = settings(
    deadline=None,
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", "15")),
    suppress_health_check=[HealthCheck.too_slow],
)


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes], max_bytes: int = 1200) -> bytes:
    """A seed with some bytes changed, cut out, repeated or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        length = draw(st.integers(0, 8))
        change = draw(st.integers(0, 3))
        if change == 0:
            data[at : at + length] = draw(st.binary(min_size=length, max_size=length))
        elif change == 1:
            del data[at : at + length]
        elif change == 2:
            data[at:at] = data[at : at + length] * draw(st.integers(1, 8))
        else:
            data[at:at] = draw(
                st.sampled_from([b"\0", b"\xff", b"\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff"])
            )
    return bytes(data[:max_bytes])


def bursts(packets: st.SearchStrategy[bytes]) -> st.SearchStrategy[list[bytes]]:
    """Packets that come at once."""
    return st.lists(packets, min_size=1, max_size=8)
