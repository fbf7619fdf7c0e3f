"""What is led to its worker's core: a packet whose bytes prove its checksum, and no other."""

import os
import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv6Network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from relay.core.steering import hash_address, maglev_table
from relay.core.verdict import Verdict
from relay.dataplane.bpf.abi import STEERING_SIZE, CoreChoice, WorkerC
from relay.dataplane.bpf.programs import RelayPrograms
from relay.dataplane.bpf.syscall import map_info
from tests.bpf.checksums import full_checksum, partial_checksum
from tests.bpf.frames import udp_frame
from tests.bpf.kernel_objects import eventually
from tests.bpf.loading import FLEET_SOCKETS, HASH_KEY, PATIENT, beat, load
from tests.relay.network import (
    CALL,
    CLIENT_V4,
    CLIENT_V6,
    FLEET_SOCKET_V4,
    FLEET_SOCKET_V6,
    LISTEN_V4,
    RTP,
    VIP_V4,
    VIP_V6,
    check,
    spp,
)
from wire.address import Address

pytestmark = pytest.mark.bpf

XDP_PASS, XDP_REDIRECT = 2, 4
REDIRECTED, LOCAL, UNKNOWN, TOO_LONG, INCOMPLETE = CoreChoice
# bpf/include/checksum.h
LONGEST_CHECKED = 1536 - 8
OPEN = replace(PATIENT, unknown_burst=1_000_000, unknown_per_s=1_000_000)
TRANSCEIVER_V4, TRANSCEIVER_V6 = Address.parse("10.1.2.3:5000"), Address.parse("[fd00:1::3]:5000")


@pytest.fixture(scope="module")
def cores() -> Iterator[tuple[int, int]]:
    """The core that this thread runs on, and another."""
    allowed = os.sched_getaffinity(0)
    if len(allowed) < 2:
        assert os.environ.get("REQUIRE_BPF") != "1", "cpumap is expected here, and needs two cores"
        pytest.skip("there is no other core to lead packets to")
    here, other = sorted(allowed)[:2]
    os.sched_setaffinity(0, {here})
    yield here, other
    os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def loaded() -> Iterator[RelayPrograms]:
    programs = load(OPEN)
    yield programs
    programs.close()


@pytest.fixture
def relay(loaded: RelayPrograms, cores: tuple[int, int]) -> RelayPrograms:
    """One worker, on the other core."""
    loaded.configure(OPEN, FLEET_SOCKETS, HASH_KEY, cpumap=True)
    loaded.steer([0])
    loaded.use_cores(cores)
    work_on(loaded, 0, cores[1])
    return loaded


def work_on(programs: RelayPrograms, slot: int, core: int) -> None:
    """The worker of a slot says that it lives, and where."""
    beat(programs, slot)
    worker = programs.maps["workers"].get(slot)
    assert worker is not None
    worker.core = core
    programs.maps["workers"].put(slot, worker)


def core_counts(programs: RelayPrograms) -> dict[CoreChoice, int]:
    """Packets that were handed up, by what cpumap made of them; all CPUs added up."""
    return {choice: sum(programs.maps["core_choices"].get(choice) or ()) for choice in CoreChoice}


def run(programs: RelayPrograms, frame: bytes) -> CoreChoice | None:
    """What becomes of a packet that is handed up; the action, the verdict and the frame must fit it."""
    before, verdicts = core_counts(programs), programs.counts()
    action, left = programs.run(frame)
    assert left == frame
    verdicts[Verdict.HAND_UP] += 1
    assert programs.counts() == verdicts, "handed up, and nothing else"
    counted = {choice: count - before[choice] for choice, count in core_counts(programs).items()}
    chosen = [choice for choice, count in counted.items() if count]
    assert [counted[choice] for choice in chosen] in ([], [1])
    assert action == (XDP_REDIRECT if chosen == [REDIRECTED] else XDP_PASS)
    return chosen[0] if chosen else None


def framed(
    source: Address,
    destination: Address,
    payload: bytes,
    checksum: int | None = None,
    vlans: tuple[int, ...] = (),
) -> bytes:
    """A frame with that checksum, or the right one."""
    if checksum is None:
        checksum = full_checksum(source, destination, payload)
    frame = udp_frame(source, destination, payload, vlans=vlans)
    at = len(frame) - len(payload) - 2
    return frame[:at] + struct.pack("!H", checksum) + frame[at + 2 :]


def with_sum_of_zero(source: Address, destination: Address) -> bytes:
    """A payload whose checksum is 0, and so sent as ffff."""
    payload = RTP + bytes(2)
    return RTP + struct.pack("!H", full_checksum(source, destination, payload))


V4, V6 = (CLIENT_V4, LISTEN_V4), (CLIENT_V6, VIP_V6)
FLEET_V4, FLEET_V6 = (TRANSCEIVER_V4, FLEET_SOCKET_V4), (TRANSCEIVER_V6, FLEET_SOCKET_V6)
DOWN_V4, DOWN_V6 = spp(CLIENT_V4, VIP_V4, RTP), spp(CLIENT_V6, VIP_V6, RTP)
LONGEST = RTP.ljust(LONGEST_CHECKED, b"\xa5")


@pytest.mark.parametrize(
    ("frame", "choice"),
    [
        pytest.param(framed(*V4, RTP), REDIRECTED, id="IPv4"),
        pytest.param(framed(*V6, RTP), REDIRECTED, id="IPv6"),
        pytest.param(framed(*V4, check(CALL)), REDIRECTED, id="STUN"),
        pytest.param(framed(*V4, RTP, vlans=(7,)), REDIRECTED, id="IPv4, VLAN"),
        pytest.param(framed(*V6, RTP, vlans=(7, 8)), REDIRECTED, id="IPv6, two VLANs"),
        pytest.param(framed(*V4, RTP, 0), REDIRECTED, id="IPv4 without a checksum"),
        pytest.param(framed(*V6, RTP, 0), INCOMPLETE, id="IPv6 without a checksum"),
        pytest.param(framed(*V4, with_sum_of_zero(*V4)), REDIRECTED, id="IPv4, sum of zero"),
        pytest.param(framed(*V6, with_sum_of_zero(*V6)), REDIRECTED, id="IPv6, sum of zero"),
        pytest.param(framed(*V6, with_sum_of_zero(*V6), 0), INCOMPLETE, id="IPv6, sum of zero sent as zero"),
        pytest.param(framed(*V4, RTP, partial_checksum(*V4, RTP)), INCOMPLETE, id="IPv4, left to the NIC"),
        pytest.param(framed(*V6, RTP, partial_checksum(*V6, RTP)), INCOMPLETE, id="IPv6, left to the NIC"),
        pytest.param(framed(*V4, RTP, 0x1234), INCOMPLETE, id="IPv4, wrong"),
        pytest.param(framed(*V4, RTP) + b"\xa5" * 30, REDIRECTED, id="padding behind the datagram"),
        pytest.param(framed(*V4, RTP)[:-1], INCOMPLETE, id="frame shorter than its datagram"),
        pytest.param(framed(*V4, LONGEST)[:60], INCOMPLETE, id="frame much shorter"),
        pytest.param(framed(*V4, LONGEST), REDIRECTED, id="longest that is checked"),
        pytest.param(framed(*V6, LONGEST, vlans=(7, 8)), REDIRECTED, id="longest, IPv6 and two VLANs"),
        pytest.param(framed(*V4, LONGEST + b"\0"), TOO_LONG, id="one byte longer"),
        pytest.param(framed(*V6, RTP.ljust(2048, b"\0")), TOO_LONG, id="longest of all"),
        pytest.param(framed(*FLEET_V4, DOWN_V4), REDIRECTED, id="fleet, IPv4"),
        pytest.param(framed(*FLEET_V6, DOWN_V6), REDIRECTED, id="fleet, IPv6"),
        pytest.param(framed(*FLEET_V4, DOWN_V4, 0), REDIRECTED, id="fleet, IPv4 without a checksum"),
        pytest.param(
            framed(*FLEET_V4, DOWN_V4, partial_checksum(*FLEET_V4, DOWN_V4)),
            INCOMPLETE,
            id="fleet, left to the NIC",
        ),
    ],
)
def test_checksum_decides(relay: RelayPrograms, frame: bytes, choice: CoreChoice) -> None:
    assert run(relay, frame) is choice


@pytest.mark.parametrize("ends", [V4, V6], ids=["IPv4", "IPv6"])
def test_every_length(relay: RelayPrograms, ends: tuple[Address, Address]) -> None:
    noise = b"\x80" + bytes(at * 37 % 256 for at in range(1, LONGEST_CHECKED))
    for length in range(1, LONGEST_CHECKED + 1):
        payload = noise[:length]
        assert run(relay, framed(*ends, payload)) is REDIRECTED, length
        wrong = payload[:-1] + bytes([payload[-1] ^ 1])
        frame = framed(*ends, wrong, full_checksum(*ends, payload))
        assert run(relay, frame) is INCOMPLETE, length


def test_checksum_over_less_than_the_ip_header_says(relay: RelayPrograms) -> None:
    frame = bytearray(framed(*V4, RTP))
    frame[16:18] = (int.from_bytes(frame[16:18], "big") + 20).to_bytes(2, "big")
    assert run(relay, bytes(frame) + b"\xa5" * 20) is REDIRECTED


# Neither martian, of the fleet, nor ours.
CLIENTS = st.one_of(
    st.builds(
        lambda first, rest: bytes([first]) + rest, st.integers(11, 126), st.binary(min_size=3, max_size=3)
    ),
    st.binary(min_size=10, max_size=10).map(
        lambda rest: IPv6Network("2001:db8:c::/48").network_address.packed[:6] + rest
    ),
)
PAYLOADS = st.binary(min_size=1, max_size=LONGEST_CHECKED - 1).map(lambda rest: b"\x80" + rest)


# No packet leaves anything behind that the next could see.
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(host=CLIENTS, port=st.integers(1, 65_535), payload=PAYLOADS, data=st.data())
def test_right_checksum_is_recognised_and_a_flipped_bit_never_passes(
    relay: RelayPrograms, host: bytes, port: int, payload: bytes, data: st.DataObject
) -> None:
    source = Address(host, port)
    destination = LISTEN_V4 if source.family == 4 else VIP_V6
    frame = framed(source, destination, payload)
    assert run(relay, frame) is REDIRECTED
    # Any bit but those of the first byte, which says what the packet is.
    flipped = bytearray(frame)
    checksum_at = len(frame) - len(payload) - 2
    at = data.draw(st.integers(checksum_at, len(frame) - 1).filter(lambda at: at != checksum_at + 2))
    flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    assume(any(flipped[checksum_at : checksum_at + 2]))
    assert run(relay, bytes(flipped)) is INCOMPLETE


def test_option_that_is_off_chooses_nothing(relay: RelayPrograms) -> None:
    relay.configure(OPEN, FLEET_SOCKETS, HASH_KEY)
    assert run(relay, framed(*V4, RTP)) is None


def test_packet_that_is_dropped_goes_nowhere(relay: RelayPrograms) -> None:
    before = core_counts(relay)
    action, _ = relay.run(framed(*V4, b"\x7f" + RTP))
    assert action == 1
    assert core_counts(relay) == before


def test_packet_at_its_core_stays(relay: RelayPrograms, cores: tuple[int, int]) -> None:
    work_on(relay, 0, cores[0])
    assert run(relay, framed(*V4, RTP)) is LOCAL
    assert run(relay, framed(*V4, RTP, 0x1234)) is LOCAL


@pytest.mark.parametrize("core", [2**31, 2**32 - 1, 4095])
def test_worker_may_claim_any_core(relay: RelayPrograms, core: int) -> None:
    work_on(relay, 0, core)
    assert run(relay, framed(*V4, RTP)) is UNKNOWN


def test_core_without_a_queue(relay: RelayPrograms, cores: tuple[int, int]) -> None:
    relay.use_cores(cores[:1])
    assert run(relay, framed(*V4, RTP)) is UNKNOWN
    relay.use_cores(cores)
    assert run(relay, framed(*V4, RTP)) is REDIRECTED


def test_worker_that_does_not_beat(relay: RelayPrograms) -> None:
    relay.configure(replace(OPEN, heartbeat_timeout_s=5.0), FLEET_SOCKETS, HASH_KEY, cpumap=True)
    beat(relay, 0, ago_s=6.0)
    beat(relay, 1)
    assert run(relay, framed(*V4, RTP)) is UNKNOWN


def test_core_is_that_of_the_slot_that_the_sockets_are_chosen_by(
    relay: RelayPrograms, cores: tuple[int, int]
) -> None:
    here, other = cores
    relay.steer(range(4))
    for slot in range(4):
        work_on(relay, slot, here if slot % 2 else other)
    table = maglev_table(range(4), STEERING_SIZE)
    seen = set()
    for number in range(200):
        client = Address.parse(f"198.51.100.7:{20_000 + number}")
        slot = table[hash_address(client, HASH_KEY) % STEERING_SIZE]
        expected = LOCAL if slot % 2 else REDIRECTED
        assert run(relay, framed(client, LISTEN_V4, RTP)) is expected
        assert run(relay, framed(*FLEET_V4, spp(client, VIP_V4, RTP))) is expected
        seen.add(slot)
    assert seen == {0, 1, 2, 3}


def queue_threads(programs: RelayPrograms) -> set[str]:
    """The kernel's thread of each queue."""
    map_id = map_info(programs.maps["cores"].fd).id
    found = set()
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            name = comm.read_text().strip()
        except OSError:
            continue  # it ended
        # Cut to 15 characters by some kernels.
        if re.fullmatch(rf"cpumap/\d+/map:{map_id}", name):
            found.add(name.split("/")[1])
    return found


def test_core_has_a_queue_as_long_as_it_is_used(relay: RelayPrograms, cores: tuple[int, int]) -> None:
    def used() -> dict[int, int]:
        return {key.value: value.value for key, value in relay.maps["cores"].items()}

    names = {str(core) for core in cores}
    assert used() == dict.fromkeys(cores, 2048)
    assert eventually(lambda: queue_threads(relay) == names)
    relay.use_cores(cores[1:])
    assert list(used()) == [cores[1]]
    assert eventually(lambda: queue_threads(relay) == {str(cores[1])})
    relay.use_cores([])
    assert used() == {}
    assert eventually(lambda: queue_threads(relay) == set())


def test_queue_of_a_core_that_stays_is_not_made_anew(
    relay: RelayPrograms, cores: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[int] = []
    monkeypatch.setattr(relay.maps["cores"], "put", lambda core, packets: put.append(core))
    relay.use_cores(cores)
    assert put == []


def test_choices_are_those_of_the_header() -> None:
    header = (Path(__file__).parents[2] / "bpf/include/abi.h").read_text()
    body = header.partition("enum core_choice {")[2].partition("};")[0]
    numbers = {name: int(number) for name, number in re.findall(r"(\w+) = (\d+),", body)}
    assert numbers == {choice.name: choice.value for choice in CoreChoice}
    assert WorkerC.core.size == 4
