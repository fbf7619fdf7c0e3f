"""For all tests: which need the machine for themselves, what starts first, and what was measured (docs/testing.md)."""

import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.measured import take_measured
from tests.own_bpffs import mount_own_bpffs

# Every test there does, whatever it says of itself.
_CHAOS = Path(__file__).parent / "chaos"
_MEASURED = "measured"

_measured: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Of tests/vm: here they are known whatever tests are named."""
    group = parser.getgroup("hosts", "tests on real hosts (docs/vm-testing.md)")
    group.addoption(
        "--inventory", type=Path, metavar="FILE", help="TOML file that names the hosts of tests/vm."
    )
    group.addoption("--report", type=Path, metavar="FILE", help="Write what these tests showed as markdown.")


def pytest_sessionstart() -> None:
    """Before any test can have loaded a program, or started one that Ctrl-C is to end: a shell's background jobs ignore it."""
    mount_own_bpffs()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what is alone by its place; side by side, files that take long come first, or one would run on when all else is done."""
    for item in items:
        if item.path.is_relative_to(_CHAOS):
            item.add_marker(pytest.mark.alone)
    if hasattr(config, "workerinput"):
        slow = {item.path for item in items if item.get_closest_marker("slow")}
        items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Properties of a report come along from another process, too."""
    item.user_properties += [(_MEASURED, line) for line in take_measured()]
    return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The last report of a test has all its properties."""
    if report.when == "teardown":
        _measured.extend(str(value) for name, value in report.user_properties if name == _MEASURED)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the tests measured."""
    if _measured:
        terminalreporter.section("measured")
        for line in _measured:
            terminalreporter.line(line)
