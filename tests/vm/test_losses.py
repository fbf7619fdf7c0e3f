"""What is read as a lost packet among a host's counters. Needs no hosts."""

import pytest

from tests.vm.losses import Losses, parse_losses

_SAID = """\
eth1/statistics/rx_packets:5000
eth1/statistics/rx_missed_errors:7
eth1 rx_no_buffer_count: 3
eth1 rx_queue_0_xdp_drops: 2
eth1 tx_packets: 90
eth1 rx_interrupts: 12
#kernel
IpOutRequests                   77                 0.0
UdpRcvbufErrors                 4                  0.0
TcpExtTCPTimeouts               9                  0.0
1:0000beef 00000010 0000000a 00000000 00000000
2:0000beef 00000000 00000000 00000000 00000000
1784246400
"""


def test_counters_of_losses_alone() -> None:
    assert parse_losses(_SAID) == Losses(
        {
            "eth1 rx_missed_errors": 7,
            "eth1 driver's rx_no_buffer_count": 3,
            "eth1 driver's rx_queue_0_xdp_drops": 2,
            "UdpRcvbufErrors": 4,
            "CPU 0 dropped": 16,
            "CPU 1 dropped": 0,
        },
        "1784246400",
    )


@pytest.mark.parametrize(
    "said", ["", "bash: grep: command not found", "eth1/statistics/rx_dropped:", "1:zz 00 00"]
)
def test_what_is_no_counter_is_none(said: str) -> None:
    assert parse_losses(said) == Losses({}, "0")


def test_grown() -> None:
    before = Losses({"a": 1, "b": 2, "gone": 3}, "1")
    after = Losses({"a": 1, "b": 5, "new": 4, "reset": 0}, "2")
    assert after.grown(before) == ["b 3", "new 4"]


@pytest.mark.parametrize(
    ("drivers", "told"), [(7, ["eth1 rx_errors 7"]), (9, ["eth1 rx_errors 7", "eth1 driver's rx_errors 9"])]
)
def test_what_driver_and_kernel_say_alike_is_told_once(drivers: int, told: list[str]) -> None:
    after = Losses({"eth1 rx_errors": 7, "eth1 driver's rx_errors": drivers}, "2")
    assert after.grown(Losses({}, "1")) == told
