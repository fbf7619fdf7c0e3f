"""What an application calls: Hub.open and its errors, connections without a hub, install."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription

import transceiver
from cli.config import TEMPLATE
from host.errors import AddressInUseError, ConfigError
from host.sockets import bind_udp, bound_address, is_ipv6_available
from tests.transceiver.library import application, write_config
from tests.transceiver.offers import VOICE
from tests.transceiver.processes import LOOPBACK
from transceiver import Hub, HubError, OfferError, RelayedPeerConnection

pytestmark = pytest.mark.usefixtures("no_task_left")


async def test_hub_without_a_file_is_for_a_relay_on_loopback(tmp_path: Path) -> None:
    write_config(tmp_path)
    async with Hub.open(state_dir=tmp_path) as hub:
        assert Hub.current() is hub
        assert str(hub.settings.vips[0]) == "127.0.0.1:3478"
        assert hub.settings.address.port > 0
        assert str(hub.settings.address.ip) == "127.0.0.1"
    with pytest.raises(HubError, match="no hub is open"):
        Hub.current()


async def test_hub_reads_relayctls_file(tmp_path: Path) -> None:
    fleet = 'vip = ["192.0.2.1:3478", "192.0.2.2:3478", "[2001:db8::1]:3478"]\ncluster_id = 9'
    config = write_config(tmp_path, fleet=fleet, transceiver='listen = "127.0.0.2:7001"\nmedia = "aiortc"')
    async with Hub.open(config, state_dir=tmp_path) as hub:
        assert [str(vip) for vip in hub.settings.vips] == ["192.0.2.1:3478", "[2001:db8::1]:3478"]
        assert hub.settings.cluster_id == 9
        assert str(hub.settings.address.ip) == "127.0.0.2"
        assert hub.settings.address.port != 7001  # relayctl's own processes have it
        peer = RelayedPeerConnection()
        await peer.setRemoteDescription(RTCSessionDescription(VOICE, "offer"))
        await peer.setLocalDescription(await peer.createAnswer())
        sdp = peer.localDescription.sdp
        assert sdp.count("a=candidate:") == 2 * sdp.count("m=")
        assert "192.0.2.1 3478 typ host" in sdp
        await peer.close()


async def test_hub_takes_every_setting_that_relayctl_start_has(tmp_path: Path) -> None:
    """Those of its own processes, too, such as a key for TLS that the application may not read."""
    write_config(tmp_path)
    config = tmp_path / "all.toml"
    told = re.sub(r"^# (?=\w+ = )", "", TEMPLATE, flags=re.MULTILINE)
    told = told.replace('tls_cert = ""', 'tls_cert = "none.pem"')
    assert told.count("none.pem") == 2
    config.write_text(told)
    async with Hub.open(config, state_dir=tmp_path) as hub:
        assert str(hub.settings.vips[0]) == "127.0.0.1:3478"


async def test_keys_file_is_found_next_to_the_configuration(tmp_path: Path) -> None:
    config = write_config(tmp_path, fleet='keys_file = "keys.json"')
    async with Hub.open(config, state_dir=tmp_path / "elsewhere"):
        pass


@pytest.mark.skipif(not is_ipv6_available(), reason="no IPv6")
async def test_hub_listens_on_ipv6(tmp_path: Path) -> None:
    write_config(tmp_path)
    async with Hub.open(state_dir=tmp_path, listen="[::1]:0") as hub:
        assert str(hub.settings.address.ip) == "::1"


@pytest.mark.parametrize(
    ("fleet", "ours", "field"),
    [
        ('vip = ["nowhere"]', "", "fleet.vip"),
        ('vip = ["192.0.2.1:0"]', "", "fleet.vip"),
        ('vips = ["192.0.2.1:3478"]', "", "fleet.vips"),
        ('[relay]\nlisten = ["127.0.0.1:0"]', "", "relay.listen"),
        ("[relay]\nlisten = []", "", "relay.listen"),
        ("[transciever]", "", "transciever"),
        ("vip = 3478", "", "fleet.vip"),
        ("cluster_id = 70000", "", "fleet.cluster_id"),
        ('cluster_id = "one"', "", "fleet.cluster_id"),
        ("keys_file = 7", "", "fleet.keys_file"),
        ("", 'listen = "0.0.0.0:0"', "transceiver.listen"),
        ("", 'listen = "192.0.2.77:7000"', "transceiver.listen"),
        ("", 'listen = "here"', "transceiver.listen"),
        ("", 'relay_networks = ["10.0.0.1/8"]', "transceiver.relay_networks"),
        ("", 'relay_networks = "10.0.0.0/8"', "transceiver.relay_networks"),
        ("", 'relay_netwroks = ["10.0.0.0/8"]', "transceiver.relay_netwroks"),
    ],
)
async def test_setting_that_cannot_be_is_named(tmp_path: Path, fleet: str, ours: str, field: str) -> None:
    config = write_config(tmp_path, fleet=fleet, transceiver=ours)
    sockets = psutil.Process().net_connections("udp")
    with pytest.raises(ConfigError, match=rf"^{field}: ") as raised:
        async with Hub.open(config, state_dir=tmp_path):
            raise AssertionError("opened")
    assert raised.value.field == field
    assert psutil.Process().net_connections("udp") == sockets
    with pytest.raises(HubError):
        Hub.current()


@pytest.mark.parametrize(
    "listen", ["here", "127.0.0.1", "127.0.0.1:99999", "0.0.0.0:0", "[::]:0", "192.0.2.77:0"]
)
async def test_address_that_cannot_be_is_named(tmp_path: Path, listen: str) -> None:
    write_config(tmp_path)
    with pytest.raises(ConfigError) as raised:
        async with Hub.open(state_dir=tmp_path, listen=listen):
            raise AssertionError("opened")
    assert raised.value.field == "listen"


async def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys\.json: no keys there; `relayctl start` makes them"):
        async with Hub.open(state_dir=tmp_path):
            raise AssertionError("opened")
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read"):
        async with Hub.open(tmp_path / "none.toml"):
            raise AssertionError("opened")


async def test_keys_that_others_can_read_are_refused(tmp_path: Path) -> None:
    write_config(tmp_path)
    (tmp_path / "keys.json").chmod(0o644)
    with pytest.raises(ConfigError, match="others can read"):
        async with Hub.open(state_dir=tmp_path):
            raise AssertionError("opened")


async def test_port_that_is_taken_is_named(tmp_path: Path) -> None:
    write_config(tmp_path)
    with bind_udp("taken", LOOPBACK) as taken:
        address = str(bound_address(taken))
        with pytest.raises(AddressInUseError, match=f"listen: {address} is taken by pid"):
            async with Hub.open(state_dir=tmp_path, listen=address):
                raise AssertionError("opened")
    async with Hub.open(state_dir=tmp_path, listen=address) as hub:
        assert str(hub.settings.address) == address


async def test_second_hub_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    write_config(tmp_path)
    async with Hub.open(state_dir=tmp_path) as hub:
        with pytest.raises(HubError, match="open already"):
            async with Hub.open(state_dir=tmp_path):
                raise AssertionError("opened")
        assert Hub.current() is hub
    async with Hub.open(state_dir=tmp_path) as again:
        assert again is not hub


async def test_application_that_fails_leaves_no_hub(tmp_path: Path) -> None:

    async def fail() -> None:
        async with application(tmp_path) as app:
            await app.make("tone", "data")
            raise KeyError("of the application")

    with pytest.raises(KeyError):
        await fail()
    with pytest.raises(HubError):
        Hub.current()


async def test_connection_needs_a_hub() -> None:
    with pytest.raises(HubError, match=r"transceiver\.Hub\.open"):
        RelayedPeerConnection()


async def test_description_that_is_not_bundled_is_refused_as_a_value_error(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        peer = await app.make()
        with pytest.raises(ValueError, match="max-bundle"):
            await peer.setRemoteDescription(
                RTCSessionDescription(VOICE.replace("a=group:BUNDLE 0 2\r\n", ""), "offer")
            )
        with pytest.raises(OfferError):
            await peer.setRemoteDescription(RTCSessionDescription("v=0", "offer"))
        await peer.setRemoteDescription(RTCSessionDescription(VOICE, "offer"))


def test_names_of_the_package_are_there() -> None:
    for name in transceiver.__all__:
        assert getattr(transceiver, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = transceiver.Nothing


# install


def _run(script: str, directory: Path) -> str:
    (directory / "framework.py").write_text("from aiortc import RTCPeerConnection\n")
    (directory / "lazy.py").write_text(
        "def __getattr__(name):\n    raise RuntimeError(f'{name} needs a package that is not here')\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_install_puts_ours_in_the_place_of_aiortcs(tmp_path: Path) -> None:
    """With a module around that loads lazily, and one that is marked as absent."""
    script = """
        import sys, lazy, transceiver
        assert not {'aiortc', 'av'} & set(sys.modules)
        sys.modules["absent"] = None
        transceiver.install()
        transceiver.install()
        import aiortc, framework, aiortc.rtcpeerconnection
        ours = transceiver.RelayedPeerConnection
        assert aiortc.RTCPeerConnection is framework.RTCPeerConnection is ours
        assert aiortc.rtcpeerconnection.RTCPeerConnection is ours
        assert ours.__mro__[1].__name__ == "RTCPeerConnection"
        try:
            framework.RTCPeerConnection()
        except transceiver.HubError as error:
            print(error)
    """
    assert "no hub is open" in _run(script, tmp_path)


def test_install_that_is_too_late_names_the_modules(tmp_path: Path) -> None:
    script = """
        import sys, framework, aiortc, transceiver
        def install():
            try:
                transceiver.install()
            except transceiver.HubError as error:
                print(error)
        install()
        del sys.modules["framework"]
        from aiortc import RTCPeerConnection
        install()
        assert aiortc.RTCPeerConnection is RTCPeerConnection
        del RTCPeerConnection
        transceiver.install()
        assert aiortc.RTCPeerConnection is transceiver.RelayedPeerConnection
    """
    framework, main = _run(script, tmp_path).splitlines()
    assert framework.startswith("framework.RTCPeerConnection took aiortc's RTCPeerConnection already")
    assert "before importing" in framework
    assert main.startswith("__main__.RTCPeerConnection took")


@pytest.mark.parametrize(
    ("taken", "named"),
    [
        ("from aiortc import RTCPeerConnection as PC", "other.PC"),
        ("import aiortc\nclass Mine(aiortc.RTCPeerConnection): pass", "other.Mine"),
        (
            "import aiortc\ndef make():\n class In(aiortc.RTCPeerConnection): pass\n return In\nx = [make()]",
            "other.make.<locals>.In",
        ),
        ("import aiortc\nclass A(aiortc.RTCPeerConnection): pass\nclass B(A): pass", "other.A, other.B"),
    ],
    ids=["under another name", "by a class", "by a class in a function", "by a class of a class"],
)
def test_install_that_is_too_late_finds_every_way_to_take_the_class(
    tmp_path: Path, taken: str, named: str
) -> None:
    (tmp_path / "other.py").write_text(taken)
    script = """
        import other, transceiver
        try:
            transceiver.install()
        except transceiver.HubError as error:
            print(error)
    """
    assert _run(script, tmp_path).startswith(f"{named} took aiortc's RTCPeerConnection already")


async def test_stock_connection_beside_the_hub_is_untouched(tmp_path: Path) -> None:
    async with application(tmp_path) as app:
        client = await app.make_client("audio")
        assert type(client) is RTCPeerConnection
        assert len(app.hub) == 0
