"""``relayctl init`` writes a commented configuration and overwrites nothing unasked."""

import stat
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.config import TEMPLATE
from cli.main import EXIT_FAILED, cli
from host.config_table import TABLES


def run_init(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, ["init", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result


def test_writes_the_template_and_says_what_is_next(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    result = run_init(str(path))
    assert result.exit_code == 0
    assert path.read_text() == TEMPLATE
    assert f"relayctl start --config {path}" in result.stdout
    assert stat.S_ISREG(path.stat().st_mode)


def test_default_name_is_in_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_init().exit_code == 0
    assert (tmp_path / "relayctl.toml").read_text() == TEMPLATE


def test_dash_prints_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_init("-").stdout == TEMPLATE
    assert list(tmp_path.iterdir()) == []


def test_user_is_set_and_all_else_is_the_template(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    assert run_init(str(path), "--user", 'relay-"user').exit_code == 0
    assert tomllib.loads(path.read_text()) == {
        **{table: {} for table in TABLES},
        "host": {"user": 'relay-"user'},
    }
    changed = set(path.read_text().splitlines()) ^ set(TEMPLATE.splitlines())
    assert len(changed) == 2


def test_file_that_is_there_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("mine")
    result = run_init(str(path))
    assert result.exit_code == EXIT_FAILED
    assert result.stderr == f"relayctl: {path} is there already; --force overwrites it\n"
    assert path.read_text() == "mine"


def test_force_overwrites(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("mine" * 10_000)
    assert run_init(str(path), "--force").exit_code == 0
    assert path.read_text() == TEMPLATE


def test_missing_directory_is_named(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "my.toml"
    result = run_init(str(path))
    assert result.exit_code == EXIT_FAILED
    assert result.stderr == f"relayctl: cannot write {path} (No such file or directory)\n"
