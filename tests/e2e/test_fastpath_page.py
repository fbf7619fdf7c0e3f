"""A Chromium call that XDP carries from one host to another: workers see nothing of it.

Real sockets send, so checksums are partial; signaling goes through the same interfaces.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.e2e.carried import Carried
from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import print_report
from tests.e2e.three_hosts import (
    IPV4,
    IPV6,
    Plan,
    Site,
    one_armed,
    relay_of,
    transceiver_of,
    two_armed,
    wait_until_in_kernel,
)
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]


@pytest.mark.parametrize(
    ("topology", "plan"),
    [
        pytest.param(two_armed, IPV4, id="two interfaces, IPv4"),
        pytest.param(one_armed, IPV4, id="one interface, IPv4"),
        pytest.param(two_armed, IPV6, id="two interfaces, IPv6"),
    ],
)
def test_workers_see_nothing_of_a_call(
    own_network: Network | None,
    tmp_path: Path,
    topology: Callable[[], AbstractContextManager[Site]],
    plan: Plan,
    request: pytest.FixtureRequest,
) -> None:
    need_network(own_network)
    with (
        topology() as site,
        relay_of(site, plan, tmp_path) as relay,
        transceiver_of(site, plan, tmp_path) as transceiver,
        page_call(transceiver, tmp_path / "profile") as call,
    ):
        before, heard = wait_until_in_kernel(relay), call.counts()
        heard = call.wait_for_more(heard, sent=100, received=100, echoes=8, answers=1, reports=1)
        call.wait_for_audio()
        carried = Carried.now(relay).minus(before)
        (flow,) = relay.ask("flows")
        (session,) = transceiver.sessions()
        hops = relay.status()["relay"]["kernel"]["next_hops"]
    print_report(f"Chromium call by {request.node.callspec.id}", {**carried, **heard})
    assert carried["by_workers"] == 0
    # audio and data channel both ways, and the checks
    assert min(carried["up"], carried["flow_up"]) >= 100
    assert min(carried["down"], carried["flow_down"]) >= 100
    assert carried["stun"] >= 1
    assert (heard["lost_up"], heard["lost_down"]) == (0, 0)
    assert (flow["state"], flow["vip"]) == ("assured", plan.vip)
    assert flow["client"] == session["client"]
    (hop,) = hops
    assert (hop["host"], hop["interface"]) == (plan.transceiver_ip, site.interfaces[-1])
