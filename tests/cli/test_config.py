"""One configuration from defaults, one TOML file and flags; every error names its field."""

import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.config import TEMPLATE, Config, load_config
from cli.main import EXIT_USAGE, cli
from host.errors import ConfigError
from host.sockets import is_ipv6_available
from host.state_dir import StateDir
from relay.core.policy import Vip
from tests.cli.certificate import make_certificate
from wire.address import Address

Overrides = dict[str, dict[str, Any]]

PUBLIC = Address.parse("203.0.113.10:3478")
OURS = Address.parse("10.0.0.5:3478")
BEYOND_LOOPBACK = "203.0.113.10:443"


def write(directory: Path, text: str) -> Path:
    path = directory / "relayctl.toml"
    path.write_text(text)
    return path


def load(state_dir: StateDir, text: str, overrides: Overrides | None = None) -> Config:
    return load_config(write(state_dir.path, text), overrides or {}, state_dir)


def refusal(state_dir: StateDir, text: str, overrides: Overrides | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(state_dir, text, overrides)
    return caught.value


# defaults


def test_without_a_file_everything_is_on_loopback(state_dir: StateDir) -> None:
    config = load_config(None, {}, state_dir)
    bound = [vip.listen for vip in config.vips]
    bound += [*config.relay.fleet_listen, config.transceiver.listen, config.transceiver.http]
    assert all(address.ip.is_loopback for address in bound)
    assert [vip.address for vip in config.vips] == [vip.listen for vip in config.vips]
    families = [vip.listen.family for vip in config.vips]
    assert families == ([4, 6] if is_ipv6_available() else [4])
    assert config.keys_file == state_dir.keys_file
    assert config.transceiver.bearer_token_file is None
    assert not config.transceiver.insecure


def test_empty_file_is_the_same_as_none(state_dir: StateDir) -> None:
    assert load(state_dir, "") == load_config(None, {}, state_dir)


# the template of `relayctl init`


def uncommented_template() -> str:
    """The template with each commented-out setting switched on."""
    return re.sub(r"^# (?=\w+ = )", "", TEMPLATE, flags=re.MULTILINE)


def test_template_parses_and_changes_nothing(state_dir: StateDir) -> None:
    assert load(state_dir, TEMPLATE) == load_config(None, {}, state_dir)


def test_defaults_that_the_template_tells_are_the_defaults(state_dir: StateDir) -> None:
    told, default = load(state_dir, uncommented_template()), load_config(None, {}, state_dir)
    # What depends on the machine: its cores, and whether it has IPv6.
    told = replace(
        told, relay=replace(told.relay, workers=default.relay.workers, vips=told.vips[: len(default.vips)])
    )
    assert told == default


def test_template_tells_every_key_and_no_other(state_dir: StateDir) -> None:
    told = {table: sorted(keys) for table, keys in tomllib.loads(uncommented_template()).items()}
    known = {}
    for table in told:
        message = str(refusal(state_dir, f"[{table}]\nzzzzzzzz = 1\n"))
        known[table] = message.partition("known here: ")[2].split(", ")
    assert told == known


# files


@pytest.mark.parametrize(
    ("text", "field", "words"),
    [
        pytest.param("[relay]\nlisen = []", "relay.lisen", "did you mean 'listen'?", id="misspelt key"),
        pytest.param("[fleet]\nvips = []", "fleet.vips", "did you mean 'vip'?", id="key of [fleet]"),
        pytest.param("[host]\ndrain = 5", "host.drain", "did you mean 'drain_s'?", id="key of [host]"),
        pytest.param("[transceiver]\nworkers = 2", "transceiver.workers", "unknown key", id="another's key"),
        pytest.param("[relays]\nworkers = 2", "relays", "[relay]", id="unknown table"),
        pytest.param("workers = 2", "workers", "[relay]", id="key outside any table"),
        pytest.param("relay = 5", "relay", "table", id="table is a number"),
        pytest.param("[[relay]]\nworkers = 2", "relay", "table", id="table is a list"),
        pytest.param("[relay]\nworkers = 'two'", "relay.workers", "a whole number", id="wrong type"),
        pytest.param("[relay]\nworkers = true", "relay.workers", "a whole number", id="bool is no int"),
        pytest.param("[relay]\nworkers = 0", "relay.workers", "1 to 64", id="too few workers"),
        pytest.param("[relay]\nworkers = 65", "relay.workers", "1 to 64", id="too many workers"),
        pytest.param("[fleet]\ncluster_id = 65536", "fleet.cluster_id", "0 to 65535", id="cluster id"),
        pytest.param('[host]\nrole = "backend"', "host.role", "all, relay, transceivers", id="role"),
        pytest.param("[host]\ndrain_s = -1", "host.drain_s", "0 or more", id="negative drain"),
        pytest.param("[host]\ndrain_s = nan", "host.drain_s", "0 or more", id="drain is no number"),
        pytest.param("[relay]\nlisten = '127.0.0.1:1'", "relay.listen", "a list", id="address for a list"),
        pytest.param("[relay]\nlisten = []", "relay.listen", "at least one", id="no address"),
        pytest.param("[relay]\nlisten = ['0.0.0.0:3478']", "relay.listen", "wildcard", id="wildcard"),
        pytest.param(
            "[relay]\nlisten = ['127.0.0.1:0']", "relay.listen", "port", id="clients cannot be told port 0"
        ),
        pytest.param(
            "[relay]\nlisten = ['127.0.0.1:0']\n[fleet]\nvip = ['127.0.0.1:3478']",
            "relay.listen",
            "port",
            id="workers would each bind another port",
        ),
        pytest.param(
            "[relay]\nfleet_listen = ['127.0.0.1:1', '127.0.0.2:2']",
            "relay.fleet_listen",
            "each address family",
            id="two fleet addresses of one family",
        ),
        pytest.param(
            "[relay]\nfleet_listen = []", "relay.fleet_listen", "one address", id="no fleet address"
        ),
        pytest.param(
            "[relay]\nworkers = 2\nfleet_listen = ['127.0.0.1:65535']",
            "relay.fleet_listen",
            "no port for each of 2",
            id="ports run out",
        ),
        pytest.param(
            "[transceiver]\nprocesses = 3\nlisten = '127.0.0.1:65534'",
            "transceiver.listen",
            "no port for each of 3",
            id="ports of transceivers run out",
        ),
        pytest.param(
            "[relay]\ntransceiver_networks = []", "relay.transceiver_networks", "empty", id="no network"
        ),
        pytest.param(
            "[relay]\ntransceiver_networks = ['10.0.0.1/8']",
            "relay.transceiver_networks",
            "10.0.0.0/8",
            id="network with host bits",
        ),
        pytest.param("[relay]\nmax_session_s = 59", "relay.max_session_s", "60 to", id="session too short"),
        pytest.param(
            "[transceiver]\nrequests_per_s = 0", "transceiver.requests_per_s", "above 0", id="no requests"
        ),
        pytest.param(
            "[transceiver]\nrequests_per_s = nan", "transceiver.requests_per_s", "", id="rate is no number"
        ),
        pytest.param(
            "[transceiver]\nrequests_per_s = inf", "transceiver.requests_per_s", "", id="rate is endless"
        ),
        pytest.param("[transceiver]\nmax_cpu = 0", "transceiver.max_cpu", "above 0", id="no CPU time"),
        pytest.param(
            "[transceiver]\nmax_cpu = nan", "transceiver.max_cpu", "above 0", id="share is no number"
        ),
        pytest.param("[transceiver]\nmax_cpu = inf", "transceiver.max_cpu", "", id="share is endless"),
        pytest.param(
            "[transceiver]\nmax_memory_mb = -1", "transceiver.max_memory_mb", "0 to", id="negative memory"
        ),
        pytest.param(
            "[transceiver]\nmax_memory_mb = 0.5",
            "transceiver.max_memory_mb",
            "a whole number",
            id="half a MiB",
        ),
        pytest.param(
            "[transceiver]\norigins = ['app.example.org']",
            "transceiver.origins",
            "https://app.example.org",
            id="origin without scheme",
        ),
        pytest.param(
            "[transceiver]\ntls_cert = '/nonexistent.pem'",
            "transceiver.tls_cert",
            "/nonexistent.pem",
            id="missing certificate",
        ),
        pytest.param(
            "[transceiver]\ntls_key = '/nonexistent.pem'",
            "transceiver.tls_key",
            "tls_cert",
            id="a key without its certificate is not ignored",
        ),
        pytest.param("[fleet]\nkeys_file = 5", "fleet.keys_file", "a string", id="path is a number"),
    ],
)
def test_wrong_setting_is_refused_by_its_full_name(
    state_dir: StateDir, text: str, field: str, words: str
) -> None:
    error = refusal(state_dir, text)
    assert error.field == field
    assert words in str(error)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"[relay\n", "line 1", id="not TOML"),
        pytest.param(b"[relay]\nworkers = 1\nworkers = 2\n", "line 3", id="key twice"),
        pytest.param(b"\xff\xfe", "is not TOML", id="not UTF-8"),
    ],
)
def test_file_that_is_no_toml_is_named_with_the_line(state_dir: StateDir, content: bytes, words: str) -> None:
    path = state_dir.path / "relayctl.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is not TOML") as caught:
        load_config(path, {}, state_dir)
    assert caught.value.field == str(path)
    assert words in str(caught.value)


def test_missing_file_tells_how_to_write_one(state_dir: StateDir) -> None:
    path = state_dir.path / "missing.toml"
    with pytest.raises(ConfigError, match=r"No such file.*relayctl init") as caught:
        load_config(path, {}, state_dir)
    assert caught.value.field == str(path)


def test_full_file_is_read(state_dir: StateDir) -> None:
    config = load(
        state_dir,
        """
        [fleet]
        cluster_id = 7
        vip = ["203.0.113.10:3478"]
        keys_file = "/etc/relayctl/keys.json"
        [relay]
        listen = ["10.0.0.5:3478"]
        workers = 3
        max_session_s = 600
        [transceiver]
        processes = 4
        listen = "10.0.0.5:5000"
        origins = ["https://app.example.org"]
        [host]
        drain_s = 2
        """,
    )
    assert config.cluster_id == 7
    assert config.vips == (Vip(OURS, PUBLIC),)
    assert config.keys_file == Path("/etc/relayctl/keys.json")
    assert (config.relay.workers, config.relay.max_session_s) == (3, 600)
    assert (config.transceiver.processes, str(config.transceiver.listen)) == (4, "10.0.0.5:5000")
    assert config.transceiver.origins == ("https://app.example.org",)
    assert config.drain_s == 2.0


# flags


def test_flags_override_the_file_key_by_key(state_dir: StateDir) -> None:
    text = "[relay]\nworkers = 3\nmax_session_s = 600\n[transceiver]\nprocesses = 4"
    config = load(state_dir, text, {"relay": {"workers": 1}, "transceiver": {"http": "127.0.0.1:9000"}})
    assert (config.relay.workers, config.relay.max_session_s) == (1, 600)
    assert config.transceiver.processes == 4
    assert str(config.transceiver.http) == "127.0.0.1:9000"


def test_flag_mends_what_the_file_has_wrong(state_dir: StateDir) -> None:
    assert load(state_dir, "[relay]\nworkers = 0", {"relay": {"workers": 1}}).relay.workers == 1


def test_flags_are_checked_as_the_file_is(state_dir: StateDir) -> None:
    assert refusal(state_dir, "", {"relay": {"workers": 0}}).field == "relay.workers"


# the public addresses


@pytest.mark.parametrize(
    ("listen", "vip", "expected"),
    [
        pytest.param(["10.0.0.5:3478"], [], [(OURS, OURS)], id="no NAT"),
        pytest.param(["10.0.0.5:3478"], ["203.0.113.10:3478"], [(OURS, PUBLIC)], id="1:1 NAT"),
        pytest.param(
            ["10.0.0.5:3478", "[2001:db8::5]:3478"],
            ["203.0.113.10:3478", "[2001:db8::10]:3478"],
            [(OURS, PUBLIC), (Address.parse("[2001:db8::5]:3478"), Address.parse("[2001:db8::10]:3478"))],
            id="in order",
        ),
    ],
)
def test_listen_and_vip_are_paired(
    state_dir: StateDir, listen: list[str], vip: list[str], expected: list[tuple[Address, Address]]
) -> None:
    config = load(state_dir, "", {"relay": {"listen": listen}, "fleet": {"vip": vip}})
    assert config.vips == tuple(Vip(*pair) for pair in expected)


@pytest.mark.parametrize(
    ("listen", "vip", "field", "words"),
    [
        pytest.param(
            ["10.0.0.5:3478"],
            ["203.0.113.10:3478", "203.0.113.11:3478"],
            "fleet.vip",
            "2 addresses but relay.listen has 1",
            id="too many",
        ),
        pytest.param(
            ["10.0.0.5:1", "10.0.0.6:1"], ["203.0.113.10:1"], "fleet.vip", "pair them in order", id="too few"
        ),
        pytest.param(
            ["10.0.0.5:3478"], ["[2001:db8::10]:3478"], "fleet.vip", "other address family", id="family"
        ),
        pytest.param(
            ["10.0.0.5:1", "10.0.0.5:1"], [], "relay.listen", "twice", id="one listen address twice"
        ),
        pytest.param(
            ["10.0.0.5:1", "10.0.0.6:1"],
            ["203.0.113.10:1", "203.0.113.10:1"],
            "fleet.vip",
            "twice",
            id="one vip twice",
        ),
        pytest.param(["10.0.0.5:1"], ["203.0.113.10:0"], "fleet.vip", "needs a port", id="vip without port"),
        pytest.param(["10.0.0.5:1"], ["0.0.0.0:1"], "fleet.vip", "wildcard", id="wildcard vip"),
    ],
)
def test_listen_and_vip_that_do_not_pair_are_refused(
    state_dir: StateDir, listen: list[str], vip: list[str], field: str, words: str
) -> None:
    error = refusal(state_dir, "", {"relay": {"listen": listen}, "fleet": {"vip": vip}})
    assert error.field == field
    assert words in str(error)


def test_vip_of_another_host_needs_no_listening_address(state_dir: StateDir) -> None:
    role: dict[str, dict[str, Any]] = {"host": {"role": "transceivers"}}
    config = load_config(None, {**role, "fleet": {"vip": ["203.0.113.10:3478"]}}, state_dir)
    assert [entry.address for entry in config.vips] == [PUBLIC]
    listening = {**role, "relay": {"listen": ["10.0.0.5:3478"]}}
    assert load_config(None, listening, state_dir).vips == (Vip(OURS, OURS),)


# signaling beyond loopback


def test_beyond_loopback_needs_tls_or_insecure(state_dir: StateDir) -> None:
    error = refusal(state_dir, "", {"transceiver": {"http": BEYOND_LOOPBACK}})
    assert error.field == "transceiver.http"
    for way_out in ("tls_cert", "tls_key", "--insecure"):
        assert way_out in str(error)


@pytest.mark.parametrize("http", ["0.0.0.0:8080", "[::]:8080"])
def test_every_address_of_the_machine_is_beyond_loopback(state_dir: StateDir, http: str) -> None:
    assert refusal(state_dir, "", {"transceiver": {"http": http}}).field == "transceiver.http"
    config = load(state_dir, "", {"transceiver": {"http": http, "insecure": True}})
    assert config.transceiver.bearer_token_file == state_dir.bearer_token_file


@pytest.mark.parametrize("http", ["127.0.0.1:80", "127.9.9.9:80", "[::1]:80"])
def test_loopback_needs_neither(state_dir: StateDir, http: str) -> None:
    config = load(state_dir, "", {"transceiver": {"http": http}})
    assert config.transceiver.bearer_token_file is None


def test_insecure_beyond_loopback_still_asks_for_a_token(state_dir: StateDir) -> None:
    config = load(state_dir, "", {"transceiver": {"http": BEYOND_LOOPBACK, "insecure": True}})
    assert config.transceiver.bearer_token_file == state_dir.bearer_token_file


def test_tls_beyond_loopback(state_dir: StateDir) -> None:
    cert, key = make_certificate(state_dir.path)
    text = f"[transceiver]\nhttp = '{BEYOND_LOOPBACK}'\ntls_cert = '{cert}'\ntls_key = '{key}'"
    config = load(state_dir, text)
    assert (config.transceiver.tls_cert, config.transceiver.tls_key) == (cert, key)
    assert config.transceiver.bearer_token_file == state_dir.bearer_token_file


@pytest.mark.parametrize("key_content", [None, "", "no key"], ids=["missing", "empty", "garbage"])
def test_certificate_without_its_key_is_refused(state_dir: StateDir, key_content: str | None) -> None:
    cert, key = make_certificate(state_dir.path)
    key.unlink()
    if key_content is not None:
        key.write_text(key_content)
    error = refusal(state_dir, f"[transceiver]\ntls_cert = '{cert}'\ntls_key = '{key}'")
    assert error.field in ("transceiver.tls_cert", "transceiver.tls_key")
    assert str(cert) in str(error)


def test_key_of_another_certificate_is_refused(state_dir: StateDir) -> None:
    other = state_dir.path / "other"
    other.mkdir()
    cert, _ = make_certificate(state_dir.path)
    _, key = make_certificate(other)
    assert (
        refusal(state_dir, f"[transceiver]\ntls_cert = '{cert}'\ntls_key = '{key}'").field
        == "transceiver.tls_cert"
    )


# how commands show it


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        pytest.param(
            ["start", "--workers", "0"], "relayctl: relay.workers: needs to be 1 to 64", id="bounds"
        ),
        pytest.param(["start", "--listen", "0.0.0.0:80"], "relayctl: relay.listen: ", id="wildcard"),
        pytest.param(["start", "--listen", "localhost:1"], "relayctl: relay.listen: ", id="host name"),
        pytest.param(["start", "--http", BEYOND_LOOPBACK], "--insecure", id="beyond loopback"),
        pytest.param(["start", "--role", "backend"], "'all', 'relay', 'transceivers'", id="role"),
        pytest.param(["start", "--config", "/nonexistent.toml"], "relayctl init", id="no such file"),
        pytest.param(["token", "seal", "here"], "relayctl: ADDR:PORT: ", id="no address"),
        pytest.param(["probe"], "URL", id="missing argument"),
        pytest.param(["flows", "--limit", "0"], "--limit", id="limit"),
    ],
)
def test_wrong_usage_is_exit_code_2_without_traceback(
    state_dir: StateDir, arguments: list[str], words: str
) -> None:
    place = [] if arguments[0] == "probe" else ["--state-dir", str(state_dir.path)]
    result = CliRunner().invoke(cli, [*arguments, *place])
    assert result.exit_code == EXIT_USAGE
    assert words in result.stderr
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)


def test_state_dir_too_long_is_exit_code_2(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["status", "--state-dir", str(tmp_path / ("d" * 120))])
    assert result.exit_code == EXIT_USAGE
    assert "--state-dir" in result.stderr


def test_help_names_every_command_and_exit_code() -> None:
    text = CliRunner().invoke(cli, ["--help"]).stdout
    for command in ("start", "stop", "restart", "status", "flows", "sessions", "probe", "token", "init"):
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
    for code, meaning in enumerate(("done", "failed", "wrong usage", "not running", "already running")):
        assert re.search(rf"^  {code} +{meaning}", text, re.MULTILINE)
