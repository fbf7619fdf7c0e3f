"""Which data path is taken where another was left behind: none may go on dropping what it should hand up."""

import contextlib
import logging
import os
from dataclasses import replace
from ipaddress import ip_network

import pytest

from host.errors import OperatorError
from relay.config import DataPlane, RelayConfig, XdpChoice
from relay.core.policy import Vip
from relay.dataplane.bpf import links
from relay.dataplane.bpf import pins as pins_module
from relay.dataplane.bpf.errors import BpfUnavailableError, ForeignProgramError
from relay.dataplane.bpf.links import XdpMode
from relay.dataplane.bpf.pins import PinDir
from relay.dataplane.choice import check_take_over, choose_data_path, xdp_modes
from tests.bpf.kernel_objects import make_xdp_program
from tests.bpf.relay_host import BOTH, VIPS, Relay, Start, program_on
from wire.address import Address

pytestmark = [pytest.mark.bpf, pytest.mark.netns]

XDP = RelayConfig(
    vips=(),
    fleet_listen=(Address.parse("198.51.100.1:0"),),
    workers=2,
    transceiver_networks=(ip_network("10.1.0.0/16"),),
    max_session_s=60,
    max_assured_flows=64,
    max_provisional_flows=64,
    dataplane=DataPlane.AUTO,
    interfaces=BOTH,
    xdp_mode=XdpChoice.AUTO,
    unknown_per_s=200,
    unknown_burst=400,
    ipv4_source_bits=32,
    ipv6_source_bits=64,
)
USERSPACE = replace(XDP, dataplane=DataPlane.USERSPACE)
NO_INTERFACE = replace(XDP, interfaces=())
ON_USERSPACE = pytest.mark.parametrize(
    "config", [USERSPACE, NO_INTERFACE], ids=["as configured", "no interface"]
)


@pytest.mark.parametrize("dataplane", [DataPlane.AUTO, DataPlane.XDP])
@pytest.mark.usefixtures("network")
def test_xdp_is_taken_where_an_interface_is_named(pins: PinDir, dataplane: DataPlane) -> None:
    kernel, reason = choose_data_path(replace(XDP, dataplane=dataplane), pins, is_served=False)
    assert kernel is not None
    try:
        assert reason == (
            "as configured" if dataplane is DataPlane.XDP else "this machine can, and eth0, eth1 is named"
        )
        sizes = {name: kernel.programs.maps[name].max_entries for name in ("flows", "provisional")}
        assert sizes["flows"] == 64
    finally:
        kernel.close()


@ON_USERSPACE
@pytest.mark.usefixtures("network")
def test_userspace_makes_no_pins(pins: PinDir, config: RelayConfig) -> None:
    assert choose_data_path(config, pins, is_served=False)[0] is None
    assert not pins.exists


@ON_USERSPACE
def test_path_that_nobody_serves_gives_way(
    start: Start, pins: PinDir, config: RelayConfig, caplog: pytest.LogCaptureFixture
) -> None:
    dead = start()
    dead.begin()
    dead.die()
    program_on(BOTH)
    with caplog.at_level(logging.WARNING):
        assert choose_data_path(config, pins, is_served=False)[0] is None
    assert not pins.path.exists()
    assert links.attachments() == []
    for words in (str(pins.path), *BOTH):
        assert words in caplog.text


@ON_USERSPACE
def test_path_that_is_served_is_not_ours_to_remove(start: Start, pins: PinDir, config: RelayConfig) -> None:
    dead = start()
    dead.begin()
    dead.die()
    with pytest.raises(OperatorError) as refusal:
        choose_data_path(config, pins, is_served=True)
    for words in (str(pins.path), "--interface", "`relayctl stop`"):
        assert words in str(refusal.value)
    assert pins.exists
    program_on(BOTH)


def refuse(*arguments: object, **options: object) -> None:
    raise BpfUnavailableError("this kernel refuses the BPF programs")


@pytest.mark.usefixtures("network")
def test_machine_that_cannot_goes_on_in_userspace_unless_xdp_is_demanded(
    pins: PinDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pins_module, "load_and_pin", refuse)
    kernel, reason = choose_data_path(XDP, pins, is_served=False)
    assert (kernel, reason) == (None, "this kernel refuses the BPF programs")
    assert not pins.exists
    with pytest.raises(BpfUnavailableError):
        choose_data_path(replace(XDP, dataplane=DataPlane.XDP), pins, is_served=False)


def test_foreign_program_is_no_reason_for_userspace(start: Start, pins: PinDir) -> None:
    """Its owner should say what becomes of it."""
    other = start(interfaces=("eth1",))
    other.begin()
    mine = PinDir(pins.path / "another-state-directory")
    with pytest.raises(ForeignProgramError):
        choose_data_path(XDP, mine, is_served=False)
    assert not mine.exists
    program_on(("eth1",))
    other.close()


@pytest.mark.parametrize(
    ("choice", "modes"),
    [
        (XdpChoice.AUTO, (XdpMode.NATIVE, XdpMode.GENERIC)),
        (XdpChoice.NATIVE, (XdpMode.NATIVE,)),
        (XdpChoice.GENERIC, (XdpMode.GENERIC,)),
    ],
)
def test_modes_are_tried_in_order(choice: XdpChoice, modes: tuple[XdpMode, ...]) -> None:
    assert xdp_modes(replace(XDP, xdp_mode=choice)) == modes


# what `relayctl upgrade` asks first

SERVED = replace(XDP, vips=tuple(Vip(vip, vip) for vip in VIPS))


def foreign_program_on_eth1(relay: Relay) -> None:
    links.detach(program_on(BOTH))
    fd = make_xdp_program("foreign")
    links.attach("eth1", fd, (XdpMode.NATIVE,), set())
    os.close(fd)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        pytest.param(SERVED, None, id="same addresses and interfaces"),
        pytest.param(replace(SERVED, interfaces=("eth0",)), None, id="fewer interfaces"),
        pytest.param(
            replace(SERVED, dataplane=DataPlane.USERSPACE),
            "takes userspace; `relayctl restart`",
            id="userspace",
        ),
        pytest.param(
            replace(SERVED, interfaces=()), "takes userspace; `relayctl restart`", id="no interface"
        ),
        pytest.param(replace(SERVED, vips=SERVED.vips[:1]), "the configuration names", id="an address less"),
        pytest.param(replace(SERVED, vips=SERVED.vips[::-1]), "the configuration names", id="another order"),
        pytest.param(
            replace(SERVED, interfaces=("eth0", "eth7")), "no interface 'eth7'", id="no interface eth7"
        ),
    ],
)
def test_take_over_is_looked_at_and_nothing_touched(
    start: Start, pins: PinDir, config: RelayConfig, words: str | None
) -> None:
    relay = start()
    relay.begin()
    programs = program_on(BOTH)
    with pytest.raises(OperatorError, match=words) if words else contextlib.nullcontext():
        check_take_over(config, pins)
    assert program_on(BOTH) == programs
    assert pins.exists


def test_take_over_of_a_program_of_somebody_else_is_refused(start: Start, pins: PinDir) -> None:
    relay = start()
    relay.begin()
    foreign_program_on_eth1(relay)
    with pytest.raises(ForeignProgramError, match="eth1"):
        check_take_over(SERVED, pins)


def test_nothing_pinned_is_nothing_to_take_over(pins: PinDir) -> None:
    check_take_over(USERSPACE, pins)
