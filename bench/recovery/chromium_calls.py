"""Calls of the demo page, a tab each: ``python -m bench.recovery.chromium_calls URL TOKEN_FILE COUNT``.

Each line of standard input is answered by one line of JSON: how each call is. The browser closes when standard input ends.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from playwright.sync_api import Error, Page

from bench.chromium import CONNECT_TIMEOUT_S, as_secure, chromium

# Only the tab in front has the attention of a browser.
_FLAGS = (
    "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
)


def _tell(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def _state(page: Page) -> dict[str, Any]:
    return {
        "state": page.get_attribute("#state", "data-state"),
        "answered": page.evaluate("relayDemo.echoes"),
    }


def _run(url: str, token: str, count: int) -> None:
    origin = url.rstrip("/")
    with (
        tempfile.TemporaryDirectory() as profile,
        chromium(Path(profile), as_secure(origin), *_FLAGS) as context,
    ):
        pages = [context.pages[0], *(context.new_page() for _ in range(count - 1))]
        try:
            for page in pages:
                page.goto(f"{origin}/#token={token}")
                page.click("#call")
                page.wait_for_selector('#state[data-state="connected"]', timeout=CONNECT_TIMEOUT_S * 1000)
        except Error as error:
            _tell({"error": f"Chromium's call is not up: {error}"})
            return
        _tell({"calls": list(map(_state, pages))})
        while sys.stdin.readline():
            _tell({"calls": list(map(_state, pages))})


if __name__ == "__main__":
    _run(sys.argv[1], Path(sys.argv[2]).read_text().strip(), int(sys.argv[3]))
