"""aiortc's private names that the transceiver relies on: a release that changes them fails here."""

import ast
import inspect
import re
import textwrap
import tomllib
from importlib.metadata import version
from pathlib import Path

import aiortc
import aiortc.rtcpeerconnection
import aiortc.rtcrtpreceiver
import aiortc.rtcrtpsender
import aiortc.rtcrtptransceiver
import aiortc.rtp
import pytest
from aioice import Candidate, Connection
from aiortc import RTCCertificate, RTCConfiguration, RTCIceTransport, RTCPeerConnection, RTCSctpTransport
from aiortc.codecs.base import Decoder, Encoder
from aiortc.rtcdtlstransport import RTCDtlsTransport, RtpRouter, State
from aiortc.rtcicetransport import RTCIceGatherer
from aiortc.rtcrtpreceiver import RTCRtpReceiver, StreamStatistics
from aiortc.rtcrtpsender import RTCRtpSender

from tests.transceiver.checks import CREDENTIAL, VIP, VIP_V6, Clock
from tests.transceiver.standalone import Standalone, make_hub
from transceiver import peer
from transceiver.connection import MuxGatherer
from transceiver.dtls import MuxDtlsTransport
from transceiver.ice import IceLiteAgent
from transceiver.media import jitter_buffer
from transceiver.media.receiver import VoiceReceiver
from transceiver.media.sender import VoiceSender
from transceiver.media.track import VoiceTrack
from transceiver.peer import RelayedPeerConnection

_ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("package", ["aiortc", "aioice"])
def test_version_is_the_pinned_one(package: str) -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    [pinned] = [line for line in project["dependencies"] if re.match(rf"{package}\b", line)]
    assert pinned == f"{package}=={version(package)}"


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        (RTCPeerConnection, "_RTCPeerConnection__createDtlsTransport", ["self"]),
        (RTCPeerConnection, "_RTCPeerConnection__updateIceGatheringState", ["self"]),
        (RTCPeerConnection, "_RTCPeerConnection__updateIceConnectionState", ["self"]),
        (RTCPeerConnection, "_RTCPeerConnection__updateConnectionState", ["self"]),
        (
            RTCPeerConnection,
            "_RTCPeerConnection__createTransceiver",
            ["self", "direction", "kind", "sender_track"],
        ),
        (RTCDtlsTransport, "_handle_rtp_data", ["self", "data", "arrival_time_ms"]),
        (RTCDtlsTransport, "_handle_rtcp_data", ["self", "data"]),
        (RTCDtlsTransport, "_register_data_receiver", ["self", "receiver"]),
        (RTCDtlsTransport, "_unregister_data_receiver", ["self", "receiver"]),
        (RTCDtlsTransport, "_send_data", ["self", "data"]),
        (RTCDtlsTransport, "_recv_next", ["self"]),
        (RTCDtlsTransport, "_setup_srtp", ["self"]),
        (RTCDtlsTransport, "_get_stats", ["self"]),
        (RTCDtlsTransport, "_register_rtp_receiver", ["self", "receiver", "parameters"]),
        (RTCDtlsTransport, "_unregister_rtp_receiver", ["self", "receiver"]),
        (RTCDtlsTransport, "_register_rtp_sender", ["self", "sender", "parameters"]),
        (RTCDtlsTransport, "_unregister_rtp_sender", ["self", "sender"]),
        (RTCRtpReceiver, "_handle_disconnect", ["self"]),
        (RTCRtpReceiver, "_set_rtcp_ssrc", ["self", "ssrc"]),
        (Decoder, "decode", ["self", "encoded_frame"]),
        (Encoder, "encode", ["self", "frame", "force_keyframe"]),
        (RTCCertificate, "_create_ssl_context", ["self", "srtp_profiles"]),
        (RTCSctpTransport, "_handle_data", ["self", "data"]),
        (aiortc.rtp, "compute_audio_level_dbov", ["frame"]),
        (RtpRouter, "route_rtp", ["self", "packet"]),
        (RtpRouter, "route_rtcp", ["self", "packet"]),
    ],
)
def test_method_exists_with_its_parameters(owner: object, name: str, parameters: list[str]) -> None:
    assert list(inspect.signature(getattr(owner, name)).parameters) == parameters


async def test_attributes_exist_on_a_connection() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.addTransceiver("audio")
    attributes = vars(connection)
    assert [type(c) for c in attributes["_RTCPeerConnection__certificates"]] == [RTCCertificate]
    assert [type(t) for t in attributes["_RTCPeerConnection__iceTransports"]] == [RTCIceTransport]
    [dtls] = attributes["_RTCPeerConnection__dtlsTransports"]
    assert type(dtls) is RTCDtlsTransport
    assert dtls._data_receiver is None
    assert dtls._ssl is None
    assert dtls._state is State.NEW
    assert dtls._stats_id
    assert attributes["_RTCPeerConnection__cname"]
    assert dtls.encrypted is False
    [transceiver] = connection.getTransceivers()
    assert transceiver._bundled is False
    assert transceiver._codecs == []
    assert vars(transceiver)["_RTCRtpTransceiver__receiver"] is transceiver.receiver
    assert vars(transceiver)["_RTCRtpTransceiver__sender"] is transceiver.sender
    sender, receiver = vars(transceiver.sender), vars(transceiver.receiver)
    assert {"_ssrc", "_stream_id", "_enabled", "_track_id"} <= sender.keys()
    assert {"_track", "_enabled"} <= receiver.keys()
    connection.createDataChannel("events")
    assert connection.sctp is not None
    assert connection.sctp._advertised_rwnd > 0
    assert connection.sctp._bundled is False
    await connection.close()


def test_keys_of_srtp_are_where_they_are_taken_from() -> None:
    source = inspect.getsource(RTCDtlsTransport._setup_srtp)
    assert "self._rx_srtp = Session(rx_policy)" in source
    assert "self._tx_srtp = Session(tx_policy)" in source
    # The jitter buffer takes what is older for a new stream; and why no sequence number may be used twice.
    assert f"rx_policy.window_size = {jitter_buffer._MAX_LATE}" in source
    assert "tx_policy.allow_repeat_tx = True" in source
    assert "self._setup_srtp()" in inspect.getsource(RTCDtlsTransport.start)


async def test_our_receiver_and_sender_take_the_places_of_aiortcs() -> None:
    connection = RelayedPeerConnection(hub=make_hub())
    connection.addTransceiver("audio")
    connection.addTransceiver("video")
    voice, video = connection.getTransceivers()
    assert (type(voice.receiver), type(voice.sender)) == (VoiceReceiver, VoiceSender)
    assert (type(video.receiver), type(video.sender)) == (RTCRtpReceiver, RTCRtpSender)
    await connection.close()


async def test_our_receiver_and_sender_have_every_name_that_aiortc_uses() -> None:
    connection = RelayedPeerConnection(hub=make_hub())
    connection.addTransceiver("audio")
    [transceiver] = connection.getTransceivers()
    for mine, name in ((transceiver.receiver, "receiver"), (transceiver.sender, "sender")):
        used = _names_used(aiortc.rtcpeerconnection, f".{name}") | _names_used(
            aiortc.rtcrtptransceiver, f"__{name}"
        )
        assert {"setTransport", "stop", "_enabled"} <= used
        assert {other for other in used if not hasattr(mine, other)} == set()
    # What the base classes begin with tasks of their own is overridden, all of it.
    for ours, methods in (
        (VoiceReceiver, {"receive", "stop", "getStats", "getSynchronizationSources", "_handle_disconnect"}),
        (VoiceSender, {"send", "stop", "getStats", "replaceTrack"}),
    ):
        assert methods <= vars(ours).keys()
    await connection.close()


async def test_track_that_aiortc_makes_gives_its_name_to_ours() -> None:
    assert "transceiver.receiver._track = RemoteStreamTrack(" in inspect.getsource(aiortc.rtcpeerconnection)
    connection = RelayedPeerConnection(hub=make_hub())
    connection.addTransceiver("audio")
    [receiver] = connection.getReceivers()
    receiver._track = aiortc.rtcrtpreceiver.RemoteStreamTrack("audio", "its-id")
    assert (type(receiver.track), receiver.track.id) == (VoiceTrack, "its-id")
    assert receiver._track is receiver.track
    await connection.close()


async def test_attributes_exist_on_an_association() -> None:
    connection = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    connection.createDataChannel("events")
    sctp = connection.sctp
    assert sctp is not None
    assert sctp._last_received_tsn is None
    assert 0 <= sctp._local_tsn < 1 << 32
    assert (sctp._inbound_streams, sctp._data_channels) == ({}, {})
    assert sctp._get_inbound_stream(1).reassembly == []
    assert type(sctp.transport._rtp_router) is RtpRouter
    await connection.close()


def test_jitter_is_computed_from_what_the_bound_replaces() -> None:
    statistics = StreamStatistics(48_000)
    statistics._jitter_q4 = 1 << 40
    assert statistics.jitter == 0xFFFF_FFFF
    statistics._jitter_q4 = 99 << 4
    assert statistics.jitter == 99


async def test_every_transport_is_made_by_the_method_that_is_overridden() -> None:
    connection = RelayedPeerConnection(hub=make_hub())
    connection.createDataChannel("events")
    connection.addTransceiver("audio")
    connection.addTransceiver("video")
    transports = connection._RTCPeerConnection__dtlsTransports
    assert [type(transport) for transport in transports] == [MuxDtlsTransport]
    [ice] = connection._RTCPeerConnection__iceTransports
    assert type(ice.iceGatherer).__name__ == MuxGatherer.__name__
    await connection.close()


def _names_used(owner: object, prefix: str) -> set[str]:
    """Attributes that ``owner``'s source takes of anything called ``prefix``."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(owner)))  # type: ignore[arg-type]
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value).endswith(prefix)
    }


def test_stand_in_has_every_name_that_aiortc_uses_of_aioices_connection() -> None:
    used = _names_used(RTCIceTransport, "_connection") | _names_used(
        aiortc.rtcpeerconnection, "iceTransport._connection"
    )
    assert {"connect", "recv", "send", "close", "get_event", "ice_controlling"} <= used
    stand_in = Standalone().connection
    assert {name for name in used if not hasattr(stand_in, name)} == set()
    public = {name for name in used if name in vars(Connection)}
    for name in public:
        theirs, ours = inspect.isroutine(vars(Connection)[name]), inspect.isroutine(getattr(stand_in, name))
        assert theirs == ours, name


async def test_stand_in_has_every_name_that_aiortc_uses_of_its_gatherer() -> None:
    used = _names_used(RTCIceTransport, "iceGatherer") | _names_used(aiortc.rtcpeerconnection, "iceGatherer")
    used |= _names_used(RTCIceTransport, "__iceGatherer") | {"_connection"}
    assert {"gather", "getLocalCandidates", "getLocalParameters", "state"} <= used
    gatherer = MuxGatherer(Standalone().connection, (VIP,))
    assert {name for name in used if not hasattr(gatherer, name)} == set()
    assert {name for name in used if name.startswith("get")} <= set(dir(RTCIceGatherer))


def test_audio_level_is_looked_up_where_it_is_replaced() -> None:
    assert aiortc.rtp.compute_audio_level_dbov is peer._audio_level_dbov
    assert "rtp.compute_audio_level_dbov(" in inspect.getsource(aiortc.rtcrtpsender)


async def test_gatherer_shows_no_candidate_before_it_has_gathered() -> None:
    gatherer = MuxGatherer(Standalone().connection, (VIP, VIP_V6))
    changes: list[str] = []
    gatherer.on("statechange", lambda: changes.append(gatherer.state))
    assert gatherer.getLocalCandidates() == []
    await gatherer.gather()
    await gatherer.gather()
    assert [(c.ip, c.port, c.type) for c in gatherer.getLocalCandidates()] == [
        ("203.0.113.10", 3478, "host"),
        ("2001:db8::10", 3478, "host"),
    ]
    assert changes == ["completed"]


async def test_gatherer_shows_the_current_credentials() -> None:
    lone = Standalone()
    gatherer = MuxGatherer(lone.connection, (VIP,))
    parameters = gatherer.getLocalParameters()
    assert (parameters.usernameFragment, parameters.password) == CREDENTIAL[:2]
    assert parameters.iceLite is True
    new = CREDENTIAL._replace(server_ufrag="another")
    lone.agent.restart(new, lone.clock())
    assert gatherer.getLocalParameters().usernameFragment == "another"


async def test_candidates_of_the_client_are_taken_and_ignored() -> None:
    lone = Standalone()
    await lone.connection.add_remote_candidate(Candidate("1", 1, "udp", 1, "192.0.2.1", 9, "host"))
    await lone.connection.add_remote_candidate(None)
    assert lone.mux.sent == []
    assert IceLiteAgent(CREDENTIAL, Clock()()).paths == ()
