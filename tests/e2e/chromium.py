"""A real Chromium on the demo page: called with, and asked what it sent, heard and lost."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page

from bench.chromium import CONNECT_TIMEOUT_S, as_secure, chromium
from tests.e2e.instance import Instance, wait_until

_COUNTS_INTERVAL_MS = 100
# Of the selected pair, its consent checks (RFC 7675); `lost_up` is what the far end's reports say.
_COUNTS = """async () => {
    const stats = [...(await relayDemo.pc.getStats()).values()];
    const audio = type => stats.find(s => s.type === type && s.kind === "audio") ?? {};
    const pair = stats.find(s => s.type === "candidate-pair" && s.nominated && s.state === "succeeded") ?? {};
    const inbound = audio("inbound-rtp"), farEnd = audio("remote-inbound-rtp");
    return {
        sent: audio("outbound-rtp").packetsSent ?? 0,
        received: inbound.packetsReceived ?? 0,
        lost_down: inbound.packetsLost ?? 0,
        lost_up: farEnd.packetsLost ?? -1,
        reports: farEnd.roundTripTimeMeasurements ?? 0,
        checks: pair.requestsSent ?? 0,
        answers: pair.responsesReceived ?? 0,
        echoes: relayDemo.echoes,
    };
}"""


class PageCall:
    """A call of the page, connected."""

    def __init__(self, page: Page) -> None:
        self.page = page

    def counts(self) -> dict[str, int]:
        """What it sent, heard and lost up to now: audio packets, checks, echoes of its data channel."""
        return dict(self.page.evaluate(_COUNTS))

    def wait_for_audio(self) -> None:
        """Until the echo of its own beeps is heard."""
        wait_until(lambda: self.page.evaluate("relayDemo.remoteLevel") > 0.02, 20, "own voice in the echo")

    def wait_for_more(self, before: dict[str, int], timeout_s: float = 30.0, **least: int) -> dict[str, int]:
        """Until each of these counts has grown by so much since ``before``; the counts then."""

        def has_grown() -> dict[str, int] | None:
            # getStats is work for the browser
            self.page.wait_for_timeout(_COUNTS_INTERVAL_MS)
            now = self.counts()
            return now if all(now[name] - before[name] >= more for name, more in least.items()) else None

        return dict(wait_until(has_grown, timeout_s, f"{least} more than {before}"))


@contextlib.contextmanager
def page_call(instance: Instance, profile: Path, *, expected: str = "") -> Iterator[PageCall]:
    """A call from this host by the page of an instance beyond loopback, hung up at the end.

    The page logs no error but those that contain ``expected``.
    """
    origin = instance.url.rstrip("/")
    problems: list[str] = []

    def note(message: Any) -> None:
        if message.type == "error" and not (expected and expected in message.text):
            problems.append(message.text)

    with chromium(profile, as_secure(origin)) as context:
        page = context.pages[0]
        page.on("console", note)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{origin}/#token={instance.token}")
        page.click("#call")
        page.wait_for_selector('#state[data-state="connected"]', timeout=CONNECT_TIMEOUT_S * 1000)
        yield PageCall(page)
        assert page.get_attribute("#state", "data-state") == "connected"
        page.click("#call")
        wait_until(lambda: not instance.sessions(), 10, "hang up ends the session")
        assert problems == []
