"""What XDP does with packets of no known flow, and with every packet while no worker lives."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from relay.core.flow import Flow, FlowKey
from relay.core.policy import RelayPolicy
from relay.core.verdict import Verdict
from relay.dataplane.bpf.flow_store import KernelFlowStore
from relay.dataplane.bpf.programs import RelayPrograms
from tests.bpf.frames import judge, udp_frame
from tests.bpf.loading import FLEET_SOCKETS, HASH_KEY, PATIENT, beat, load
from tests.relay.network import (
    CALL,
    CLIENT_V4,
    CLIENT_V6,
    FLEET_SOCKET_V4,
    LISTEN_V4,
    POLICY,
    RTP,
    VIP_V4,
    VIP_V6,
    spp,
)
from wire.address import Address

pytestmark = pytest.mark.bpf

BURST = 5
# a bucket that never fills again, however slow the machine is
LIMITED = replace(PATIENT, unknown_per_s=0, unknown_burst=BURST)
# VIP_V6 is where it listens, too; the IPv4 one is behind a 1:1 NAT.
FROM_V4, FROM_V6 = udp_frame(CLIENT_V4, LISTEN_V4, RTP), udp_frame(CLIENT_V6, VIP_V6, RTP)


@contextmanager
def loaded(policy: RelayPolicy) -> Iterator[RelayPrograms]:
    programs = load(policy)
    try:
        yield programs
    finally:
        programs.close()


def use_up(programs: RelayPrograms, client: Address) -> None:
    """Send from a client until its source is limited."""
    frame = udp_frame(client, LISTEN_V4 if client.family == 4 else VIP_V6, RTP)
    verdicts = [judge(programs, frame) for _ in range(4 * BURST)]
    assert verdicts == [Verdict.HAND_UP] * BURST + [Verdict.DROP_RATE_LIMITED] * 3 * BURST


def flow_of(client: Address, vip: Address, *, assured: bool) -> Flow:
    return Flow(FlowKey(client, vip), CALL.transceiver, CALL.tag, 1.0, 1.0, 1.0, assured=assured)


@pytest.mark.parametrize("assured", [False, True], ids=["provisional", "assured"])
@pytest.mark.parametrize(
    ("client", "vip", "frame"),
    [(CLIENT_V4, VIP_V4, FROM_V4), (CLIENT_V6, VIP_V6, FROM_V6)],
    ids=["IPv4", "IPv6"],
)
def test_known_flow_is_never_limited(client: Address, vip: Address, frame: bytes, assured: bool) -> None:
    with loaded(LIMITED) as programs:
        store = KernelFlowStore(programs.maps["flows"].fd, programs.maps["provisional"].fd, LIMITED.vips)
        use_up(programs, client)
        assert store.write(flow_of(client, vip, assured=assured))
        assert [judge(programs, frame) for _ in range(4 * BURST)] == [Verdict.HAND_UP] * 4 * BURST
        # another port of the same host is no known flow
        stranger = udp_frame(
            Address(client.host, client.port + 1), LISTEN_V4 if client.family == 4 else VIP_V6, RTP
        )
        assert judge(programs, stranger) is Verdict.DROP_RATE_LIMITED


@pytest.mark.parametrize(
    ("bits", "flooder", "other", "is_limited"),
    [
        pytest.param((32, 64), "198.51.100.7", "198.51.100.7", True, id="another port of an IPv4 host"),
        pytest.param((32, 64), "198.51.100.7", "198.51.100.6", False, id="an IPv4 neighbour"),
        pytest.param((24, 64), "198.51.100.7", "198.51.100.255", True, id="within an IPv4 /24"),
        pytest.param((24, 64), "198.51.100.255", "198.51.101.0", False, id="beside an IPv4 /24"),
        pytest.param((20, 64), "198.51.96.0", "198.51.111.255", True, id="within an IPv4 /20"),
        pytest.param((20, 64), "198.51.111.255", "198.51.112.0", False, id="beside an IPv4 /20"),
        pytest.param((32, 64), "2001:db8:c:1::7", "2001:db8:c:1:ffff::", True, id="within an IPv6 /64"),
        pytest.param((32, 64), "2001:db8:c:1::7", "2001:db8:c:2::7", False, id="beside an IPv6 /64"),
        pytest.param((32, 48), "2001:db8:c:1::7", "2001:db8:c:ffff::7", True, id="within an IPv6 /48"),
        pytest.param((32, 48), "2001:db8:c::7", "2001:db8:d::7", False, id="beside an IPv6 /48"),
        pytest.param((32, 128), "2001:db8:c::7", "2001:db8:c::6", False, id="beside an IPv6 address"),
        pytest.param((32, 100), "2001:db8:c::7", "2001:db8:c::fff:ffff", True, id="within an IPv6 /100"),
        pytest.param((24, 48), "198.51.100.7", "2001:db8:c::7", False, id="the other family"),
    ],
)
def test_one_source_is_as_wide_as_configured(
    bits: tuple[int, int], flooder: str, other: str, is_limited: bool
) -> None:
    policy = replace(LIMITED, ipv4_source_bits=bits[0], ipv6_source_bits=bits[1])
    first, second = Address.from_host(flooder, 40_000), Address.from_host(other, 40_001)
    with loaded(policy) as programs:
        use_up(programs, first)
        verdict = judge(programs, udp_frame(second, LISTEN_V4 if second.family == 4 else VIP_V6, RTP))
        assert verdict is (Verdict.DROP_RATE_LIMITED if is_limited else Verdict.HAND_UP)
    # the worker's own bounds take the same for one source
    assert (policy.source_prefix(first.host) == policy.source_prefix(second.host)) is is_limited


@pytest.mark.parametrize(
    ("idle_ns", "packets"),
    [
        pytest.param(500_000, 0, id="half a packet's time"),
        pytest.param(3_500_000, 3, id="some packets' time"),
        pytest.param(10**15, BURST, id="days: no more than a burst"),
    ],
)
def test_bucket_fills_with_time(idle_ns: int, packets: int) -> None:
    with loaded(LIMITED) as programs:
        use_up(programs, CLIENT_V4)
        ((source, bucket),) = programs.maps["buckets"].items()
        now = time.monotonic_ns()
        bucket.nano_tokens, bucket.filled_ns = 0, now - idle_ns
        programs.maps["buckets"].put(source, bucket)
        programs.configure(replace(LIMITED, unknown_per_s=1000), FLEET_SOCKETS, HASH_KEY)
        passed = [judge(programs, FROM_V4) for _ in range(3 * BURST)].count(Verdict.HAND_UP)
        earned = (time.monotonic_ns() - now) // 1_000_000 + 1  # while we asked
        assert packets <= passed <= packets + earned


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(FROM_V4, id="from a client"),
        pytest.param(FROM_V6, id="from an IPv6 client"),
        pytest.param(
            udp_frame(Address.parse("10.1.2.3:5000"), FLEET_SOCKET_V4, spp(CLIENT_V4, VIP_V4, RTP)),
            id="from a transceiver",
        ),
    ],
)
def test_nothing_is_handed_up_to_dead_workers(frame: bytes) -> None:
    with loaded(replace(POLICY, heartbeat_timeout_s=60.0)) as programs:
        assert judge(programs, frame) is Verdict.HAND_UP
        beat(programs, 0, ago_s=61)
        assert judge(programs, frame) is Verdict.DROP_NO_WORKER
        beat(programs, 0, ago_s=59)
        assert judge(programs, frame) is Verdict.HAND_UP


def test_nothing_is_handed_up_before_the_first_beat() -> None:
    with loaded(PATIENT) as programs:
        programs.maps["heartbeat"].put(0, programs.maps["heartbeat"].layout.value(0))
        # time since boot is less than the time-out on a machine that has just started
        programs.configure(replace(POLICY, heartbeat_timeout_s=1.0), FLEET_SOCKETS, HASH_KEY)
        assert judge(programs, FROM_V4) is Verdict.DROP_NO_WORKER


def test_any_slot_s_beat_is_a_sign_of_life() -> None:
    with loaded(replace(POLICY, heartbeat_timeout_s=60.0)) as programs:
        beat(programs, 0, ago_s=61)
        beat(programs, 63)
        assert judge(programs, FROM_V4) is Verdict.HAND_UP
