"""Malformed offers: 201 or a clear 4xx, no session is left by a refused one, and running calls go on."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.corpus import corpus
from tests.fuzz.live import Live, Media
from tests.fuzz.mutations import fuzzed
from tests.transceiver.offers import CHROMIUM, DATA_FIRST, FIREFOX, VIDEO_FIRST, VOICE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.parametrize("live", [pytest.param(Media.PASSTHROUGH, id="")], indirect=True, scope="module"),
]

OFFERS = [CHROMIUM, VOICE, VIDEO_FIRST, DATA_FIRST, FIREFOX]
LINES = sorted({line for offer in OFFERS for line in offer.splitlines()})


def require_answer(live: Live, offer: bytes) -> int:
    """Post an offer; its status."""

    async def post() -> tuple[int, str]:
        response = await live.process.public.post(
            "/whip", data=offer, headers={"Content-Type": "application/sdp"}
        )
        text = await response.text()
        if response.status == 201:
            assert (await live.process.public.delete(response.headers["Location"])).status == 200
        return response.status, text

    status, text = live.run(post())
    assert status == 201 or (400 <= status < 500 and re.search("[a-z]{3}", text)), (status, text)
    assert not any(unicodedata.category(char) == "Cc" for char in text.strip()) or status == 201
    assert len(live.process.sessions) == 2
    return status


@pytest.mark.parametrize("offer", corpus("sdp"))
def test_offer_of_the_corpus(live: Live, offer: bytes) -> None:
    require_answer(live, offer)
    live.require_calls_go_on()


@st.composite
def offers(draw: st.DrawFn) -> str:
    """A browser's offer with lines dropped, doubled, moved in from another, or changed inside."""
    lines = draw(st.sampled_from(OFFERS)).splitlines()
    for _ in range(draw(st.integers(0, 5))):
        at = draw(st.integers(0, len(lines) - 1))
        change = draw(st.integers(0, 5))
        if change == 0 and len(lines) > 1:
            del lines[at]
        elif change == 1:
            lines.insert(at, lines[at])
        elif change == 2:
            lines.insert(at, draw(st.sampled_from(LINES)))
        elif change == 3:
            name, separator, _ = lines[at].partition(draw(st.sampled_from([":", "=", " ", "/"])))
            lines[at] = name + separator + draw(st.text(max_size=12))
        elif change == 4:
            number = draw(
                st.sampled_from(["-1", "0", "255", "65536", "4294967296", "9" * 30, "1e9", "x", ""])
            )
            lines[at] = re.sub(r"\d+", number, lines[at], count=1)
        else:
            words = lines[at].split(" ")
            lines[at] = " ".join(draw(st.permutations(words)) if draw(st.booleans()) else words[:-1])
    return draw(st.sampled_from(["\r\n", "\n", "\r"])).join(lines) + "\r\n"


@fuzzed
@given(st.lists(offers(), min_size=1, max_size=6))
def test_any_offer(live: Live, texts: list[str]) -> None:
    for text in texts:
        require_answer(live, text.encode(errors="surrogatepass"))
    live.require_calls_go_on()


@fuzzed
@given(st.binary(max_size=300) | st.binary(max_size=300).map(b"v=0\r\n".__add__))
def test_any_body(live: Live, body: bytes) -> None:
    require_answer(live, body)
    live.require_calls_go_on()
