"""The payload types of an offer of ours: a number keeps its meaning within a session (RFC 3264 section 8.3.2)."""

from collections.abc import Iterable
from copy import deepcopy

from aiortc.codecs import is_rtx
from aiortc.rtcpeerconnection import is_codec_compatible
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import DYNAMIC_PAYLOAD_TYPES

Codecs = list[RTCRtpCodecParameters]


def keep_payload_types(wanted: Codecs, negotiated: Codecs, taken: set[int], offered: set[int]) -> Codecs:
    """Copies of ``wanted``, first what was ``negotiated``, as it was.

    What is new gets another number if its own is ``taken`` by what was negotiated, none that is ``offered`` elsewhere.
    """
    kept: Codecs = []
    added: Codecs = []
    numbers: dict[object, int | None] = {}  # of what RTX is for
    for codec in wanted:
        apt = codec.parameters.get("apt")
        if is_rtx(codec):
            same = [c for c in negotiated if is_rtx(c) and c.parameters.get("apt") == numbers.get(apt)]
        else:
            same = [c for c in negotiated if not is_rtx(c) and is_codec_compatible(c, codec)]
        if same:
            ours = deepcopy(same[0])
            kept.append(ours)
        else:
            ours = deepcopy(codec)
            if ours.payloadType in taken:
                ours.payloadType = _unused(taken | offered | numbers_of(added))
            if is_rtx(ours):
                ours.parameters = {**ours.parameters, "apt": numbers.get(apt)}
            added.append(ours)
        numbers[codec.payloadType] = ours.payloadType
    return kept + added


def numbers_of(codecs: Iterable[RTCRtpCodecParameters]) -> set[int]:
    """Their payload types."""
    return {codec.payloadType for codec in codecs if codec.payloadType is not None}


def _unused(taken: set[int]) -> int:
    return next(number for number in reversed(DYNAMIC_PAYLOAD_TYPES) if number not in taken)
