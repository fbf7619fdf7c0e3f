"""A real Firefox on the demo page, headless, driven by WebDriver BiDi over its own WebSocket."""

import asyncio
import contextlib
import itertools
import json
import os
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.e2e.instance import Instance, free_port

FIREFOX = "/usr/bin/firefox-esr"
# On a busy machine it takes its time to come up.
_START_TIMEOUT_S = 90.0
_PREFERENCES: dict[str, Any] = {
    # a microphone that beeps, given without asking, also to a page without TLS
    "media.navigator.streams.fake": True,
    "media.navigator.permission.disabled": True,
    "media.devices.insecure.enabled": True,
    "media.getusermedia.insecure.enabled": True,
    "media.autoplay.default": 0,
    # nothing of its own on the network
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.page": 0,
    "app.update.disabledForTesting": True,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "media.gmp-manager.updateEnabled": False,
    "extensions.update.enabled": False,
}


def need_firefox() -> None:
    """Where it is missing the test is skipped, unless a browser is expected."""
    if not os.access(FIREFOX, os.X_OK):
        assert os.environ.get("REQUIRE_NETNS") != "1", f"{FIREFOX} is expected here; `make setup` installs it"
        pytest.skip(f"no {FIREFOX}")


class Tab:
    """The only one. WebDriver BiDi: https://www.w3.org/TR/webdriver-bidi/"""

    def __init__(self, connection: aiohttp.ClientWebSocketResponse) -> None:
        self._connection = connection
        self._ids = itertools.count(1)
        self._context = ""

    async def open(self, url: str) -> None:
        """Load a page."""
        await self._ask("session.new", capabilities={})
        tree = await self._ask("browsingContext.getTree")
        self._context = tree["contexts"][0]["context"]
        await self._ask("browsingContext.navigate", context=self._context, url=url, wait="complete")

    async def evaluate(self, expression: str) -> Any:
        """The JSON value of an expression, or of what it promises."""
        answer = await self._ask(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self._context},
            awaitPromise=True,
            userActivation=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"].get("value", "null"))

    async def until(self, expression: str, what: str, timeout_s: float = 30.0) -> Any:
        """The first truthy value of an expression."""
        value = None
        try:
            async with asyncio.timeout(timeout_s):
                while not (value := await self.evaluate(expression)):  # noqa: ASYNC110  # the page sets no event
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise AssertionError(f"{what}: not within {timeout_s:g} s") from None
        return value

    async def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        await self._connection.send_json({"id": number, "method": method, "params": params})
        while True:
            answer = await self._connection.receive_json(timeout=60)
            if answer.get("id") == number:  # else an event
                assert answer["type"] == "success", answer
                return dict(answer["result"])


@contextlib.contextmanager
def _process(profile: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """With a new profile, for the life of the block."""
    profile.mkdir()
    preferences = (f"user_pref({json.dumps(n)}, {json.dumps(v)});\n" for n, v in _PREFERENCES.items())
    (profile / "user.js").write_text("".join(preferences))
    command = [FIREFOX, "--headless", "--no-remote", "--profile", str(profile)]
    command += ["--remote-debugging-port", str(port), "about:blank"]
    with (profile / "firefox.log").open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, "HOME": str(profile)}
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def _connect(
    http: aiohttp.ClientSession, port: int, process: subprocess.Popen[bytes]
) -> aiohttp.ClientWebSocketResponse:
    async with asyncio.timeout(_START_TIMEOUT_S):
        while True:
            assert process.poll() is None, "Firefox ended; its profile holds firefox.log"
            with contextlib.suppress(aiohttp.ClientError):
                return await http.ws_connect(f"ws://127.0.0.1:{port}/session", max_msg_size=0)
            await asyncio.sleep(0.2)


@contextlib.asynccontextmanager
async def firefox_call(instance: Instance, profile: Path) -> AsyncIterator[Tab]:
    """A call of the page, connected; hung up at the end."""
    port = free_port(socket.SOCK_STREAM)
    with _process(profile, port) as process:
        async with aiohttp.ClientSession() as http, await _connect(http, port, process) as connection:
            tab = Tab(connection)
            await tab.open(f"{instance.url}#token={instance.token}")
            await tab.evaluate("document.querySelector('#call').click()")
            await tab.until("document.querySelector('#state').dataset.state === 'connected'", "the call", 60)
            yield tab
            await tab.evaluate("document.querySelector('#call').click()")
