"""A Chromium call whose packets come to the relay with VLAN tags: the answers bear the same."""

from pathlib import Path

import pytest

from tests.e2e.carried import Carried
from tests.e2e.chromium import page_call
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, print_report, wait_until
from tests.e2e.tagger import Tagger, two_armed_by_a_tagger
from tests.e2e.three_hosts import IPV4, relay_of, transceiver_of, wait_until_in_kernel
from tests.e2e.xdp import need_network

pytestmark = [pytest.mark.e2e, pytest.mark.bpf, pytest.mark.netns, pytest.mark.slow]

# A second of the call
LEAST = 50


def talk_with_tags(relay: Instance, tagger: Tagger, tags: int) -> dict[str, int]:
    """Until packets have gone both ways with that many tags, and none without; what the tagger counted."""
    tagger.put_on(tags)
    began = tagger.counts()
    wait_until(
        lambda: tagger.counts()[f"down {tags}"] > began[f"down {tags}"], 10, f"{tags} tags on an answer"
    )
    # An answer may have crossed the client's first packet with other tags.
    before, carried = tagger.counts(), Carried.now(relay)

    def news() -> dict[str, int]:
        return {name: count - before[name] for name, count in tagger.counts().items() if count - before[name]}

    wait_until(
        lambda: min(news().get(f"up {tags}", 0), news().get(f"down {tags}", 0)) >= LEAST, 20, f"{tags} tags"
    )
    assert news().keys() == {f"up {tags}", f"down {tags}"}
    assert Carried.now(relay).by_workers == carried.by_workers
    return news()


def test_answers_bear_the_tags_of_the_client(own_network: Network | None, tmp_path: Path) -> None:
    need_network(own_network)
    with (
        two_armed_by_a_tagger() as (site, tagger),
        relay_of(site, IPV4, tmp_path) as relay,
        transceiver_of(site, IPV4, tmp_path) as transceiver,
        page_call(transceiver, tmp_path / "profile") as call,
    ):
        # Tagged packets that are handed up find no VLAN device, and so no worker.
        wait_until_in_kernel(relay)
        talks = [talk_with_tags(relay, tagger, tags) for tags in (1, 2, 0, 2, 1)]
        heard = call.wait_for_more(call.counts(), sent=50, received=50, echoes=4, answers=1, reports=2)
        call.wait_for_audio()
        tagger.put_on(0)
    print_report("Chromium call with VLAN tags", {**heard, "talks": talks})
    assert (heard["lost_up"], heard["lost_down"]) == (0, 0)
