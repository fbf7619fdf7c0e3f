"""SDP offers as clients write them, and ways to damage them."""

from collections.abc import Iterable

from aiortc import RTCConfiguration, RTCPeerConnection

_FINGERPRINT = "sha-256 " + ":".join(f"{byte:02X}" for byte in range(32))

_TRANSPORT = f"""\
a=ice-ufrag:EsAw
a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1
a=ice-options:trickle
a=fingerprint:{_FINGERPRINT}
a=setup:actpass
"""

CHROMIUM_AUDIO = f"""\
m=audio 9 UDP/TLS/RTP/SAVPF 111 63 9 0 8 13 110 126
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
{_TRANSPORT}a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:2 http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time
a=extmap:3 http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=msid:- 9d8a7c46-9f2e-4f6e-8d30-3b9a4a1f2b11
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:111 opus/48000/2
a=rtcp-fb:111 transport-cc
a=fmtp:111 minptime=10;useinbandfec=1
a=rtpmap:63 red/48000/2
a=fmtp:63 111/111
a=rtpmap:9 G722/8000
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:13 CN/8000
a=rtpmap:110 telephone-event/48000
a=rtpmap:126 telephone-event/8000
a=ssrc:2231627014 cname:4TOk42mSjMCkVIa6
a=ssrc:2231627014 msid:- 9d8a7c46-9f2e-4f6e-8d30-3b9a4a1f2b11
"""

CHROMIUM_VIDEO = f"""\
m=video 9 UDP/TLS/RTP/SAVPF 96 97 103 104 45 46
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
{_TRANSPORT}a=mid:1
a=extmap:14 urn:ietf:params:rtp-hdrext:toffset
a=extmap:13 urn:3gpp:video-orientation
a=extmap:4 urn:ietf:params:rtp-hdrext:sdes:mid
a=sendrecv
a=msid:- 2d5e4f3a-7a0c-4b8e-9d1b-8f0a1e5b7c22
a=rtcp-mux
a=rtcp-rsize
a=rtpmap:96 VP8/90000
a=rtcp-fb:96 goog-remb
a=rtcp-fb:96 transport-cc
a=rtcp-fb:96 ccm fir
a=rtcp-fb:96 nack
a=rtcp-fb:96 nack pli
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=rtpmap:103 H264/90000
a=rtcp-fb:103 nack pli
a=fmtp:103 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f
a=rtpmap:104 rtx/90000
a=fmtp:104 apt=103
a=rtpmap:45 AV1/90000
a=fmtp:45 level-idx=5;profile=0;tier=0
a=rtpmap:46 rtx/90000
a=fmtp:46 apt=45
a=ssrc-group:FID 1986127311 3406498523
a=ssrc:1986127311 cname:4TOk42mSjMCkVIa6
a=ssrc:3406498523 cname:4TOk42mSjMCkVIa6
"""

CHROMIUM_DATA = f"""\
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
{_TRANSPORT}a=mid:2
a=sctp-port:5000
a=max-message-size:262144
"""


def offer(*sections: str, bundle: str | None = None, session: str = "") -> str:
    """An offer of these media sections, bundled in their order unless ``bundle`` says otherwise."""
    mids = bundle if bundle is not None else " ".join(mid for section in sections for mid in mids_of(section))
    group = f"a=group:BUNDLE {mids}\n" if mids else ""
    head = f"v=0\no=- 3724394400 2 IN IP4 127.0.0.1\ns=-\nt=0 0\n{group}a=extmap-allow-mixed\na=msid-semantic: WMS\n"
    return crlf(head + session + "".join(sections))


def mids_of(section: str) -> list[str]:
    return [line[6:] for line in section.splitlines() if line.startswith("a=mid:")]


def crlf(text: str) -> str:
    return text.replace("\n", "\r\n")


def without(text: str, *starts: str) -> str:
    """``text`` without the lines that start so."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith(starts))


CHROMIUM = offer(CHROMIUM_AUDIO, CHROMIUM_VIDEO, CHROMIUM_DATA)
VOICE = offer(CHROMIUM_AUDIO, CHROMIUM_DATA)
VIDEO_FIRST = offer(CHROMIUM_VIDEO, CHROMIUM_AUDIO, CHROMIUM_DATA)
DATA_FIRST = offer(CHROMIUM_DATA, CHROMIUM_AUDIO)

# Firefox names DTLS, and its ICE options, once for the session, and offers no red.
FIREFOX = crlf(f"""\
v=0
o=mozilla...THIS_IS_SDPARTA-99.0 4294967295 0 IN IP4 0.0.0.0
s=-
t=0 0
a=fingerprint:{_FINGERPRINT}
a=group:BUNDLE 0 1
a=ice-options:trickle
a=msid-semantic:WMS *
m=audio 9 UDP/TLS/RTP/SAVPF 109 9 0 8 101
c=IN IP4 0.0.0.0
a=sendrecv
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=extmap:2/recvonly urn:ietf:params:rtp-hdrext:csrc-audio-level
a=extmap:3 urn:ietf:params:rtp-hdrext:sdes:mid
a=fmtp:109 maxplaybackrate=48000;stereo=1;useinbandfec=1
a=fmtp:101 0-15
a=ice-pwd:f2e1d0c9b8a7968574635241f0e1d2c3
a=ice-ufrag:3b4f5a6c
a=mid:0
a=msid:{{5a6d-track-stream}} {{5a6d-track}}
a=rtcp-mux
a=rtpmap:109 opus/48000/2
a=rtpmap:9 G722/8000/1
a=rtpmap:0 PCMU/8000
a=rtpmap:8 PCMA/8000
a=rtpmap:101 telephone-event/8000/1
a=setup:actpass
a=ssrc:3405692456 cname:{{b0b5c2ca-3c3e-4f87}}
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=sendrecv
a=ice-pwd:f2e1d0c9b8a7968574635241f0e1d2c3
a=ice-ufrag:3b4f5a6c
a=mid:1
a=setup:actpass
a=sctp-port:5000
a=max-message-size:1073741823
""")


async def aiortc_offer(kinds: Iterable[str] = ("audio",), *, data: bool = True) -> str:
    """The offer of a stock aiortc client, with its host candidates."""
    peer = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    try:
        for kind in kinds:
            peer.addTransceiver(kind)
        if data:
            peer.createDataChannel("events")
        await peer.setLocalDescription(await peer.createOffer())
        return str(peer.localDescription.sdp)
    finally:
        await peer.close()
