"""The report of a run, in both of its forms. Needs no hosts."""

import pytest

from tests.vm.report import Report


@pytest.fixture
def report() -> Report:
    """Of four tests, one of which failed and one of which was left out."""
    report = Report(facts=[("relay's kernel", "6.1.0"), ("driver", "virtio_net | 1.0")])
    phases_by_name: dict[str, list[tuple[str, float, list[str]]]] = {
        "test_call": [
            ("passed", 1.0, []),
            ("passed", 20.4, ["call: 0 lost", "x" * 130]),
            ("passed", 1.0, []),
        ],
        "test_long_name": [("passed", 0.0, []), ("failed", 3.0, []), ("passed", 0.0, [])],
        "test_dirty": [("passed", 0.0, []), ("passed", 3.0, []), ("failed", 0.0, [])],
    }
    for name, phases in phases_by_name.items():
        for phase in phases:
            report.note(name, *phase)
    report.left_out.append(("test_redis", "the inventory has no redis"))
    return report


def test_text(report: Report) -> None:
    assert report.text().splitlines() == [
        "relay's kernel  6.1.0",
        "driver          virtio_net | 1.0",
        "",
        "test_call       passed  22 s",
        "    call: 0 lost",
        "    " + "x" * 114,
        "      " + "x" * 16,
        "test_long_name  failed  3 s",
        "test_dirty      failed  3 s",
        "left out: test_redis: the inventory has no redis",
        "",
        "1 passed, 2 failed, 1 left out",
    ]


def test_markdown(report: Report) -> None:
    lines = report.markdown().splitlines()
    assert lines[:4] == [
        "| | |",
        "|---|---|",
        "| relay's kernel | 6.1.0 |",
        "| driver | virtio_net \\| 1.0 |",
    ]
    assert f"| test_call | passed | 22 s | call: 0 lost<br>{'x' * 130} |" in lines
    assert "- left out: test_redis: the inventory has no redis" in lines
    assert lines[-1] == "1 passed, 2 failed, 1 left out"


def test_line_that_came_with_several_phases_is_there_once(report: Report) -> None:
    report.note("test_call", "passed", 0.0, ["call: 0 lost"])
    assert report.outcomes["test_call"].measured.count("call: 0 lost") == 1


def test_run_without_a_test() -> None:
    assert Report().text() == "\n\n"
