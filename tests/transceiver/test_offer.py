"""Which offers are accepted, and what the others' authors are told."""

import time

import pytest
from aiortc.sdp import SessionDescription
from hypothesis import example, given
from hypothesis import strategies as st

from tests.transceiver.offers import (
    CHROMIUM,
    CHROMIUM_AUDIO,
    CHROMIUM_DATA,
    CHROMIUM_VIDEO,
    DATA_FIRST,
    FIREFOX,
    VIDEO_FIRST,
    VOICE,
    aiortc_offer,
    crlf,
    offer,
    without,
)
from transceiver.offer import (
    MAX_SDP_BYTES,
    Described,
    OfferError,
    check_offer_untrusted,
    with_rejected_completed,
)

_REJECTED = "m=video 0 UDP/TLS/RTP/SAVPF 0\nc=IN IP4 0.0.0.0\na=inactive\na=mid:1\n"


def refusal_of(sdp: str) -> tuple[int, str] | None:
    """(status, message), None where the offer is accepted; any error but OfferError is a defect and passes on."""
    try:
        check_offer_untrusted(sdp)
    except OfferError as error:
        return error.status, str(error)
    return None


@pytest.mark.parametrize(
    "sdp",
    [
        pytest.param(CHROMIUM, id="Chromium with video"),
        pytest.param(VOICE, id="Chromium without video"),
        pytest.param(VIDEO_FIRST, id="video first"),
        pytest.param(DATA_FIRST, id="data channel first"),
        pytest.param(FIREFOX, id="Firefox"),
        pytest.param(offer(CHROMIUM_AUDIO), id="audio alone"),
        pytest.param(VOICE.replace("\r\n", "\n"), id="bare line feeds"),
        pytest.param(without(VOICE, "a=rtpmap:111", "a=fmtp:111"), id="without Opus"),
        pytest.param(VOICE.replace("sha-256 ", "SHA-256 "), id="algorithm in capitals"),
        pytest.param(VOICE.replace("setup:actpass", "setup:passive"), id="passive"),
        pytest.param(offer(_REJECTED, CHROMIUM_AUDIO, bundle="0"), id="video rejected"),
        pytest.param(
            offer(CHROMIUM_AUDIO, CHROMIUM_VIDEO.replace("video 9", "video 0") + "a=bundle-only\n"),
            id="bundle-only",
        ),
    ],
)
def test_offer_of_a_real_client_is_accepted(sdp: str) -> None:
    assert refusal_of(sdp) is None


@pytest.mark.parametrize("kinds", [("audio",), ("audio", "video"), ("video", "audio")], ids="-".join)
async def test_offer_of_aiortc_is_accepted(kinds: tuple[str, ...]) -> None:
    assert refusal_of(await aiortc_offer(kinds)) is None


def _other_ice(section: str) -> str:
    return section.replace("ice-ufrag:EsAw", "ice-ufrag:Other")


@pytest.mark.parametrize(
    ("sdp", "status", "names"),
    [
        pytest.param(without(VOICE, "a=ice-ufrag"), 422, "a=ice-ufrag", id="no ICE ufrag"),
        pytest.param(without(VOICE, "a=ice-pwd"), 422, "a=ice-pwd", id="no ICE password"),
        pytest.param(
            offer(CHROMIUM_AUDIO, without(CHROMIUM_DATA, "a=ice")),
            422,
            "application",
            id="no ICE in one section",
        ),
        pytest.param(VOICE.replace("EsAw", ""), 422, "a=ice-ufrag", id="empty ICE ufrag"),
        pytest.param(without(VOICE, "a=fingerprint"), 422, "a=fingerprint", id="no fingerprint"),
        pytest.param(without(VOICE, "a=setup"), 422, "a=fingerprint", id="no setup"),
        pytest.param(
            without(VOICE, "a=fingerprint", "a=setup").replace("UDP/TLS/RTP/SAVPF", "RTP/AVP"),
            422,
            "plain RTP is refused",
            id="plain RTP",
        ),
        pytest.param(without(VOICE, "a=group"), 422, "a=group:BUNDLE", id="no BUNDLE"),
        pytest.param(
            offer(CHROMIUM_AUDIO, CHROMIUM_DATA, bundle="0"),
            422,
            "sections 2 are not",
            id="not all in BUNDLE",
        ),
        pytest.param(VOICE.replace("BUNDLE", "LS"), 422, "a=group:BUNDLE", id="group of another kind"),
        pytest.param(without(VOICE, "a=rtcp-mux"), 422, "rtcpMuxPolicy", id="no rtcp-mux"),
        pytest.param(
            offer(CHROMIUM_AUDIO, without(CHROMIUM_VIDEO, "a=rtcp-mux")),
            422,
            "video",
            id="no rtcp-mux in video",
        ),
        pytest.param(offer(CHROMIUM_VIDEO, CHROMIUM_DATA), 422, "m=audio", id="no audio"),
        pytest.param(offer(CHROMIUM_DATA), 422, "add an audio track", id="data channel alone"),
        pytest.param(offer(_REJECTED, bundle=""), 422, "m=audio", id="all rejected"),
        pytest.param(
            offer(_REJECTED.replace("video", "audio"), CHROMIUM_AUDIO, bundle="0"),
            422,
            "rejects its first audio",
            id="first audio rejected",
        ),
        pytest.param(
            offer(CHROMIUM_AUDIO, CHROMIUM_VIDEO + "a=bundle-only\n", bundle="0"),
            422,
            "not in a=group",
            id="bundle-only outside of BUNDLE",
        ),
        pytest.param(without(VOICE, "a=mid"), 422, "a=mid", id="no mid"),
        pytest.param(
            offer(CHROMIUM_AUDIO, without(CHROMIUM_DATA, "a=mid")), 422, "a=mid", id="no mid in one section"
        ),
        pytest.param(VOICE.replace("a=mid:2", "a=mid:0"), 422, "a=mid of its own", id="one mid twice"),
        pytest.param(
            offer(CHROMIUM_AUDIO, _other_ice(CHROMIUM_DATA)), 422, "different ICE", id="two ICE ufrags"
        ),
        pytest.param(
            without(
                VOICE, *(f"a={line}:{codec} " for line in ("rtpmap", "fmtp") for codec in (111, 9, 0, 8))
            ),
            422,
            "audio/opus",
            id="no common audio codec",
        ),
        pytest.param(without(VOICE, "a=rtpmap", "a=fmtp"), 422, "audio/opus", id="no codec at all"),
        pytest.param(
            VOICE + crlf(CHROMIUM_DATA.replace("m=application", "m=text").replace("a=mid:2", "a=mid:3")),
            422,
            "'text'",
            id="a section of another kind",
        ),
        pytest.param(VOICE + "a=x\r\n" * (1 << 18), 400, str(MAX_SDP_BYTES), id="1 MB"),
        pytest.param("x" * (MAX_SDP_BYTES + 1), 400, str(MAX_SDP_BYTES), id="one byte too long"),
        pytest.param(VOICE + "a=x\n" * 3000, 400, "lines", id="thousands of lines"),
        pytest.param(VOICE + "m=audio 9 RTP/AVP 0\r\n" * 17, 400, "media sections", id="many sections"),
        pytest.param(VOICE.replace(" 9 UDP/TLS", " nine UDP/TLS"), 400, "not SDP", id="port in words"),
        pytest.param(VOICE.replace("setup:actpass", "setup:whatever"), 400, "not SDP", id="setup of no kind"),
        pytest.param(VOICE.replace("opus/48000", "opus/fast"), 400, "not SDP", id="clock rate in words"),
        pytest.param(bytes(range(256)).decode("latin-1") * 20, 400, "not SDP", id="binary garbage"),
        pytest.param('{"sdp": "v=0", "type": "offer"}', 400, "not SDP", id="JSON"),
        pytest.param("", 400, "not SDP", id="empty"),
    ],
)
def test_offer_is_refused_and_its_author_told_what_to_change(sdp: str, status: int, names: str) -> None:
    refusal = refusal_of(sdp)
    assert refusal is not None
    assert names in refusal[1]
    assert refusal[0] == status


@pytest.mark.parametrize("line_end", ["\r", "\x0b", "\x0c", "\x1e", "\x85", "\u2028"], ids=ascii)
@pytest.mark.parametrize("line", ["m=audio 9 RTP/AVP 0", "a=x"])
def test_bounds_hold_for_every_line_end_that_the_parser_knows(line: str, line_end: str) -> None:
    refusal = refusal_of(VOICE + f"{line}{line_end}" * 3000)
    assert refusal is not None
    assert refusal[0] == 400
    assert "lines" in refusal[1]


def test_bytes_are_counted_not_characters() -> None:
    refusal = refusal_of(VOICE + "s=" + "\u20ac" * (MAX_SDP_BYTES // 2))
    assert refusal is not None
    assert "bytes" in refusal[1]


@pytest.mark.parametrize(
    "line",
    ["a=rtpmap:111 opus/48000/2\n", "a=rtcp-fb:* nack\n", "a=fmtp:126 x\n", "a=ssrc:1 cname:x\n"],
)
def test_longest_offer_is_checked_quickly(line: str) -> None:
    started = time.process_time()
    refusal_of(VOICE + line * 1900)
    assert time.process_time() - started < 2.0


@given(st.text(max_size=400) | st.text(max_size=400).map("v=0\r\n".__add__))
@example("v=0\nm=\x00")
@example("v=0\nm=audio 9 X 0\na=fmtp:1 x")
@example("v=0\nm=audio 9 X 0\na=fingerprint")
@example("v=0\na=group:BUNDLE\nm=audio 0 X 0\na=mid:0")
@example("v=0\n\ud800")
def test_any_text_raises_only_offer_errors(sdp: str) -> None:
    refusal = refusal_of(sdp)
    assert refusal is not None
    assert refusal[0] in (400, 422)


@st.composite
def _damaged(draw: st.DrawFn) -> str:
    """An offer with some lines gone, doubled, moved or with another value."""
    lines = draw(st.sampled_from([CHROMIUM, FIREFOX])).splitlines()
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(lines) - 1))
        match draw(st.integers(0, 3)):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(draw(st.integers(0, len(lines))), lines[at])
            case 2:
                head, colon, _ = lines[at].partition(":")
                lines[at] = head + colon + draw(st.text(max_size=30))
            case _:
                cut = draw(st.integers(0, len(lines[at])))
                lines[at] = lines[at][:cut]
    return "\r\n".join(lines)


@given(_damaged())
def test_damaged_offer_raises_only_offer_errors(sdp: str) -> None:
    refusal = refusal_of(sdp)
    assert refusal is None or (refusal[0] in (400, 422) and refusal[1])


def test_offer_with_very_many_ssrc_lines_is_refused_before_it_is_parsed() -> None:
    """aiortc's parser looks through all earlier ones at each."""
    with pytest.raises(OfferError, match="64 a=ssrc") as refusal:
        check_offer_untrusted(VOICE + "".join(f"a=ssrc:{n} cname:a\r\n" for n in range(65)))
    assert refusal.value.status == 400


def test_what_is_completed_for_aiortc_keeps_the_sections_that_are_used() -> None:
    """Also where hosts are names, and a=rtcp-mux has no a=rtcp before it."""
    plain = without(offer(CHROMIUM_AUDIO, _REJECTED, CHROMIUM_DATA, bundle="0 2"), "a=rtcp:")
    described = check_offer_untrusted(plain.replace("IN IP4 0.0.0.0", "IN IP4 client.example"))
    assert described == Described("0", "EsAw", frozenset("1"))
    completed = with_rejected_completed(
        plain.replace("IN IP4 0.0.0.0", "IN IP4 client.example"), described.rejected
    )
    audio, video, data = SessionDescription.parse(completed).media
    assert [media.port for media in (audio, video, data)] == [9, 0, 9]
    assert audio.rtp.codecs == SessionDescription.parse(plain).media[0].rtp.codecs
    assert audio.rtcp_mux
    assert video.rtcp_mux
    assert (video.ice, video.dtls, video.direction) == (audio.ice, audio.dtls, "inactive")
    assert data.sctp_port == 5000
