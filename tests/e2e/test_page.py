"""The demo page in a real Chromium, in a call through the relay."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from bench.chromium import as_secure, chromium
from tests.e2e.conftest import Network
from tests.e2e.instance import Instance, free_port, print_report, running, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@contextlib.contextmanager
def served(network: Network | None, state_dir: Path) -> Iterator[tuple[Instance, str, list[str], list[str]]]:
    """relayctl on a host of its own, beyond loopback: (instance, page URL, Chromium flags, VIPs)."""
    if network is None:
        port = free_port()
        with running(state_dir, "--listen", f"127.0.0.1:{port}") as instance:
            yield instance, instance.url, [], [f"127.0.0.1:{port}"]
        return
    vips = ["203.0.113.10:3478", "[2001:db8::10]:3478"]
    arguments = [argument for vip in vips for argument in ("--listen", vip)]
    with contextlib.ExitStack() as stack:
        with network.there:
            instance = stack.enter_context(
                running(state_dir, *arguments, "--insecure", http="198.51.100.1:8080")
            )
        token = (state_dir / "bearer_token").read_text().strip()
        origin = instance.url.rstrip("/")
        yield (
            instance,
            f"{origin}/#token={token}",
            [as_secure(origin)],
            vips,
        )


def number(page: Page, selector: str) -> float:
    """The first number in an element's text; 0.0 while there is none."""
    text = "".join(
        c for c in (page.text_content(selector) or "").replace("\u202f", "") if c.isdigit() or c == "."
    )
    return float(text or 0)


_REMOTE_CANDIDATES = """async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    return stats.filter(s => s.type === "remote-candidate").map(s => `${s.address}:${s.port}/${s.candidateType}`);
}"""
_TRANSPORT = """async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    const {bytesSent, bytesReceived, dtlsState} = stats.find(s => s.type === "transport");
    return {bytesSent, bytesReceived, dtlsState};
}"""


def test_page_call_connects_through_the_relay_and_hears_itself(
    own_network: Network | None, tmp_path: Path
) -> None:
    with served(own_network, tmp_path / "s") as (instance, url, flags, vips):
        with chromium(tmp_path / "profile", *flags) as context:
            page = context.pages[0]
            problems: list[str] = []
            page.on(
                "console", lambda message: problems.append(message.text) if message.type == "error" else None
            )
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.goto(url)
            page.click("#call")
            page.wait_for_selector('#state[data-state="connected"]', timeout=15_000)
            wait_until(lambda: page.evaluate("relayDemo.echoes") >= 8, 10, "data channel echoes")
            wait_until(lambda: page.evaluate("relayDemo.remoteLevel") > 0.02, 10, "own voice in the echo")
            wait_until(lambda: number(page, "#packets-received") > 100, 10, "packets counted on the page")

            plain = [vip.replace("[", "").replace("]", "") for vip in vips]
            candidates = page.evaluate(_REMOTE_CANDIDATES)
            assert sorted(candidates) == sorted(f"{vip}/host" for vip in plain)
            transport = page.evaluate(_TRANSPORT)
            assert transport["dtlsState"] == "connected"
            assert transport["bytesSent"] > 10_000
            assert transport["bytesReceived"] > 10_000
            (session,) = instance.sessions()
            assert session["state"] == "connected"
            assert instance.verdicts()["forward_flow"] > 100
            picture = os.environ.get("RELAYCTL_SCREENSHOT")
            if picture:
                page.wait_for_timeout(6000)
                page.screenshot(path=picture, full_page=True)
            report: dict[str, Any] = {
                "remote candidates": candidates,
                **transport,
                "rtt_median": page.text_content("#rtt-median"),
                "packets_lost": page.text_content("#packets-lost"),
                "phases_s": session["phases_s"],
            }
            page.click("#call")
            wait_until(lambda: not instance.sessions(), 5, "hang up ends the session")
            assert problems == []
            print_report("Chromium call", report)
