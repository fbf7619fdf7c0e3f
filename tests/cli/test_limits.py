"""Hosts whose transceivers are out of memory or CPU time, by limits that every process exceeds: 503, and why."""

import socket

import pytest

from tests.cli.relayctl import Relayctl
from tests.cli.transceiver_host import TransceiverHost
from tests.host.deadline import wait_until
from tests.ports import free_port

pytestmark = pytest.mark.slow

NAME = "transceiver-0"


@pytest.mark.parametrize(
    ("setting", "full", "words"),
    [
        ("max_memory_mb = 1", "memory", "transceiver.max_memory_mb is 1\n"),
        ("max_cpu = 0.000001", "cpu", "transceiver.max_cpu is 1e-06\n"),
    ],
)
def test_full_host_refuses_and_says_why(relayctl: Relayctl, setting: str, full: str, words: str) -> None:
    config = relayctl.state_dir.parent / "c.toml"
    config.write_text(f"[transceiver]\nlisten = '127.0.0.1:{free_port(socket.SOCK_DGRAM)}'\n{setting}\n")
    relayctl.start("--config", str(config))
    host = TransceiverHost(relayctl)
    wait_until(lambda: host.row(NAME)["full"] == full, "it is seen to be full")
    status, _, _ = host.offer()  # which checks Retry-After, too
    assert (status, host.health()) == (503, 200)
    [row] = relayctl.json("transceivers", "status")
    assert (row["state"], row["full"], row["refused"]) == ("ready", full, {full: 1})
    [process] = relayctl.status()["transceivers"]["processes"]
    assert process["full"] == full
    assert f"{NAME} takes no new sessions: {full}; " in relayctl.run("status").stdout
    for command in (("status",), ("list",)):
        assert f" {full} " in relayctl.run("transceivers", *command).stdout
    assert "answered 503" in relayctl.run("transceivers", "status").stdout
    log = relayctl.log()
    assert log.count("no new sessions: ") == 1, "once, not every quarter of a second"
    assert words in log
