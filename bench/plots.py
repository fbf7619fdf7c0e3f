"""Results as SVG, with matplotlib (of the dev dependencies)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.results import DOWN, FLOWS, PAYLOAD, UP, Results, Row

_UP_COLOR, _DOWN_COLOR = "#2563a8", "#c8792b"


def draw(results: Results, directory: Path) -> list[Path]:
    """One file for each kind of figure that there is. Raises BenchError."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise BenchError("plots need matplotlib (pip install -e '.[dev]')") from None
    mpl.use("svg")
    # Text as text, and the same file for the same numbers.
    mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "relayctl", "font.size": 10}
    directory.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, plot in (
        ("bench-peers", _peers),
        ("bench-payloads", _payloads),
        ("bench-flows", _flows),
        ("bench-latency", _latency),
    ):
        path = directory / f"{name}.svg"
        if plot(results, path):
            drawn.append(path)
    return drawn


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4), layout="constrained")
    axes.set_title(title, loc="left")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, axis="y", alpha=0.3)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    from matplotlib import pyplot

    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def _measured(results: Results, measurement: str, direction: str) -> list[Row]:
    return [
        row
        for row in results.rows
        if row.pps and (row.measurement, row.direction) == (measurement, direction)
    ]


def _peers(results: Results, path: Path) -> bool:
    both = {
        direction: {
            row.name: row.pps or 0.0
            for row in _measured(results, "forward", direction)
            if (row.payload, row.flows) == (PAYLOAD, FLOWS)
        }
        for direction in (UP, DOWN)
    }
    names = list(both[UP])
    if not names:
        return False
    figure, axes = _axes("Packets/s on one core, 100 bytes, 1,000 flows", "", "packets/s (logarithmic)")
    axes.set_yscale("log")
    for shift, (direction, color) in enumerate(((UP, _UP_COLOR), (DOWN, _DOWN_COLOR))):
        values = [both[direction].get(name, 0.0) for name in names]
        places = [index + 0.4 * shift - 0.2 for index in range(len(names))]
        bars = axes.bar(places, values, 0.38, label=direction, color=color)
        axes.bar_label(bars, [_short(value) for value in values], fontsize=8)
    axes.set_xticks(range(len(names)), names)
    axes.legend(frameon=False)
    _save(figure, path)
    return True


def _payloads(results: Results, path: Path) -> bool:
    rows = [row for row in _measured(results, "forward", UP) if row.flows == FLOWS]
    payloads = list(dict.fromkeys(str(row.payload) for row in rows))
    if len(payloads) < 2:
        return False
    return _lines(
        "By payload, up, 1,000 flows", "payload (bytes)", rows, [row.payload for row in rows], payloads, path
    )


def _flows(results: Results, path: Path) -> bool:
    rows = _measured(results, "flows", UP)
    counts = [f"{count:,}" for count in dict.fromkeys(row.flows for row in rows)]
    if len(counts) < 2:
        return False
    x = [f"{row.flows:,}" for row in rows]
    return _lines("By number of flows, up, 100 bytes, random order", "flows", rows, x, counts, path)


def _lines(
    title: str, x_label: str, rows: Sequence[Row], x: Sequence[Any], order: Sequence[str], path: Path
) -> bool:
    figure, axes = _axes(title, x_label, "packets/s (logarithmic)")
    axes.set_yscale("log")
    by_name: dict[str, list[tuple[int, float]]] = {}
    for row, at in zip(rows, x, strict=True):
        by_name.setdefault(row.name, []).append((order.index(str(at)), row.pps or 0.0))
    for name, points in by_name.items():
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set_xticks(range(len(order)), order)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
    return True


def _latency(results: Results, path: Path) -> bool:
    rows = [row for row in results.latency if row.cdf]
    if not rows:
        return False
    figure, axes = _axes(
        "Time from client to transceiver at half load", "µs (logarithmic)", "part of packets"
    )
    axes.set_xscale("log")
    for row in rows:
        times, parts = zip(*row.cdf, strict=True)
        axes.plot([time / 1000 for time in times], parts, label=f"{row.name}, {_short(row.rate)}/s")
    axes.legend(frameon=False, loc="lower right")
    _save(figure, path)
    return True


def _short(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"
