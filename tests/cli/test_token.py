"""``relayctl token``: seal and open ufrags by hand."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli.main import EXIT_FAILED, EXIT_USAGE, cli
from host.keystore import load_or_create_keys
from host.state_dir import StateDir
from wire.keys import FleetKey, KeyRing
from wire.ufrag import derive_ice_pwd, open_ufrag_untrusted


def token(state_dir: StateDir, *arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["token", *arguments, "--state-dir", str(state_dir.path)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


@pytest.fixture
def state_dir(state_dir: StateDir) -> StateDir:
    """A state directory in which something was started before."""
    load_or_create_keys(state_dir.keys_file)
    return state_dir


def sealed(state_dir: StateDir, transceiver: str = "10.1.2.3:5000") -> dict[str, Any]:
    result = token(state_dir, "seal", transceiver, "--json")
    assert result.exit_code == 0, result.stderr
    document: dict[str, Any] = json.loads(result.stdout)
    return document


def write_keys(state_dir: StateDir, key_id: int) -> None:
    keys = KeyRing([FleetKey(key_id, bytes([key_id]) * 32)], key_id)
    state_dir.keys_file.write_text(json.dumps(keys.to_json()))
    state_dir.keys_file.chmod(0o600)


@pytest.mark.parametrize("transceiver", ["10.1.2.3:5000", "[2001:db8::1]:5000"])
def test_what_was_sealed_is_opened(state_dir: StateDir, transceiver: str) -> None:
    document = sealed(state_dir, transceiver)
    assert set(document) == {"ufrag", "ice_pwd"}
    keys = load_or_create_keys(state_dir.keys_file)
    assert str(open_ufrag_untrusted(keys, document["ufrag"]).transceiver) == transceiver
    assert document["ice_pwd"] == derive_ice_pwd(keys, document["ufrag"])

    result = token(state_dir, "open", document["ufrag"], "--json")
    assert result.exit_code == 0
    opened = json.loads(result.stdout)
    assert list(opened) == ["cluster_id", "transceiver", "issued_at", "age_s", "nonce"]
    assert opened["transceiver"] == transceiver
    assert opened["cluster_id"] == 1
    assert 0 <= opened["age_s"] < 60
    issued_at = datetime.fromisoformat(opened["issued_at"])
    assert abs(datetime.now(UTC) - issued_at) < timedelta(minutes=1)


def test_plain_output_has_the_same_fields(state_dir: StateDir) -> None:
    result = token(state_dir, "seal", "10.1.2.3:5000")
    fields = dict(line.split() for line in result.stdout.splitlines())
    assert set(fields) == {"ufrag", "ice_pwd"}
    opened = token(state_dir, "open", fields["ufrag"])
    assert dict(line.split() for line in opened.stdout.splitlines())["transceiver"] == "10.1.2.3:5000"


def test_two_seals_of_one_transceiver_differ(state_dir: StateDir) -> None:
    assert sealed(state_dir)["ufrag"] != sealed(state_dir)["ufrag"]


def test_username_of_a_check_will_do(state_dir: StateDir) -> None:
    result = token(state_dir, "open", sealed(state_dir)["ufrag"] + ":EsAw", "--json")
    assert json.loads(result.stdout)["transceiver"] == "10.1.2.3:5000"


def test_cluster_and_keys_come_from_the_configuration(state_dir: StateDir, tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(f"[fleet]\ncluster_id = 77\nkeys_file = '{tmp_path}/fleet.json'")
    keys = load_or_create_keys(tmp_path / "fleet.json")
    result = token(state_dir, "seal", "10.1.2.3:5000", "--json", "--config", str(config))
    ufrag = json.loads(result.stdout)["ufrag"]
    assert open_ufrag_untrusted(keys, ufrag).cluster_id == 77
    opened = token(state_dir, "open", ufrag, "--json", "--config", str(config))
    assert json.loads(opened.stdout)["cluster_id"] == 77


def test_forged_ufrag_is_refused(state_dir: StateDir) -> None:
    ufrag = sealed(state_dir)["ufrag"]
    forged = ufrag[:20] + ("A" if ufrag[20] != "A" else "B") + ufrag[21:]
    result = token(state_dir, "open", forged)
    assert result.exit_code == EXIT_FAILED
    assert result.stderr == "relayctl: ufrag: ufrag does not open with key 1 (ufrag_forged)\n"
    assert result.stdout == ""


@pytest.mark.parametrize(
    "ufrag",
    [
        pytest.param("", id="empty"),
        pytest.param("EsAw", id="a client's"),
        pytest.param(":EsAw", id="username without ours"),
        pytest.param("ä" * 47, id="not ASCII"),
        pytest.param("=" * 47, id="padding"),
        pytest.param("A" * 4000, id="long"),
    ],
)
def test_text_that_is_no_ufrag_is_refused(state_dir: StateDir, ufrag: str) -> None:
    sealed(state_dir)
    result = token(state_dir, "open", ufrag)
    assert result.exit_code == EXIT_FAILED
    assert "(ufrag_forged)" in result.stderr


def test_unknown_key_is_named(state_dir: StateDir) -> None:
    write_keys(state_dir, 2)
    ufrag = sealed(state_dir)["ufrag"]
    write_keys(state_dir, 1)
    result = token(state_dir, "open", ufrag)
    assert result.exit_code == EXIT_FAILED
    assert result.stderr == "relayctl: ufrag: no key 2 (ufrag_unknown_key)\n"


@pytest.mark.parametrize("address", ["10.1.2.3", "transceiver:5000", "10.1.2.3:99999", "2001:db8::1:80"])
def test_wrong_address_is_refused(state_dir: StateDir, address: str) -> None:
    result = token(state_dir, "seal", address)
    assert result.exit_code == EXIT_USAGE
    assert result.stderr.startswith("relayctl: ADDR:PORT: ")
    assert result.stdout == ""


def test_broken_key_file_is_named_without_its_secret(state_dir: StateDir) -> None:
    secret = "c2VjcmV0IG9mIHRoZSBmbGVldA=="
    state_dir.keys_file.write_text(json.dumps({"sealing": 1, "keys": [{"id": 1, "secret": secret}]}))
    state_dir.keys_file.chmod(0o600)
    result = token(state_dir, "seal", "10.1.2.3:5000")
    assert result.exit_code == EXIT_USAGE
    assert f"{state_dir.keys_file}: keys[0]: " in result.stderr
    assert secret not in result.stderr


@pytest.mark.parametrize("arguments", [("seal", "10.1.2.3:5000"), ("open", "A" * 47)], ids=["seal", "open"])
def test_no_keys_are_made(state_dir: StateDir, arguments: tuple[str, str]) -> None:
    """Nothing can open with a key that was made a moment ago: where there is no file, say so."""
    state_dir.keys_file.unlink()
    result = token(state_dir, *arguments)
    assert result.exit_code == EXIT_USAGE
    assert f"relayctl: {state_dir.keys_file}: no keys there" in result.stderr
    assert not state_dir.keys_file.exists()


def test_configuration_of_a_transceiver_host_will_do(state_dir: StateDir, tmp_path: Path) -> None:
    """`start --role transceivers` takes it: the VIP is another host's, so it needs no relay.listen beside it."""
    config = tmp_path / "c.toml"
    config.write_text("[fleet]\nvip = ['203.0.113.10:3478']")
    result = token(state_dir, "seal", "10.1.2.3:5000", "--config", str(config))
    assert result.exit_code == 0, result.stderr
