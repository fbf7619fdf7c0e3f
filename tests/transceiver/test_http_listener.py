"""Where signaling listens after a supervisor that died, or became another one."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from host.errors import AddressInUseError
from host.sockets import bind_tcp, bound_address
from tests.ports import free_port
from transceiver.service import _listen_http
from wire.address import Address

_HOLD = """
import socket, sys, time
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    print("bound", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def address() -> Address:
    return Address.parse(f"127.0.0.1:{free_port(socket.SOCK_STREAM)}")


@pytest.fixture
def holder(address: Address) -> Iterator[int]:
    """The pid of a process that lets go of the address after a second."""
    command = [sys.executable, "-c", _HOLD, str(address.port), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "bound\n"
        yield process.pid


def test_address_is_waited_for_that_a_process_of_ours_is_about_to_leave(
    address: Address, holder: int
) -> None:
    with closing(_listen_http(address, {holder}, None)) as listener:
        assert bound_address(listener) == address


def test_address_of_a_stranger_is_refused_at_once(address: Address, holder: int) -> None:
    began = time.monotonic()
    with pytest.raises(AddressInUseError, match=f"pid {holder}"):
        _listen_http(address, {holder + 1}, None)
    with pytest.raises(AddressInUseError):
        _listen_http(address, set(), None)
    assert time.monotonic() - began < 0.9, "the holder would have let go"


def test_predecessors_socket_is_gone_on_with_also_if_it_was_shut(address: Address) -> None:
    with closing(bind_tcp("test", address)) as predecessors:
        predecessors.shutdown(socket.SHUT_RDWR)
        assert _listen_http(address, set(), predecessors) is predecessors
        with socket.create_connection(("127.0.0.1", address.port), 5):
            pass
        any_port = Address(address.host, 0)
        assert _listen_http(any_port, set(), predecessors) is predecessors


def test_predecessors_socket_gives_way_to_another_address(address: Address) -> None:
    predecessors = bind_tcp("test", Address(address.host, 0))
    with closing(_listen_http(address, set(), predecessors)) as listener:
        assert bound_address(listener) == address
    assert predecessors.fileno() == -1
