"""Two live calls for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.fuzz.live import Live, Media


@pytest.fixture(scope="module", params=[pytest.param(media, id=media.value) for media in Media])
def live(request: pytest.FixtureRequest) -> Iterator[Live]:
    """The client gathers the loopback address, which aioice leaves out, and no other."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
        live = Live(request.param)
        live.open()
        yield live
        live.close()
