"""Firefox, many of whose checks come without USE-CANDIDATE once it has nominated a pair (RFC 7675 asks for none)."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from bench.path import Kind
from tests.e2e.attacker import Attacker
from tests.e2e.conftest import Network
from tests.e2e.firefox import Tab, firefox_call, need_firefox
from tests.e2e.instance import print_report
from tests.e2e.survival import only_session
from tests.e2e.xdp import VIP, need_network, xdp_relay
from tests.host.deadline import until
from transceiver.ice import CONSENT_S
from wire.stun import parse_stun_untrusted

pytestmark = [pytest.mark.e2e, pytest.mark.netns, pytest.mark.slow]

_COUNTS = """(async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    const of = type => stats.find(s => s.type === type) ?? {};
    return {
        received: of("inbound-rtp").packetsReceived ?? 0,
        energy: of("inbound-rtp").totalAudioEnergy ?? 0,
        lost_down: of("inbound-rtp").packetsLost,
        lost_up: of("remote-inbound-rtp").packetsLost,
        sent: of("outbound-rtp").packetsSent ?? 0,
        echoes: relayDemo.echoes,
    };
})()"""


async def counts(tab: Tab) -> dict[str, Any]:
    return dict(await tab.evaluate(_COUNTS))


async def test_firefox_call_lasts_longer_than_a_consent(own_network: Network | None, tmp_path: Path) -> None:
    need_firefox()
    network = need_network(own_network)
    with xdp_relay(network, tmp_path / "s") as instance, Attacker.on(network, VIP) as listener:
        async with firefox_call(instance, tmp_path / "profile") as tab:
            first, began = await counts(tab), time.monotonic()
            while time.monotonic() - began < CONSENT_S + 10:
                before = await counts(tab)
                await asyncio.sleep(5)
                listener.listen(None)
                now = await counts(tab)
                assert all(now[name] > before[name] for name in ("received", "energy", "sent", "echoes"))
            session = only_session(instance)
            assert session["state"] == "connected"
            assert (now["lost_down"], now["lost_up"]) == (0, 0)
            checks = [parse_stun_untrusted(datagram) for datagram in listener.captured[Kind.STUN]]
            consent = [check for check in checks if check.is_binding_request and not check.use_candidate]
            # A session ends 30 s after the last check; how many there are, and whether one nominates, differs from run to run.
            assert checks
        await until(lambda: not instance.sessions(), "hang up ends the session")
        print_report(
            "Firefox",
            {
                "seconds": round(time.monotonic() - began, 1),
                "received": now["received"] - first["received"],
                "lost": 0,
                "checks without USE-CANDIDATE": f"{len(consent)} of {len(checks)}",
                "longest gap up_ms": session["longest_gap_ms"],
            },
        )
