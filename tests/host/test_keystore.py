"""The key file: made once, private, and refused with the field's name when it is broken."""

import json
import stat
import traceback
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from host.errors import ConfigError
from host.keystore import load_keys, load_or_create_keys

SECRET = b64encode(b"a secret of 32 bytes, not shown.").decode()
GOOD_KEY = {"id": 1, "secret": SECRET}


def write_keys(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(0o600)
    return path


def test_first_use_makes_a_private_file_with_one_random_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys = load_or_create_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_text()) == keys.to_json()
    assert keys.sealing.key_id == 1
    assert len(keys.sealing.secret) == 32
    assert load_or_create_keys(tmp_path / "other.json").sealing.secret != keys.sealing.secret


def test_second_read_gives_the_same_keys_and_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first = load_or_create_keys(path)
    written = path.read_bytes()
    assert load_or_create_keys(path).to_json() == first.to_json()
    assert path.read_bytes() == written


def test_reading_alone_makes_nothing_and_tells_who_does(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="relayctl start") as caught:
        load_keys(path)
    assert caught.value.field == str(path)
    assert not path.exists()
    assert load_or_create_keys(path).to_json() == load_keys(path).to_json()


def test_file_in_rotation_is_read(tmp_path: Path) -> None:
    document = {"sealing": 2, "keys": [GOOD_KEY, {"id": 2, "secret": b64encode(bytes(range(32))).decode()}]}
    keys = load_or_create_keys(write_keys(tmp_path / "keys.json", document))
    assert keys.sealing.key_id == 2
    assert keys.get(1) is not None
    assert keys.to_json() == document


@pytest.mark.parametrize(
    ("document", "field"),
    [
        pytest.param("", "line 1", id="empty file"),
        pytest.param('{"sealing": 1,\n', "line 2", id="cut short"),
        pytest.param(f"{SECRET}\n", "line 1", id="a bare secret"),
        pytest.param([GOOD_KEY], '"sealing"', id="a list"),
        pytest.param({"keys": [GOOD_KEY]}, '"sealing"', id="no sealing key"),
        pytest.param({"sealing": "1", "keys": [GOOD_KEY]}, '"sealing"', id="sealing key is a string"),
        pytest.param({"sealing": True, "keys": [GOOD_KEY]}, '"sealing"', id="sealing key is a boolean"),
        pytest.param({"sealing": 2, "keys": [GOOD_KEY]}, "sealing key 2", id="sealing key is not there"),
        pytest.param({"sealing": 1}, '"keys"', id="no keys"),
        pytest.param({"sealing": 1, "keys": []}, '"keys"', id="empty keys"),
        pytest.param({"sealing": 1, "keys": GOOD_KEY}, '"keys"', id="keys are no list"),
        pytest.param({"sealing": 1, "keys": SECRET}, '"keys"', id="keys are a string"),
        pytest.param({"sealing": 1, "keys": [GOOD_KEY, SECRET]}, "keys[1]", id="a key is a string"),
        pytest.param({"sealing": 1, "keys": [{"secret": SECRET}]}, "keys[0]", id="no id"),
        pytest.param({"sealing": 1, "keys": [{"id": "1", "secret": SECRET}]}, "keys[0]", id="id is a string"),
        pytest.param({"sealing": 1, "keys": [{"id": True, "secret": SECRET}]}, "keys[0]", id="id is boolean"),
        pytest.param({"sealing": 1, "keys": [{"id": 256, "secret": SECRET}]}, "keys[0]", id="id too large"),
        pytest.param({"sealing": 1, "keys": [{"id": -1, "secret": SECRET}]}, "keys[0]", id="id negative"),
        pytest.param({"sealing": 1, "keys": [GOOD_KEY, {"id": 2}]}, "keys[1]", id="no secret"),
        pytest.param(
            {"sealing": 1, "keys": [{"id": 1, "secret": SECRET[:-4]}]}, "keys[0]", id="secret too short"
        ),
        pytest.param(
            {"sealing": 1, "keys": [{"id": 1, "secret": "!" + SECRET[1:]}]}, "keys[0]", id="secret not base64"
        ),
        pytest.param(
            {"sealing": 1, "keys": [{"id": 1, "secret": "ä" + SECRET[1:]}]}, "keys[0]", id="secret not ASCII"
        ),
        pytest.param({"sealing": 1, "keys": [GOOD_KEY, GOOD_KEY]}, "keys", id="one id twice"),
    ],
)
def test_broken_file_is_refused_by_name_and_keeps_its_secret(
    tmp_path: Path, document: Any, field: str
) -> None:
    path = write_keys(tmp_path / "keys.json", document)
    with pytest.raises(ConfigError) as caught:
        load_or_create_keys(path)
    assert caught.value.field == str(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert field in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value))
    assert SECRET[1:20] not in shown
    assert SECRET[1:20] not in repr(caught.value)


def test_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(b"\xff\xfe\x00keys")
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_or_create_keys(path)
    assert caught.value.field == str(path)


def test_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", {"sealing": 1, "keys": [GOOD_KEY]})
    path.chmod(0o644)
    for load in (load_or_create_keys, load_keys):
        with pytest.raises(ConfigError, match=f"chmod 600 {path}"):
            load(path)


def test_refused_file_is_left_as_it_was(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", "{}")
    with pytest.raises(ConfigError):
        load_or_create_keys(path)
    assert path.read_text() == "{}"


def test_secret_is_in_no_repr(tmp_path: Path) -> None:
    keys = load_or_create_keys(write_keys(tmp_path / "keys.json", {"sealing": 1, "keys": [GOOD_KEY]}))
    for shown in (repr(keys), str(keys), repr(keys.sealing), str(keys.sealing), f"{keys.get(1)}"):
        assert SECRET not in shown
        assert "not shown" not in shown
