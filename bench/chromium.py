"""A real Chromium, headless, with a fake microphone that beeps."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import BrowserContext, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
    "--autoplay-policy=no-user-gesture-required",
]
CONNECT_TIMEOUT_S = 30.0


@contextlib.contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[BrowserContext]:
    """For the life of the block, with a new profile."""
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=CHROMIUM,
            args=[*FLAGS, *flags],
            viewport={"width": 1280, "height": 860},
        )
        try:
            yield context
        finally:
            context.close()


def as_secure(origin: str) -> str:
    """The flag by which a page without TLS, beyond loopback, may use a microphone."""
    return f"--unsafely-treat-insecure-origin-as-secure={origin}"
