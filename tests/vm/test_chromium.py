"""Chromium on the client's host, driven from here by its DevTools port: media both ways through the relay."""

import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from bench.chromium import CHROMIUM, FLAGS, as_secure
from tests.e2e.chromium import PageCall
from tests.measured import note_measured
from tests.ports import free_port
from tests.vm.site import ClientNode, Site, wait_for

pytestmark = pytest.mark.vm("chromium")

_DEVTOOLS_PORT = 9222
_PACKETS = 250
# For one step of a browser in an emulated machine.
_STEP_S = 300.0
# The page gives a call 30 s to come up.
_ATTEMPTS = 4


def test_chromium_calls_with_the_page(site: Site, tmp_path: Path) -> None:
    to = site.transceivers[0]
    origin = to.entry.url.rstrip("/")
    with _browser(site.client, origin, tmp_path) as browser:
        page = browser.contexts[0].new_page()
        page.set_default_timeout(_STEP_S * 1000)
        page.goto(f"{origin}/#token={to.token()}")
        attempts = _call(page)
        call = PageCall(page)
        before = call.counts()
        counts = call.wait_for_more(before, _STEP_S, sent=_PACKETS, received=_PACKETS, answers=1, reports=1)
        wait_for(lambda: page.evaluate("relayDemo.remoteLevel") > 0.02, _STEP_S, "own beeps in the echo")
        [session] = to.sessions()
        flow = site.relay.flows_of(site.client.addresses())[0]
        assert (session["client"], session["vip"]) == (flow["client"], flow["vip"])
        note_measured(
            f"{browser.version}, up at attempt {attempts}, {flow['client']} by {flow['vip']}: {counts}"
        )
        page.click("#call")
        wait_for(lambda: not to.sessions(), _STEP_S, "hang up ends the session")
    assert max(counts["lost_up"], counts["lost_down"]) <= site.inventory.max_loss * _PACKETS / 100


def _call(page: Page) -> int:
    """Until it is connected; at which attempt."""
    for attempt in range(1, _ATTEMPTS + 1):
        page.click("#call")
        with contextlib.suppress(PlaywrightError):
            page.wait_for_selector('#state[data-state="connected"]', timeout=60_000)
            return attempt
    pytest.fail(f"the page is not connected after {_ATTEMPTS} attempts: {page.inner_text('#state')}")


@contextlib.contextmanager
def _browser(client: ClientNode, origin: str, directory: Path) -> Iterator[Browser]:
    """Its standard input is ssh's: it ends when that does."""
    host = client.host
    host.run("test", "-x", CHROMIUM)
    profile = host.run("mktemp", "-d", "/tmp/relayctl-vm-chromium-XXXXXX").strip()
    flags = [
        *FLAGS,
        as_secure(origin),
        f"--remote-debugging-port={_DEVTOOLS_PORT}",
        f"--user-data-dir={profile}",
    ]
    # cat ends with standard input, and the browser after it.
    script = '"$@" </dev/null >/dev/null 2>&1 & browser=$!; cat >/dev/null; kill $browser; wait $browser'
    process = host.start(
        "sh", "-c", script, "sh", CHROMIUM, *flags, "about:blank", errors=directory / "errors"
    )
    port = free_port(socket.SOCK_STREAM)
    try:
        with host.forwarded(port, _DEVTOOLS_PORT), sync_playwright() as playwright:
            devtools = f"http://127.0.0.1:{port}"

            def connect() -> Browser | None:
                try:
                    return playwright.chromium.connect_over_cdp(devtools, timeout=_STEP_S * 1000)
                except PlaywrightError:
                    return None

            browser = wait_for(connect, _STEP_S, f"DevTools of Chromium on {client.name}")
            try:
                yield browser
            finally:
                browser.close()
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(60)
        assert process.stdout is not None
        process.stdout.close()
        host.run("rm", "-rf", profile)
