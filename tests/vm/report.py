"""What a run on hosts showed, as a table for people and as markdown."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import wrap

_WIDTH = 118


@dataclass
class Outcome:
    """One test: ``state`` is pytest's word, ``seconds`` with what comes before and after it."""

    name: str
    state: str = ""
    seconds: float = 0.0
    measured: list[str] = field(default_factory=list)


@dataclass
class Report:
    """``facts`` are name and value, of the hosts; ``left_out`` are tests that did not run, with the reason."""

    facts: list[tuple[str, str]] = field(default_factory=list)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)

    def note(self, name: str, state: str, seconds: float, measured: Sequence[str]) -> None:
        """One phase of a test: set-up, call or tear-down; the first that did not pass is the test's state."""
        outcome = self.outcomes.setdefault(name, Outcome(name))
        outcome.seconds += seconds
        if outcome.state in ("", "passed"):
            outcome.state = state
        outcome.measured += [line for line in measured if line not in outcome.measured]

    @property
    def summary(self) -> str:
        """How many of each state."""
        states = [outcome.state for outcome in self.outcomes.values()]
        counts = [f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states, reverse=True))]
        return ", ".join([*counts, *([f"{len(self.left_out)} left out"] if self.left_out else [])])

    def text(self) -> str:
        """Columns for a terminal; what a test measured is below it."""
        lines = [*_columns(self.facts), ""]
        rows = [(o.name, o.state, f"{o.seconds:.0f} s") for o in self.outcomes.values()]
        for outcome, line in zip(self.outcomes.values(), _columns(rows), strict=True):
            lines.append(line)
            for measured in outcome.measured:
                lines += wrap(measured, _WIDTH, initial_indent="    ", subsequent_indent="      ")
        lines += [f"left out: {name}: {why}" for name, why in self.left_out]
        return "\n".join([*lines, "", self.summary])

    def markdown(self) -> str:
        """Two tables."""
        lines = [
            "| | |",
            "|---|---|",
            *(f"| {_cell(name)} | {_cell(value)} |" for name, value in self.facts),
            "",
        ]
        lines += ["| test | | time | measured |", "|---|---|---|---|"]
        for outcome in self.outcomes.values():
            measured = "<br>".join(_cell(line) for line in outcome.measured)
            lines.append(
                f"| {_cell(outcome.name)} | {outcome.state} | {outcome.seconds:.0f} s | {measured} |"
            )
        lines += [
            "",
            *(f"- left out: {_cell(name)}: {_cell(why)}" for name, why in self.left_out),
            "",
            self.summary,
            "",
        ]
        return "\n".join(lines)


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
