"""The kernel's data path from its load to its removal, on a host with two interfaces and a neighbour who sends."""

import time
from dataclasses import replace

import pytest

from relay.core.flow import Flow, FlowKey
from relay.core.steering import hash_address, maglev_table
from relay.dataplane.bpf import links
from relay.dataplane.bpf.abi import MAX_SLOTS, STEERING_SIZE
from relay.dataplane.bpf.pins import PinDir
from tests.bpf.loading import beat
from tests.bpf.relay_host import BOTH, POLICY, VIPS, Send, Start, assert_gone, ids_of, program_on, store_of
from tests.relay.network import CALL, RTP
from wire.address import Address

pytestmark = [pytest.mark.bpf, pytest.mark.netns]

NOT_WEBRTC = b"\xff" * 40


def test_packets_of_every_interface_meet_their_slot(start: Start, client: Send, pins: PinDir) -> None:
    relay = start()
    assert not relay.path.was_adopted
    # what an interface refuses is known at once, and until then no packet is judged
    program_on(BOTH)
    client(VIPS[0], RTP)
    relay.slot_met(0)
    assert not any(relay.path.counts().values())
    relay.begin()
    first, second = relay.path.programs.settings().hash_key
    assert first or second, "clients must not be able to aim at one worker"
    table = maglev_table(range(2), STEERING_SIZE)
    for group, vip in enumerate(VIPS):
        client(vip, NOT_WEBRTC)
        address = client(vip, RTP)
        assert relay.slot_met(group) == table[hash_address(address, (first, second)) % STEERING_SIZE]
    assert relay.counted("drop_not_webrtc", 2)
    counts = relay.path.counts()
    assert {label: count for label, count in counts.items() if count} == {"hand_up": 2, "drop_not_webrtc": 2}
    described = relay.path.describe()
    assert (described["pins"], described["adopted"]) == (str(pins.path), False)
    assert described["load_s"] > 0
    assert [(each["interface"], each["mode"], each["why"]) for each in described["interfaces"]] == [
        ("eth0", "native", ""),
        ("eth1", "native", ""),
    ]
    relay.close()


def test_xdp_drops_while_no_worker_lives(start: Start, client: Send) -> None:
    relay = start()
    relay.begin(is_alive=False)
    client(VIPS[0], RTP)
    assert relay.counted("drop_no_worker", 1)
    beat(relay.path.programs, 0, 1)
    client(VIPS[0], RTP)
    assert relay.slot_met(0) in (0, 1)
    relay.close()


def test_emptied_slot_s_clients_go_to_the_other(start: Start, client: Send) -> None:
    relay = start()
    relay.begin()
    client(VIPS[0], RTP)
    home = relay.slot_met(0)
    relay.path.empty(home, len(relay.sockets[home]))
    client(VIPS[0], RTP)
    assert relay.slot_met(0) == 1 - home
    relay.path.fill(home, relay.sockets[home])
    client(VIPS[0], RTP)
    assert relay.slot_met(0) == home
    relay.close()


def test_close_removes_everything(start: Start, pins: PinDir) -> None:
    relay = start()
    relay.begin()
    programs, maps = ids_of(relay)
    assert program_on(BOTH) <= programs
    relay.close()
    assert links.attachments() == []
    assert not pins.exists
    relay.close_sockets()
    assert_gone(programs, maps)


def test_close_without_begin_removes_what_was_loaded(start: Start, pins: PinDir) -> None:
    relay = start()
    programs, maps = ids_of(relay)
    assert pins.path.is_dir()
    relay.close()
    assert not pins.path.exists()
    assert_gone(programs, maps)


def test_close_without_begin_leaves_an_adopted_path_alone(start: Start, pins: PinDir, client: Send) -> None:
    dead = start()
    dead.begin()
    programs, maps = ids_of(dead)
    dead.die()
    relay = start()
    assert relay.path.was_adopted
    assert ids_of(relay) == (programs, maps)
    relay.close()
    assert pins.exists
    assert program_on(BOTH) <= programs
    successor = start()
    before = successor.path.counts()["drop_not_webrtc"]
    client(VIPS[0], NOT_WEBRTC)
    assert successor.counted("drop_not_webrtc", before + 1)
    successor.begin()
    successor.close()
    successor.close_sockets()
    relay.close_sockets()
    assert_gone(programs, maps)


@pytest.mark.parametrize("is_same_build", [True, False], ids=["same programs", "other programs"])
def test_adopted_path_goes_on_with_new_sockets(
    start: Start, pins: PinDir, client: Send, is_same_build: bool
) -> None:
    dead = start(slots=3)
    dead.begin()
    programs, maps = ids_of(dead)
    key = tuple(dead.path.programs.settings().hash_key)
    address = client(VIPS[0], RTP)
    flow = Flow(FlowKey(address, VIPS[0]), CALL.transceiver, CALL.tag, 1.0, 1.0, 1.0, assured=True)
    assert store_of(dead).write(flow)
    if not is_same_build:
        settings = dead.path.programs.settings()
        settings.build += 1
        dead.path.programs.maps["settings"].put(0, settings)
    fleet = dead.fleet
    dead.die(with_workers=False)

    relay = start(slots=2)
    assert relay.path.was_adopted
    assert relay.fleet == fleet, "transceivers answer to where the relay was"
    relay.path.check_listeners(POLICY, relay.fleet)
    assert program_on(BOTH) <= programs, "until it begins, all is as it was"
    relay.begin()
    new_programs, same_maps = ids_of(relay)
    assert same_maps == maps
    assert (new_programs == programs) is is_same_build
    assert program_on(BOTH) <= new_programs
    assert pins.program_ids() <= new_programs
    assert tuple(relay.path.programs.settings().hash_key) == key
    assert store_of(relay).read(flow.key) is not None
    # slot 2 is no more, although its worker still holds its sockets
    sockets = relay.path.programs.maps["sockets"]
    assert {divmod(place.value, MAX_SLOTS) for place, _ in sockets.items()} == {
        (group, slot) for group in range(3) for slot in range(2)
    }
    client(VIPS[0], RTP)
    assert relay.slot_met(0) in (0, 1)
    relay.close()
    relay.close_sockets()
    dead.close_sockets()
    assert_gone(programs | new_programs, maps)


def test_interface_that_is_named_no_more_is_left(start: Start) -> None:
    dead = start()
    dead.begin()
    dead.die()
    relay = start(interfaces=("eth1",))
    relay.begin()
    program_on(("eth1",))
    assert [each["interface"] for each in relay.path.describe()["interfaces"]] == ["eth1"]
    relay.close()


def test_sweep_removes_only_what_is_long_silent(start: Start) -> None:
    relay = start()
    store = store_of(relay)
    policy = replace(POLICY, assured_s=20.0, provisional_s=5.0)
    now = time.monotonic()
    # (assured, seconds of silence, whether it stays); the worker has ten seconds more to remove its own
    rows = [(True, 0, True), (True, 20, True), (True, 27, True), (True, 33, False), (True, 40, False)]
    rows += [(False, 0, True), (False, 12, True), (False, 18, False), (False, 40, False)]
    flows = []
    for number, (assured, silent_s, _) in enumerate(rows):
        key = FlowKey(Address.from_host("198.51.100.2", 1024 + number), VIPS[0])
        seen = now - silent_s
        flows.append(Flow(key, CALL.transceiver, CALL.tag, seen, seen, seen, assured=assured))
        assert store.write(flows[-1])
    sweep = relay.path.sweep(policy)
    assert len(list(sweep.steps())) >= 2
    assert (sweep.assured, sweep.provisional, sweep.expired) == (3, 2, 4)
    assert sweep.hosts == {CALL.transceiver.host}
    assert [store.read(flow.key) is not None for flow in flows] == [stays for _, _, stays in rows]
    again = relay.path.sweep(policy)
    assert len(list(again.steps())) >= 2
    assert (again.assured, again.provisional, again.expired) == (3, 2, 0)
    relay.close()
