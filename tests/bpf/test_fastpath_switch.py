"""The fast path switched off and on, the MTU that it goes by, and whether anybody could take over."""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from relay.dataplane.bpf.abi import Heartbeat, Settings
from relay.dataplane.bpf.compiler import source_digest
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.assured import (
    CLIENT_LINK,
    HOP_LINK,
    OPEN,
    XDP_TX,
    Packet,
    Relay,
    fleet_socket,
    framed,
    listen_of,
    vip_of,
)
from tests.bpf.frames import judge
from tests.bpf.loading import FLEET_SOCKETS, HASH_KEY, PATIENT, beat
from tests.relay.network import CALL, CLIENT_V4, RTP, check
from wire.spp import encode_header

pytestmark = pytest.mark.bpf

Change = Callable[[], None]
PACKETS = {
    "media up": framed(CLIENT_LINK, Packet(CLIENT_V4, listen_of(0), RTP)),
    "check up": framed(CLIENT_LINK, Packet(CLIENT_V4, listen_of(0), check(CALL))),
    "media down": framed(
        HOP_LINK.back(),
        Packet(CALL.transceiver, fleet_socket(CALL.transceiver), encode_header(CLIENT_V4, vip_of(0)) + RTP),
    ),
}


def values(settings: Settings, *, but: tuple[str, ...] = ()) -> dict[str, Any]:
    """Every field, as it could be compared."""
    fields = {name for name, *_ in Settings._fields_} - set(but)
    return {
        name: bytes(value) if isinstance(value, ctypes.Structure | ctypes.Array) else value
        for name in sorted(fields)
        for value in [getattr(settings, name)]
    }


@pytest.mark.parametrize("frame", PACKETS.values(), ids=PACKETS)
def test_off_hands_up_what_on_forwards(assured: Relay, frame: bytes) -> None:
    assured.know_hop(CALL.transceiver)
    assured.know_flow(CLIENT_V4, client_link=CLIENT_LINK.back())
    for is_on in (True, False, True):
        assured.programs.set_fastpath(is_on)
        if is_on:
            assert assured.meets(frame).action == XDP_TX
        else:
            assured.hands_up(frame)


@pytest.mark.parametrize("cpumap", [False, True])
def test_switch_and_mtu_leave_all_else_as_it_is(programs: RelayPrograms, cpumap: bool) -> None:
    policy = replace(PATIENT, unknown_per_s=11, unknown_burst=22, ipv4_source_bits=24)
    programs.configure(policy, FLEET_SOCKETS, (2**64 - 1, 5), cpumap=cpumap)
    kept = values(programs.settings(), but=("fastpath", "mtu"))
    assert (kept["unknown_burst"], kept["cpumap"], kept["build"]) == (22, cpumap, source_digest())
    assert (programs.settings().fastpath, programs.settings().mtu) == (1, 0)
    steps: list[tuple[Change, tuple[int, int]]] = [
        (lambda: programs.set_mtu(1500), (1, 1500)),
        (lambda: programs.set_fastpath(False), (0, 1500)),
        (lambda: programs.set_mtu(1280), (0, 1280)),
        (lambda: programs.set_fastpath(True), (1, 1280)),
        (lambda: programs.set_mtu(0), (1, 0)),
        (lambda: programs.note_namespace(), (1, 0)),
    ]
    for change, expected in steps:
        change()
        settings = programs.settings()
        assert (settings.fastpath, settings.mtu) == expected
        assert values(settings, but=("fastpath", "mtu")) == kept


@pytest.mark.parametrize("fastpath", [True, False])
def test_first_time_it_is_as_configured(programs: RelayPrograms, fastpath: bool) -> None:
    programs.maps["settings"].put(0, Settings())
    programs.note_namespace()  # comes first, as the program is attached
    programs.configure(PATIENT, FLEET_SOCKETS, HASH_KEY, fastpath=fastpath)
    assert bool(programs.settings().fastpath) is fastpath


@pytest.mark.parametrize(
    ("was_on", "fastpath", "is_on"),
    [
        pytest.param(True, True, True, id="on stays on"),
        pytest.param(False, True, False, id="who switched it off wants it off"),
        pytest.param(True, False, False, id="the configuration has it off"),
        pytest.param(False, False, False, id="off stays off"),
    ],
)
def test_configured_again(programs: RelayPrograms, was_on: bool, fastpath: bool, is_on: bool) -> None:
    programs.set_fastpath(was_on)
    programs.set_mtu(1400)
    programs.configure(PATIENT, FLEET_SOCKETS, HASH_KEY, fastpath=fastpath)
    assert bool(programs.settings().fastpath) is is_on
    assert programs.settings().mtu == 1400, "links are followed, not configured"


def test_fleet_s_endpoints_are_those_of_its_sockets(programs: RelayPrograms) -> None:
    for sockets in (FLEET_SOCKETS, FLEET_SOCKETS[:1], FLEET_SOCKETS[1:]):
        programs.configure(PATIENT, sockets, HASH_KEY)
        settings = programs.settings()
        ports = {4: settings.fleet_ipv4.port, 6: settings.fleet_ipv6.port}
        assert ports == {4: 0, 6: 0} | {address.family: address.port for address in sockets}
        for address in sockets:
            endpoint = settings.fleet_ipv4 if address.family == 4 else settings.fleet_ipv6
            assert endpoint.address() == address


@pytest.mark.parametrize(
    ("ago_s", "is_alive"),
    [
        pytest.param(0.0, True, id="just now"),
        pytest.param(4.0, True, id="within its time"),
        pytest.param(6.0, False, id="too long ago"),
        pytest.param(-1.0, True, id="ahead, by another CPU's clock"),
    ],
)
def test_living_worker(programs: RelayPrograms, ago_s: float, is_alive: bool) -> None:
    programs.configure(replace(OPEN, heartbeat_timeout_s=5.0), FLEET_SOCKETS, HASH_KEY)
    beat(programs, 0, ago_s=ago_s)
    assert programs.has_living_worker() is is_alive


def test_heart_that_never_beat(programs: RelayPrograms) -> None:
    """However short the machine has been up: as XDP sees it."""
    century_s = 3.0e9
    programs.configure(replace(OPEN, heartbeat_timeout_s=century_s), FLEET_SOCKETS, HASH_KEY)
    programs.maps["heartbeat"].put(0, Heartbeat(0))
    verdict = judge(programs, PACKETS["media up"])
    assert verdict is not None
    assert verdict.label == "drop_no_worker"
    assert not programs.has_living_worker()
