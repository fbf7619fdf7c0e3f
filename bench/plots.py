"""Results as SVG, with matplotlib (of the dev dependencies)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.results import DOWN, FLOWS, PARTS, PAYLOAD, UP, BreakdownRow, Results, Row

_UP_COLOR, _DOWN_COLOR = "#2563a8", "#c8792b"
_COLORS = ("#f4b183", "#f6c28b", "#f2a477", "#f8d39a", "#eeb98f")
# A smaller part has no room for its name; in a flame graph, letters of the whole width, and the fewest that say something.
_LABELLED = 0.04
_LETTERS, _LEAST_LETTERS = 230, 4


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
        ("bench-breakdown", _breakdown),
        ("bench-flame", _flame),
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


def _breakdown(results: Results, path: Path) -> bool:
    rows = [row for row in results.breakdown if row.parts]
    if not rows:
        return False
    figure, axes = _axes("A userspace worker's CPU time at full load", "", "ns a packet")
    names, bottoms = [row.direction for row in rows], [0.0] * len(rows)
    for part in PARTS:
        heights = [row.ns_of(part) or 0.0 for row in rows]
        bars = axes.bar(names, heights, 0.5, bottom=bottoms, label=part)
        labels = [f"{part} {row.parts[part]:.0%}" if row.parts[part] > _LABELLED else "" for row in rows]
        axes.bar_label(bars, labels, label_type="center", fontsize=8)
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    _save(figure, path)
    return True


def _flame(results: Results, path: Path) -> bool:
    """Callers below what they call; widths are parts of the time."""
    from matplotlib import pyplot

    rows = [row for row in results.breakdown if row.stacks]
    if not rows:
        return False
    figure, all_axes = pyplot.subplots(
        len(rows), figsize=(12, 6 * len(rows)), layout="constrained", squeeze=False
    )
    for row, axes in zip(rows, all_axes[:, 0], strict=True):
        axes.set_title(f"Kernel stacks of a {row.name} worker, {row.direction}", loc="left")
        axes.set_axis_off()
        for left, depth, width, name in flame_boxes(row):
            color = _COLORS[sum(name.encode()) % len(_COLORS)]
            axes.barh(depth, width, 0.95, left, align="edge", color=color, edgecolor="white", linewidth=0.3)
            room = int(width * _LETTERS)
            if room > _LEAST_LETTERS:
                axes.text(left + 0.001, depth + 0.45, name[:room], fontsize=6, va="center")
    _save(figure, path)
    return True


def flame_boxes(row: BreakdownRow) -> list[tuple[float, int, float, str]]:
    """Left edge, depth, width and name of each box; all that is at the bottom together is 1 wide."""
    total = sum(count for _, count in row.stacks)
    widths: dict[tuple[str, ...], float] = {}
    for text, count in row.stacks:
        stack = tuple(text.split(";"))
        for depth in range(1, len(stack) + 1):
            widths[stack[:depth]] = widths.get(stack[:depth], 0.0) + count / total
    boxes = []
    # By its path each comes behind its caller and beside its siblings.
    filled: dict[tuple[str, ...], float] = {(): 0.0}
    for stack in sorted(widths):
        left = filled[stack[:-1]]
        filled[stack[:-1]] = left + widths[stack]
        filled[stack] = left
        boxes.append((left, len(stack) - 1, widths[stack], stack[-1]))
    return boxes


def _short(value: float) -> str:
    return f"{value / 1e6:.2f} M" if value >= 1e6 else f"{value / 1e3:.0f} k"
