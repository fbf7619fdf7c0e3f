"""One turn of speaking, as the process under test and the generator went through it."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from bench.transceiver.vitals import core_ns, cpu_ns


@dataclass
class Turn:
    """``pid`` is under test, on ``core``. ``step`` ns apart packets were due from ``started`` on; ``begin`` and ``end`` enclose what counts."""

    pid: int
    core: int
    started: int
    step: float
    sent_at: list[int] = field(default_factory=list)
    _first: int = 0
    _begun: "_Moment | None" = None
    _ended: "_Moment | None" = None

    def begin(self, now: int) -> None:
        """The next packet is the first that counts."""
        self._begun, self._first = self._now(now), len(self.sent_at)

    def end(self, now: int) -> None:
        """The last packet was sent."""
        self._ended = self._now(now)

    def to_json(self) -> dict[str, Any]:
        """CPU and how late the generator itself was."""
        assert self._begun is not None
        assert self._ended is not None
        measured, cpu, busy, steal = (
            (end - begin) / 1e9 for begin, end in zip(self._begun, self._ended, strict=True)
        )
        return {
            "measured_s": measured,
            "cpu_s": cpu,
            "others_s": max(0.0, busy - cpu) + steal,
            "lag_p99_ms": _quantile_ms(self._lags(), 0.99),
            "lag_max_ms": _quantile_ms(self._lags(), 1.0),
        }

    def _now(self, now: int) -> "_Moment":
        return _Moment(now, cpu_ns(self.pid), *core_ns(self.core))

    def _lags(self) -> list[float]:
        first = self._first
        return [at - self.started - (first + i) * self.step for i, at in enumerate(self.sent_at[first:])]


class _Moment(NamedTuple):
    at: int
    cpu: int
    busy: int
    steal: int


def _quantile_ms(values: list[float], quantile: float) -> float:
    return round(float(np.quantile(values, quantile)) / 1e6, 3) if values else 0.0
