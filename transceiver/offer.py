"""Checks an SDP offer before aiortc sees it: what a relayed session needs, and bounds on what is parsed."""

import re
from typing import NamedTuple

from aiortc.codecs import CODECS
from aiortc.rtcpeerconnection import DISCARD_HOST, DISCARD_PORT
from aiortc.sdp import MediaDescription, SessionDescription, grouplines

# Chromium's offer for one audio track and a data channel has about 6 KB; with video about 12 KB.
MAX_SDP_BYTES = 64 * 1024
_MAX_LINES = 1000
_MAX_MEDIA = 16
# aiortc looks through all earlier ones at each; Chromium writes four for audio, and twelve for simulcast video.
_MAX_SSRC_LINES = 64
_UFRAG, _PWD = re.compile(r"[A-Za-z0-9+/]{4,256}"), re.compile(r"[A-Za-z0-9+/]{22,256}")
_AUDIO_CODECS = {"audio/opus", "audio/g722", "audio/pcmu", "audio/pcma"}


class OfferError(ValueError):
    """An offer that cannot be answered; the message tells the client's developer what to change.

    ``status`` is the HTTP status: 400 for what is no SDP, 422 for SDP that lacks something.
    """

    def __init__(self, status: int, message: str) -> None:
        # It quotes the offer: a terminal that shows the answer must not obey what is in there.
        super().__init__(
            "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in message)
        )
        self.status = status


class Described(NamedTuple):
    """What a session needs of a good description: the first section's ``mid``, and the ICE ufrag of all sections.

    ``rejected``: the mids of sections that are not used (RFC 8829 section 5.2.2), which neither speaks of.
    """

    mid: str
    client_ufrag: str
    rejected: frozenset[str] = frozenset()


def check_offer_untrusted(sdp: str) -> Described:
    """As ``check_description_untrusted``, for a call: raise OfferError also if there is no audio in a codec that we have."""
    offer = _parse_untrusted(sdp)
    rejected = _rejected_untrusted(sdp, offer)
    audio = [media for media in offer.media if media.kind == "audio" and media not in rejected]
    if not audio:
        raise OfferError(422, "offer has no audio section (m=audio); add an audio track or transceiver")
    if next(media for media in offer.media if media.kind == "audio") in rejected:
        raise OfferError(422, "offer rejects its first audio section (port 0), which is the one that is used")
    if not any(codec.mimeType.lower() in _AUDIO_CODECS for codec in audio[0].rtp.codecs):
        raise OfferError(422, f"audio section offers none of {', '.join(sorted(_AUDIO_CODECS))}")
    return _check(offer, rejected)


def check_description_untrusted(sdp: str) -> Described:
    """Raise OfferError unless the description goes on one bundled, multiplexed, encrypted transport."""
    description = _parse_untrusted(sdp)
    return _check(description, _rejected_untrusted(sdp, description))


def with_rejected_completed(sdp: str, rejected: frozenset[str]) -> str:
    """A checked description whose ``rejected`` sections have what aiortc asks of each, and are inactive."""
    description = SessionDescription.parse(sdp)
    used = next(media for media in description.media if media.rtp.muxId not in rejected)
    description.host = None
    for media in description.media:
        media.host = None  # unused, and written only if it is an address
        if media.kind != "application":  # a=rtcp-mux is written only behind a=rtcp
            media.rtcp_mux, media.rtcp_port, media.rtcp_host = True, DISCARD_PORT, DISCARD_HOST
        if media.rtp.muxId in rejected:
            media.ice, media.dtls = used.ice, used.dtls
            media.direction, media.ssrc, media.ssrc_group = "inactive", [], []
            media.rtp.codecs = CODECS[media.kind]
            media.fmt = [codec.payloadType for codec in media.rtp.codecs]
    return str(description)


def with_rejected(sdp: str, rejected: frozenset[str]) -> str:
    """A description of ours, which aiortc made, that rejects these sections, too: port 0, and outside of BUNDLE."""
    if not rejected:
        return sdp
    description = SessionDescription.parse(sdp)
    for media in description.media:
        if media.rtp.muxId in rejected:
            media.port, media.direction, media.ice_candidates = 0, "inactive", []
            media.ice_candidates_complete = False
    for group in description.group:
        group.items = [mid for mid in group.items if mid not in rejected]
    return str(description)


def _rejected_untrusted(sdp: str, description: SessionDescription) -> list[MediaDescription]:
    """Audio and video with port 0, unless they say that it is for the sake of BUNDLE (RFC 9143 section 6)."""
    _, sections = grouplines(sdp)
    return [
        media
        for media, lines in zip(description.media, sections, strict=True)
        if media.port == 0 and media.kind in ("audio", "video") and "a=bundle-only" not in lines
    ]


def _parse_untrusted(sdp: str) -> SessionDescription:
    lines = sdp.splitlines()  # as the parser does, at more than \r\n
    media_count = sum(line.startswith("m=") for line in lines)
    if (
        len(sdp.encode(errors="replace")) > MAX_SDP_BYTES
        or len(lines) > _MAX_LINES
        or media_count > _MAX_MEDIA
    ):
        raise OfferError(
            400, f"offer exceeds {MAX_SDP_BYTES} bytes, {_MAX_LINES} lines or {_MAX_MEDIA} media sections"
        )
    if sum(line.startswith("a=ssrc:") for line in lines) > _MAX_SSRC_LINES:
        raise OfferError(400, f"offer has more than {_MAX_SSRC_LINES} a=ssrc lines")
    if not sdp.startswith("v=0"):
        raise OfferError(400, "body is not SDP: it does not begin with v=0 (RFC 8866 section 5.1)")
    if len(lines) < 2:
        raise OfferError(400, "body has no line breaks; with curl use --data-binary, as -d removes them")
    try:
        return SessionDescription.parse(sdp)
    except Exception as error:  # noqa: BLE001  # aiortc's parser raises whatever a bad line makes it trip over
        raise OfferError(400, f"body is not SDP ({type(error).__name__}: {error})") from None


def _check(offer: SessionDescription, rejected: list[MediaDescription]) -> Described:
    used = [media for media in offer.media if media not in rejected]
    if not used:
        raise OfferError(422, "description has no media section that is not rejected (port 0)")
    for media in used:
        if media.kind not in ("audio", "video", "application"):
            raise OfferError(422, f"media section {media.kind!r} is not supported")
        if media.ice is None or not media.ice.usernameFragment or not media.ice.password:
            raise OfferError(422, f"{media.kind} section has no ICE credentials (a=ice-ufrag, a=ice-pwd)")
        check_credentials(media.ice.usernameFragment, media.ice.password)
        if media.dtls is None or not media.dtls.fingerprints:
            raise OfferError(
                422, f"{media.kind} section has no DTLS certificate (a=fingerprint); plain RTP is refused"
            )
        if media.kind != "application" and not media.rtcp_mux:
            raise OfferError(422, f"{media.kind} section lacks a=rtcp-mux; set rtcpMuxPolicy to 'require'")
    _check_bundle(offer, used)
    ice = used[0].ice
    assert ice is not None  # checked above
    assert ice.usernameFragment is not None
    return Described(
        used[0].rtp.muxId, ice.usernameFragment, frozenset(media.rtp.muxId for media in rejected)
    )


def check_credentials(ufrag: str, pwd: str) -> None:
    """Raise OfferError unless both are of RFC 8839's form (section 5.4)."""
    if not _UFRAG.fullmatch(ufrag) or not _PWD.fullmatch(pwd):
        raise OfferError(
            422, "a=ice-ufrag needs 4 to 256 and a=ice-pwd 22 to 256 ice-chars (RFC 8839 section 5.4)"
        )


def parse_fragment_untrusted(fragment: str) -> tuple[str, str | None]:
    """(ice-ufrag, ice-pwd or None) of a trickle-ice-sdpfrag (RFC 8840 section 9). Raises OfferError (400)."""
    found: dict[str, str] = {}
    for line in fragment.splitlines():
        name, colon, value = line.partition(":")
        if colon and name in ("a=ice-ufrag", "a=ice-pwd"):
            found.setdefault(name, value.strip())
    if not found.get("a=ice-ufrag"):
        raise OfferError(400, "fragment has no a=ice-ufrag (RFC 8840 section 9)")
    return found["a=ice-ufrag"], found.get("a=ice-pwd")


def _check_bundle(offer: SessionDescription, used: list[MediaDescription]) -> None:
    mids = [media.rtp.muxId for media in offer.media]
    if not all(mids) or len(set(mids)) != len(mids):
        raise OfferError(422, "each media section needs a=mid of its own")
    bundled = {str(mid) for group in offer.group if group.semantic == "BUNDLE" for mid in group.items}
    if not bundled <= set(mids):
        raise OfferError(
            422, f"a=group:BUNDLE names {', '.join(sorted(bundled - set(mids)))}, which is no a=mid"
        )
    missing = [media.rtp.muxId for media in used if media.rtp.muxId not in bundled]
    if missing:
        raise OfferError(
            422,
            f"media sections {', '.join(missing)} are not in a=group:BUNDLE; set bundlePolicy to 'max-bundle'",
        )
    transports = {(media.ice.usernameFragment, media.ice.password) for media in used if media.ice}
    if len(transports) > 1:
        raise OfferError(422, "bundled media sections have different ICE credentials (RFC 9143 section 7.2)")
