"""Who may call: origins, names, the bearer token, rates; and the page."""

import pytest

from tests.transceiver.processes import Process, serving
from tests.transceiver.whip import RESTART, UNKNOWN_TOKEN, call_on, patched, posted, raw
from transceiver.signaling.limits import RateLimit

pytestmark = pytest.mark.usefixtures("no_task_left")


# OPTIONS, CORS, origins


async def test_options_tell_what_may_be_sent(process: Process) -> None:
    location, _ = await call_on(process)
    endpoint = await process.public.options("/whip")
    resource = await process.public.options(location)
    assert (endpoint.status, resource.status) == (204, 204)
    assert endpoint.headers["Accept-Post"] == "application/sdp"
    assert endpoint.headers["Allow"] == "POST, OPTIONS"
    assert resource.headers["Accept-Patch"] == "application/trickle-ice-sdpfrag"
    assert resource.headers["Allow"] == "PATCH, DELETE, OPTIONS"


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
async def test_other_methods_on_the_endpoint_are_405(process: Process, method: str) -> None:
    assert (await process.public.request(method, "/whip")).status == 405


@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
async def test_other_methods_on_a_resource_are_405(process: Process, method: str) -> None:
    location, _ = await call_on(process)
    assert (await process.public.request(method, location)).status == 405


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "http://[",
        "https://app.example.org.evil.example",
        "http://app.example.org",
    ],
)
async def test_pages_of_another_origin_are_refused(origin: str) -> None:
    async with serving(origins=("https://app.example.org",)) as process:
        headers = {"Origin": origin}
        responses = [
            await posted(process.public, **headers),
            await process.public.options("/whip", headers=headers),
            await process.public.get("/ws", headers=headers),
        ]
        assert [response.status for response in responses] == [403, 403, 403]
        assert all("Access-Control-Allow-Origin" not in response.headers for response in responses)
        assert len(process.sessions) == 0


async def test_our_own_pages_may_call(process: Process) -> None:
    own = f"http://{process.public.host}:{process.public.port}"
    response = await posted(process.public, Origin=own)
    assert response.status == 201
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_pages_of_a_configured_origin_may_call_and_read_the_answer() -> None:
    origin = {"Origin": "https://app.example.org"}
    async with serving(origins=("https://app.example.org",), bearer_token="secret") as process:
        preflight = await process.public.options(
            "/whip", headers=origin | {"Access-Control-Request-Method": "POST"}
        )
        made = await posted(process.public, **origin, Authorization="Bearer secret")
        refused = await posted(process.public, "hello", **origin, Authorization="Bearer secret")
        unauthorised = await posted(process.public, **origin)
    assert [r.status for r in (preflight, made, refused, unauthorised)] == [204, 201, 400, 401]
    for response in (preflight, made, refused, unauthorised):
        assert response.headers["Access-Control-Allow-Origin"] == "https://app.example.org"
        assert response.headers["Vary"] == "Origin"
    assert {"PATCH", "DELETE"} <= set(preflight.headers["Access-Control-Allow-Methods"].split(", "))
    assert {"Authorization", "If-Match"} <= set(preflight.headers["Access-Control-Allow-Headers"].split(", "))
    assert {"Location", "ETag"} <= set(made.headers["Access-Control-Expose-Headers"].split(", "))


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "10.0.0.1", "[", ""]
)
async def test_without_a_token_no_foreign_name_is_served(process: Process, host: str) -> None:
    """A page of any site could make its own name resolve to loopback (DNS rebinding)."""
    request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert b" 403 " in await raw(process.public, request)


@pytest.mark.parametrize("host", ["localhost", "localhost:8080", "127.0.0.1", "[::1]:8080", "127.1.2.3"])
async def test_without_a_token_loopback_names_are_served(process: Process, host: str) -> None:
    request = f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    assert b" 200 " in await raw(process.public, request)


# bearer token


@pytest.mark.parametrize(
    "authorization",
    [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic secret", "secret", "Bearer secretsecret"],
)
async def test_without_the_bearer_token_nothing_is_made_or_changed(authorization: str | None) -> None:
    async with serving(bearer_token="secret") as process:
        location = f"/whip/sessions/{UNKNOWN_TOKEN}"
        headers = {} if authorization is None else {"Authorization": authorization}
        responses = [
            await posted(process.public, **headers),
            await patched(process.public, location, "*", RESTART, **headers),
            await process.public.delete(location, headers=headers),
            await process.public.get("/ws", headers=headers),
        ]
        assert [response.status for response in responses] == [401] * 4
        assert all(response.headers["WWW-Authenticate"] == "Bearer" for response in responses)
        assert len(process.sessions) == 0


@pytest.mark.parametrize("authorization", ["Bearer secret", "bearer secret", "Bearer  secret"])
async def test_with_the_bearer_token_calls_are_made(authorization: str) -> None:
    async with serving(bearer_token="secret") as process:
        assert (await posted(process.public, Authorization=authorization)).status == 201


@pytest.mark.parametrize("header", [b"Authorization: Bearer \xff", b"Sec-WebSocket-Protocol: bearer.\xff"])
async def test_token_that_is_no_text_is_401(header: bytes) -> None:
    async with serving(bearer_token="secret") as process:
        status = await raw(process.public, b"GET /ws HTTP/1.1\r\nHost: x\r\n" + header + b"\r\n\r\n")
    assert b" 401 " in status


# rate


async def test_requests_over_the_rate_are_429_with_retry_after() -> None:
    async with serving(request_burst=3) as process:
        statuses = [(await posted(process.public, "hello")).status for _ in range(3)]
        response = await posted(process.public)
        assert statuses == [400, 400, 400]
        assert response.status == 429
        assert int(response.headers["Retry-After"]) in (1, 2, 3)
        assert (await process.public.options("/whip")).status == 204
        assert (await process.public.get("/healthz")).status == 200


async def test_failed_log_ins_are_rate_limited_too() -> None:
    async with serving(request_burst=3, bearer_token="secret") as process:
        statuses = [(await posted(process.public, Authorization=f"Bearer {n}")).status for n in range(5)]
    assert statuses == [401, 401, 401, 429, 429]


@pytest.mark.parametrize(
    ("host", "neighbour", "shared"),
    [
        pytest.param("192.0.2.1", "192.0.2.1", True, id="same IPv4"),
        pytest.param("192.0.2.1", "192.0.2.2", False, id="next IPv4"),
        pytest.param("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True, id="same IPv6 /64"),
        pytest.param("2001:db8:0:1::1", "2001:db8:0:2::1", False, id="next IPv6 /64"),
        pytest.param("fe80::1%lo", "fe80::2%lo", True, id="with a scope"),
    ],
)
def test_rate_is_counted_by_source_prefix(host: str, neighbour: str, shared: bool) -> None:
    limit = RateLimit(per_s=1, burst=1)
    assert limit.take(host, 0.0) == 0.0
    assert (limit.take(neighbour, 0.0) > 0) is shared


def test_rate_refills_up_to_the_burst_and_no_further() -> None:
    limit = RateLimit(per_s=2, burst=3)
    assert [limit.take("192.0.2.1", 0.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]
    assert limit.take("192.0.2.1", 0.5) == 0.0
    assert limit.take("192.0.2.1", 0.5) == 0.5
    assert [limit.take("192.0.2.1", 1000.0) for _ in range(4)] == [0.0, 0.0, 0.0, 0.5]


def test_sources_are_bounded() -> None:
    limit = RateLimit(per_s=1, burst=1)
    for source in range(20_000):
        limit.take(f"10.{source >> 16}.{source >> 8 & 255}.{source & 255}", 0.0)
    assert len(limit._buckets) <= 16_384


# the page


async def test_page_has_its_policy_and_nothing_outside_it_is_served(process: Process) -> None:
    page = await process.public.get("/")
    assert page.status == 200
    assert "default-src 'self'" in page.headers["Content-Security-Policy"]
    assert page.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/page/../hub.py", "/page/%2e%2e/hub.py", "/page/..%2fhub.py"):
        assert (await process.public.get(path)).status in (403, 404)
