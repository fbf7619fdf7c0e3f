"""For all tests: what was measured."""

from collections.abc import Generator

import pytest

from tests.measured import take_measured

_MEASURED = "measured"

_measured: list[str] = []


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
