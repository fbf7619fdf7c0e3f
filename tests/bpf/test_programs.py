"""What a relay tells its programs."""

import ctypes
import struct
from dataclasses import replace
from ipaddress import ip_network

import pytest

from relay.core.policy import Vip
from relay.core.steering import maglev_table
from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import ABI_VERSION, SIDE_FLEET, SIDE_PUBLIC, STEERING_SIZE
from relay.dataplane.bpf.compiler import source_digest
from relay.dataplane.bpf.programs import RelayPrograms, listeners_of
from tests.bpf.frames import judge, udp_frame
from tests.bpf.loading import FLEET_SOCKETS, HASH_KEY, PATIENT
from tests.relay.network import CLIENT_V4, FLEET_SOCKET_V4, LISTEN_V4, RTP, VIP_V4, VIP_V6, spp
from wire.address import Address

pytestmark = pytest.mark.bpf

MOVED_LISTEN, MOVED_VIP = Address.parse("192.0.2.99:3478"), Address.parse("203.0.113.99:3478")
MOVED = replace(
    PATIENT,
    vips=(Vip(VIP_V6, VIP_V6), Vip(MOVED_LISTEN, MOVED_VIP)),
    transceiver_networks=(ip_network("10.7.0.0/16"), ip_network("fd00:1::/32")),
)


def from_fleet(transceiver: str, vip: Address) -> bytes:
    return udp_frame(Address.parse(transceiver), FLEET_SOCKET_V4, spp(CLIENT_V4, vip, RTP))


def test_groups_are_vips_in_order_and_then_fleet_sockets() -> None:
    assert listeners_of(MOVED, FLEET_SOCKETS) == {
        VIP_V6: (SIDE_PUBLIC, 0),
        MOVED_LISTEN: (SIDE_PUBLIC, 1),
        FLEET_SOCKETS[0]: (SIDE_FLEET, 2),
        FLEET_SOCKETS[1]: (SIDE_FLEET, 3),
    }


def test_what_is_configured_anew_takes_the_place_of_what_was(programs: RelayPrograms) -> None:
    frames = {
        "old listener": udp_frame(CLIENT_V4, LISTEN_V4, RTP),
        "new listener": udp_frame(CLIENT_V4, MOVED_LISTEN, RTP),
        "old VIP": from_fleet("10.7.0.1:5000", VIP_V4),
        "new VIP": from_fleet("10.7.0.1:5000", MOVED_VIP),
        "old network": from_fleet("10.1.0.1:5000", MOVED_VIP),
    }

    def verdicts() -> dict[str, Verdict | None]:
        return {name: judge(programs, frame) for name, frame in frames.items()}

    assert verdicts() == {
        "old listener": Verdict.HAND_UP,
        "new listener": None,
        "old VIP": Verdict.DROP_SPP_SOURCE,
        "new VIP": Verdict.DROP_SPP_SOURCE,
        "old network": Verdict.DROP_SPP_PROXY,
    }
    programs.configure(MOVED, FLEET_SOCKETS, HASH_KEY)
    assert programs.listeners() == listeners_of(MOVED, FLEET_SOCKETS)
    assert verdicts() == {
        "old listener": None,
        "new listener": Verdict.HAND_UP,
        "old VIP": Verdict.DROP_SPP_PROXY,
        "new VIP": Verdict.HAND_UP,
        "old network": Verdict.DROP_SPP_SOURCE,
    }


@pytest.mark.parametrize(
    ("bits", "ipv4_mask", "ipv6_mask"),
    [
        ((32, 64), "ff" * 16, "ff" * 8 + "00" * 8),
        ((24, 48), "ff" * 15 + "00", "ff" * 6 + "00" * 10),
        ((9, 61), "ff" * 13 + "80" + "00" * 2, "ff" * 7 + "f8" + "00" * 8),
        ((8, 128), "ff" * 13 + "00" * 3, "ff" * 16),
    ],
)
def test_masks_stand_as_addresses_do(
    programs: RelayPrograms, bits: tuple[int, int], ipv4_mask: str, ipv6_mask: str
) -> None:
    policy = replace(PATIENT, ipv4_source_bits=bits[0], ipv6_source_bits=bits[1])
    programs.configure(policy, FLEET_SOCKETS, HASH_KEY)
    settings = programs.settings()
    assert bytes(settings.ipv4_source_mask).hex() == ipv4_mask
    assert bytes(settings.ipv6_source_mask).hex() == ipv6_mask


@pytest.mark.parametrize(("listen", "is_loopback"), [("127.0.0.1:3478", True), ("192.0.2.1:3478", False)])
def test_settings_are_those_of_the_policy(programs: RelayPrograms, listen: str, is_loopback: bool) -> None:
    vip = Address.parse(listen)
    policy = replace(
        PATIENT, vips=(Vip(vip, vip),), unknown_per_s=11, unknown_burst=22, heartbeat_timeout_s=1.5
    )
    programs.configure(policy, FLEET_SOCKETS, (3, 2**64 - 1))
    settings = programs.settings()
    assert (settings.abi_version, settings.build) == (ABI_VERSION, source_digest())
    assert bool(settings.loopback_clients) is is_loopback
    assert tuple(settings.hash_key) == (3, 2**64 - 1)
    limits = settings.unknown_per_s, settings.unknown_burst, settings.heartbeat_timeout_ns
    assert limits == (11, 22, 1_500_000_000)


@pytest.mark.parametrize("slots", [[0], [3, 1], list(range(64))], ids=len)
def test_steering_is_the_table_of_these_slots(programs: RelayPrograms, slots: list[int]) -> None:
    programs.steer([7, 8])
    programs.steer(slots)
    table = [slot.value for _, slot in programs.maps["steering"].items()]
    assert table == list(maglev_table(slots, STEERING_SIZE))


def test_counts_are_those_of_all_cpus(programs: RelayPrograms) -> None:
    verdicts = programs.maps["verdicts"]
    cpus = list(verdicts.get(Verdict.HAND_UP) or ())
    assert cpus
    values = struct.pack(f"={len(cpus)}Q", *range(1, len(cpus) + 1))
    verdicts.put(Verdict.HAND_UP, (ctypes.c_uint64 * len(cpus)).from_buffer_copy(values))
    counts = programs.counts()
    assert counts == {
        verdict: sum(range(1, len(cpus) + 1)) if verdict is Verdict.HAND_UP else 0 for verdict in Verdict
    }
