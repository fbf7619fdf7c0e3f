"""What systemd is told, by a socket that stands for it."""

import os
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from host.service_manager import ServiceManager


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET, and where it leads to."""
    address = (
        str(tmp_path / "notify") if request.param == "path" else f"@relayctl-test-{secrets.token_hex(8)}"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(address.replace("@", "\0"))
        sock.settimeout(5)
        yield address, sock


@pytest.mark.parametrize(
    ("variables", "datagram"),
    [
        pytest.param({"READY": 1}, b"READY=1", id="one variable"),
        pytest.param({"READY": 1, "STATUS": "runs"}, b"READY=1\nSTATUS=runs", id="a line each, in order"),
        pytest.param({"STATUS": "a = b; ü"}, "STATUS=a = b; ü".encode(), id="UTF-8"),
        pytest.param(
            {"STATUS": "bad\nREADY=1\r\nX"}, b"STATUS=bad READY=1 X", id="no value makes a line of its own"
        ),
        pytest.param({"EXTEND_TIMEOUT_USEC": 35_000_000}, b"EXTEND_TIMEOUT_USEC=35000000", id="a number"),
    ],
)
def test_variables_arrive_as_one_datagram(
    manager: tuple[str, socket.socket], variables: dict[str, str | int], datagram: bytes
) -> None:
    address, sock = manager
    ServiceManager(address).tell(**variables)
    assert sock.recv(4096) == datagram
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)


def test_variable_is_taken_from_the_environment_and_kept_for_a_successor() -> None:
    environment = {"NOTIFY_SOCKET": "/run/notify", "HOME": "/"}
    manager = ServiceManager.take_from(environment)
    assert environment == {"HOME": "/"}
    assert manager.environment == {"NOTIFY_SOCKET": "/run/notify"}


def test_nobody_is_told_where_nobody_asked(caplog: pytest.LogCaptureFixture) -> None:
    manager = ServiceManager.take_from({})
    manager.tell(READY=1)
    assert (manager.environment, caplog.messages) == ({}, [])


@pytest.mark.parametrize(
    ("address", "why"),
    [
        pytest.param("/nonexistent/notify", "No such file", id="nobody listens"),
        pytest.param("/" + "x" * 200, "too long", id="longer than an address may be"),
        pytest.param("vsock:2:1234", "neither a path nor an abstract", id="a machine's supervisor"),
        pytest.param("relative", "neither a path nor an abstract", id="relative"),
    ],
)
def test_failure_is_logged_and_ends_nothing(address: str, why: str, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager(address).tell(READY=1, STATUS="runs")
    (message,) = caplog.messages
    assert "READY, STATUS" in message
    assert why in message


def test_manager_that_does_not_read_holds_up_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        manager = ServiceManager(str(tmp_path / "notify"))
        for _ in range(10_000):
            manager.tell(STATUS="x" * 1000)
            if caplog.messages:
                break
    assert os.strerror(11) in caplog.messages[0]
