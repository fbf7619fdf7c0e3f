"""What an operator sees of a call on the relay's host agrees with the call."""

from typing import Any

import pytest

from tests.measured import note_measured
from tests.vm.calls import calling
from tests.vm.site import Site

pytestmark = pytest.mark.vm

_PACKETS = 100


def _dropped(site: Site) -> dict[str, int]:
    return {row["reason"]: row["packets"] for row in site.relay.relayctl_json("drops", "--all")}


def test_maps_flows_and_drops_agree_with_a_call(site: Site) -> None:
    relay = site.relay
    to = site.transceivers[-1]
    dropped = _dropped(site)
    with calling(site, to) as call:
        call.wait_for_packets(_PACKETS)
        flow = call.flow()
        [session] = to.sessions()
        before = _only(relay.relayctl_json("maps", "show", "flows", "--client", flow["client"]))
        call.wait_for_packets(_PACKETS)
        row = _only(relay.relayctl_json("maps", "get", "flows", flow["client"]))
        assert (session["client"], session["vip"]) == (flow["client"], flow["vip"])
        assert flow["client"].rpartition(":")[0].strip("[]") in site.client.addresses()
        assert flow["vip"] in call.latest()["vips"]
        assert row["transceiver"] == flow["transceiver"] == before["transceiver"]
        assert row["transceiver"].rpartition(":")[0].strip("[]") == to.entry.address
        assert row["state"] == "assured"
        assert row["client_path"].split()[0] == relay.entry.public_interface
        for way in ("up", "down"):
            assert row[f"packets_{way}"] - before[f"packets_{way}"] >= 0.9 * _PACKETS
        maps = {entry["name"]: entry for entry in relay.relayctl_json("maps", "list")["maps"]}
        assert maps["flows"]["used"] >= 1
        [hop] = [
            h
            for h in relay.relayctl_json("maps", "show", "next_hops")
            if h["transceiver_host"] == to.entry.address
        ]
        assert (hop["interface"], hop["from_mac"]) == (
            relay.entry.fleet_interface,
            relay.mac(relay.entry.fleet_interface),
        )
        note_measured(
            f"{len(maps)} maps; {row['client']} by {row['client_path']} to {row['transceiver']} by {hop['interface']}"
        )
        call.hang_up_without_loss("call")
    assert _dropped(site) == dropped


def _only(rows: list[dict[str, Any]]) -> dict[str, Any]:
    [row] = rows
    return row
