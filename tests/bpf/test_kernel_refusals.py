"""What the kernel's data path refuses, and that it then leaves all as it was."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from host.errors import ConfigError, OperatorError
from relay.core.policy import Vip
from relay.dataplane.bpf import links
from relay.dataplane.bpf.errors import ForeignProgramError
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.bpf.programs import listeners_of
from tests.bpf.conftest import Network
from tests.bpf.kernel_objects import make_xdp_program
from tests.bpf.relay_host import AUTO, POLICY, VIPS, Start, ids_of, program_on
from wire.address import Address

pytestmark = [pytest.mark.bpf, pytest.mark.netns]

MOVED = replace(POLICY, vips=(POLICY.vips[0], Vip(Address.parse("203.0.113.1:4000"), VIPS[1])))


def test_other_listeners_than_those_left_behind_are_refused(start: Start, pins: PinDir) -> None:
    dead = start()
    dead.path.check_listeners(MOVED, dead.fleet)  # nothing is served yet
    dead.begin()
    dead.die()
    relay = start()
    relay.path.check_listeners(POLICY, relay.fleet)
    other_fleet = [Address.parse("198.51.100.1:9999")]
    for policy, fleet, named in (
        (MOVED, relay.fleet, "203.0.113.1:4000"),
        (POLICY, other_fleet, other_fleet[0]),
    ):
        with pytest.raises(OperatorError) as refusal:
            relay.path.check_listeners(policy, fleet)
        for words in (str(pins.path), *map(str, [*VIPS, *relay.fleet]), str(named), "`relayctl stop`"):
            assert words in str(refusal.value)
    assert relay.path.programs.listeners() == listeners_of(POLICY, relay.fleet)
    relay.close()


@pytest.mark.parametrize(
    ("base", "found"),
    [
        pytest.param("198.51.100.1:0", None, id="any port: that of before"),
        pytest.param("198.51.100.1:7000", "198.51.100.1:7000", id="a port that is named"),
        pytest.param("203.0.113.1:0", "203.0.113.1:0", id="another address"),
        pytest.param("[fd00::1]:0", "[fd00::1]:0", id="another family"),
    ],
)
def test_fleet_address_is_that_of_before_if_any_will_do(start: Start, base: str, found: str | None) -> None:
    relay = start()
    relay.begin()
    told = relay.path.fleet_address(Address.parse(base))
    assert told == (relay.fleet[0] if found is None else Address.parse(found))
    relay.close()


@pytest.fixture
def foreign(network: Network) -> Iterator[int]:
    """A program of somebody else."""
    fd = make_xdp_program("foreign")
    yield fd
    os.close(fd)


@pytest.mark.parametrize("interfaces", [("eth0", "eth1"), ("eth1", "eth0")], ids=["second", "first"])
def test_foreign_program_is_left_and_nothing_of_ours_stays(
    start: Start, pins: PinDir, foreign: int, interfaces: tuple[str, ...]
) -> None:
    links.attach("eth1", foreign, AUTO, set())
    with pytest.raises(ForeignProgramError, match="'foreign'"):
        start(interfaces=interfaces)
    assert not pins.exists
    program_on(("eth1",))


def test_interface_that_is_missing_leaves_nothing(start: Start, pins: PinDir) -> None:
    with pytest.raises(ConfigError, match="'eth9'"):
        start(interfaces=("eth0", "eth9"))
    assert not pins.exists
    assert links.attachments() == []


def test_foreign_program_beside_an_adopted_path_ends_nothing(
    start: Start, pins: PinDir, foreign: int
) -> None:
    dead = start(interfaces=("eth0",))
    dead.begin()
    programs, _ = ids_of(dead)
    dead.die()
    links.attach("eth1", foreign, AUTO, set())
    with pytest.raises(ForeignProgramError):
        start()
    assert pins.program_ids() <= programs
    assert {each.program_id for each in links.attachments() if each.interface == "eth0"} <= programs
    relay = start(interfaces=("eth0",))
    relay.begin()
    relay.close()
    program_on(("eth1",))


def test_take_over_that_fails_half_way_leaves_all_to_the_next(
    start: Start, pins: PinDir, foreign: int
) -> None:
    dead = start(interfaces=("eth0",))
    dead.begin()
    programs, _ = ids_of(dead)
    dead.die()
    relay = start()
    links.attach("eth1", foreign, AUTO, set())  # just after it was found free
    with pytest.raises(ForeignProgramError):
        relay.begin()
    relay.close()
    assert pins.program_ids() <= programs
    attached = {each.interface: each.program_id for each in links.attachments()}
    assert attached["eth0"] in programs
    heir = start(interfaces=("eth0",))
    heir.begin()
    heir.close()
    program_on(("eth1",))
