"""Tests on real hosts: taken where an inventory is given, in an order that keeps resets for the end, and reported."""

import faulthandler
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from host.errors import ConfigError
from tests.vm.inventory import Inventory, read_inventory
from tests.vm.report import Report
from tests.vm.site import Site, connected, describe

# Those that are not named come first.
_ORDER = (
    *("test_interfaces", "test_calls", "test_fastpath", "test_inspection", "test_workers", "test_chromium"),
    *("test_supervisor", "test_mtu", "test_upgrade", "test_carrier", "test_resets"),
)
_INVENTORY = pytest.StashKey[Inventory]()
_REPORT = pytest.StashKey[Report]()
_IS_CLEAN = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    """Read the inventory first: what is wrong with it is no test's failure."""
    config.stash[_REPORT] = Report()
    path: Path | None = config.getoption("inventory")
    if path is not None:
        try:
            config.stash[_INVENTORY] = read_inventory(path)
        except ConfigError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of hosts only with an inventory; of these, only those for which it has the hosts, and the report says which not."""
    inventory, report = config.stash.get(_INVENTORY, None), config.stash[_REPORT]
    kept: list[pytest.Item] = []
    left_out: list[pytest.Item] = []
    for item in items:
        marker = item.get_closest_marker("vm")
        missing = set(marker.args) - inventory.offers if marker and inventory else set()
        (left_out if marker and (inventory is None or missing) else kept).append(item)
        if missing:
            report.left_out.append((_name(item.nodeid), f"the inventory has no {', '.join(sorted(missing))}"))
    if left_out:
        config.hook.pytest_deselected(items=left_out)
    here = Path(__file__).parent
    items[:] = sorted(kept, key=lambda item: _place(item.path) if item.path.is_relative_to(here) else -1)


def _place(path: Path) -> int:
    return _ORDER.index(path.stem) + 1 if path.stem in _ORDER else 0


@pytest.fixture(scope="session")
def _connected_site(pytestconfig: pytest.Config) -> Iterator[Site]:
    with connected(pytestconfig.stash[_INVENTORY]) as site:
        pytestconfig.stash[_REPORT].facts = describe(site)
        pytestconfig.stash[_IS_CLEAN] = True
        yield site


@pytest.fixture
def site(_connected_site: Site, pytestconfig: pytest.Config) -> Iterator[Site]:
    """All hosts, as they are to be before and after each test."""
    # These tests wait for hosts that boot.
    faulthandler.cancel_dump_traceback_later()
    if not pytestconfig.stash[_IS_CLEAN]:
        _connected_site.wait_until_clean()
    pytestconfig.stash[_IS_CLEAN] = False
    yield _connected_site
    _connected_site.wait_until_clean()
    pytestconfig.stash[_IS_CLEAN] = True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Gather outcomes; what was measured is in the properties by now (tests/conftest.py)."""
    report = yield
    if item.get_closest_marker("vm"):
        measured = [str(value) for name, value in report.user_properties if name == "measured"]
        item.config.stash[_REPORT].note(_name(item.nodeid), report.outcome, report.duration, measured)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the report, and write it."""
    report = config.stash[_REPORT]
    if not report.outcomes:
        return
    terminalreporter.section("hosts")
    terminalreporter.line(report.text())
    path: Path | None = config.getoption("report")
    if path is not None:
        path.write_text(report.markdown())


def _name(nodeid: str) -> str:
    return nodeid.rpartition("::")[2]
