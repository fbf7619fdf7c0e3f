"""Two live calls for all tests of a module, and hypothesis without deadline."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.fuzz.live import Live

settings.register_profile("relayctl", deadline=None)
settings.load_profile("relayctl")


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    """The client gathers the loopback address, which aioice leaves out, and no other."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("aioice.ice.get_host_addresses", lambda use_ipv4, use_ipv6: ["127.0.0.1"])
        live = Live()
        live.open()
        yield live
        live.close()
