"""What the generator sends: by Python's own account, by the wire formats, and by the program itself, byte for byte."""

import struct

import numpy as np
import pytest

from bench.frames import (
    CHANNEL,
    ETHERNET_BYTES,
    IP_SOURCE_AT,
    MAGIC,
    PAYLOAD_AT,
    UDP_BYTES,
    Framing,
    Leg,
    flow_client,
    make_template,
    transaction_id,
    udp_frame,
)
from bench.generator import Job, Program
from bench.live_frames import checksum
from bench.topology import RELAY_FLEET, TRANSCEIVER, TRANSCEIVERS, VIP
from relay.dataplane.bpf.syscall import test_run as run_once
from wire.address import Address
from wire.spp import decode_header_untrusted
from wire.stun import write_binding_request

TURNS = Leg(source=TRANSCEIVER, sources=4, destination=RELAY_FLEET, framing=Framing.SPP, vip=VIP)
TO_MAC, FROM_MAC = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")
PORTS = tuple(range(40_000, 41_000))
LEGS = [
    pytest.param(Leg(source=None, destination=VIP), id="client to VIP"),
    pytest.param(Leg(source=TRANSCEIVER, destination=None), id="transceiver to client"),
    pytest.param(
        Leg(source=TRANSCEIVER, destination=RELAY_FLEET, framing=Framing.SPP, vip=VIP), id="SPP to relay"
    ),
    pytest.param(TURNS, id="SPP to relay from four transceivers"),
    pytest.param(Leg(source=None, destination=TRANSCEIVER, destinations=4), id="client to four transceivers"),
    pytest.param(
        Leg(source=None, destination=VIP, framing=Framing.CHANNEL_DATA), id="ChannelData to TURN server"
    ),
    pytest.param(
        Leg(source=TRANSCEIVER, destination=RELAY_FLEET, ports=PORTS), id="transceiver to a port a flow"
    ),
]


def is_checksum_right(frame: bytes) -> bool:
    """Both checksums of a frame."""
    ip, udp = frame[ETHERNET_BYTES : PAYLOAD_AT - UDP_BYTES], frame[PAYLOAD_AT - UDP_BYTES :]
    pseudo = ip[12:20] + struct.pack("!HH", 17, len(udp))
    return checksum(ip) == 0 and checksum(pseudo + udp) == 0


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("flow", [0, 15, 16, 999])
@pytest.mark.parametrize("payload_bytes", [40, 101, 1200])
def test_frames_are_well_formed(leg: Leg, flow: int, payload_bytes: int) -> None:
    frame = make_template(leg, payload_bytes, TO_MAC, FROM_MAC).fill(flow, 123_456_789_012)
    assert is_checksum_right(frame)
    payload = frame[leg.framing.marker_at :]
    assert len(payload) == payload_bytes
    assert (payload[0], payload[8:12]) == (0x80, MAGIC)
    assert struct.unpack_from("!H", payload, 2) == (payload_bytes - 20,)
    assert struct.unpack_from("=IQ", payload, 12) == (flow, 123_456_789_012)


@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("payload_bytes", [40, 101])
def test_many_frames_are_made_as_one_is(leg: Leg, payload_bytes: int) -> None:
    template = make_template(leg, payload_bytes, TO_MAC, FROM_MAC)
    flows = np.array([0, 15, 16, 500, 999])
    made = template.fill_many(flows)
    assert [frame.tobytes() for frame in made] == [template.fill(flow, 0) for flow in flows.tolist()]


def test_each_flow_is_of_its_own_client() -> None:
    clients = {flow_client(flow) for flow in range(100_000)}
    assert len(clients) == 100_000
    assert str(flow_client(0)) == "198.18.1.0:20000"
    assert str(flow_client(17)) == "198.18.1.1:20001"


@pytest.mark.parametrize("flow", range(5))
def test_packets_come_from_the_flows_own_transceiver(flow: int) -> None:
    frame = make_template(TURNS, 100, TO_MAC, FROM_MAC).fill(flow, 0)
    assert frame[IP_SOURCE_AT : IP_SOURCE_AT + 4] == TRANSCEIVERS[flow % 4].host


def test_hosts_that_take_turns_are_of_one_network() -> None:
    leg = Leg(source=Address.parse("198.51.100.253:5000"), sources=4, destination=RELAY_FLEET)
    with pytest.raises(ValueError, match="/24"):
        make_template(leg, 100, TO_MAC, FROM_MAC)


def test_spp_names_the_flows_client_and_the_vip() -> None:
    leg = Leg(source=TRANSCEIVER, destination=RELAY_FLEET, framing=Framing.SPP, vip=VIP)
    frame = make_template(leg, 100, TO_MAC, FROM_MAC).fill(12_345, 0)
    header = decode_header_untrusted(frame[PAYLOAD_AT:])
    assert (header.client, header.proxy) == (flow_client(12_345), VIP)


def test_channel_data_has_channel_and_length() -> None:
    leg = Leg(source=None, destination=VIP, framing=Framing.CHANNEL_DATA)
    frame = make_template(leg, 100, TO_MAC, FROM_MAC).fill(0, 0)
    assert struct.unpack_from("!HH", frame, PAYLOAD_AT) == (CHANNEL, 100)


def test_stun_says_what_it_is_where_media_does() -> None:
    check = write_binding_request(transaction_id(77), "a:b", b"password")
    assert check[8:12] == MAGIC
    assert struct.unpack_from("=I", check, 12) == (77,)
    assert struct.unpack_from("!H", check, 2) == (len(check) - 20,)
    assert is_checksum_right(udp_frame(flow_client(77), VIP, check, TO_MAC, FROM_MAC))


@pytest.mark.parametrize("payload_bytes", [23, 1401])
def test_sizes_that_do_not_fit_are_refused(payload_bytes: int) -> None:
    with pytest.raises(ValueError, match="payload"):
        make_template(Leg(source=None, destination=VIP), payload_bytes, TO_MAC, FROM_MAC)


def job(leg: Leg, payloads: tuple[int, ...]) -> Job:
    return Job(
        namespace="none",
        interface=1,
        leg=leg,
        to_mac=TO_MAC.hex(":"),
        from_mac=FROM_MAC.hex(":"),
        payloads=payloads,
        flows=1000,
        seconds=60,
        in_random_order=False,
        is_stamped=True,
    )


@pytest.mark.parametrize("leg", LEGS)
def test_job_crosses_the_pipe(leg: Leg) -> None:
    sent = job(leg, (40, 80))
    assert Job.from_message(sent.to_message()) == sent


@pytest.mark.bpf
@pytest.mark.parametrize("leg", LEGS)
@pytest.mark.parametrize("payloads", [(100,), (40, 1200)])
def test_the_program_sends_what_python_computes(bcc: None, leg: Leg, payloads: tuple[int, ...]) -> None:
    sent = job(leg, payloads)
    templates = sent.templates()
    program = Program(leg, mixed=len(payloads) > 1)
    program.prepare(sent, templates)
    longest = max((template.frame for template in templates), key=len)
    for number in range(20):
        _, frame = run_once(program.fd, longest)
        marker_at = leg.framing.marker_at
        flow, sent_ns = struct.unpack_from("=IQ", frame, marker_at + 12)
        assert flow == number
        assert sent_ns > 0
        expected = templates[number % len(templates)].fill(flow, sent_ns)
        # what is cut off at the end stays in the buffer
        assert frame[: len(expected)] == expected
