"""Whether a measure stayed flat: the median of all slopes, and what it may be."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

HOUR_S = 3600.0
LEAST = 6  # fewer samples say nothing about a slope

Points = Sequence[tuple[float, float]]  # seconds, value


@dataclass(frozen=True)
class Allowance:
    """How much a measure may grow: an amount an hour, but what is noise at any length is borne."""

    an_hour: float
    noise: float

    def slope(self, span_s: float) -> float:
        """The largest slope an hour that passes for flat when looked at for so long."""
        return max(self.an_hour, self.noise * HOUR_S / span_s)


@dataclass(frozen=True)
class Verdict:
    """One row of the table: a measure, what it was, and whether that is all right."""

    measure: str
    start: float | None
    end: float
    slope: float | None
    allowed: float
    unit: str = ""

    @property
    def ok(self) -> bool:
        """Falling is never wrong; a count has no slope and is what it may be or not."""
        return (self.end if self.slope is None else self.slope) <= self.allowed

    def line(self) -> str:
        """The row of the Markdown table."""
        flat = self.slope is not None
        cells = (
            self.measure + (f", {self.unit}" if self.unit else ""),
            "" if self.start is None else f"{self.start:,.1f}",
            f"{self.end:,.1f}" if flat else f"{self.end:,.0f}",
            f"{self.slope:+,.1f}" if flat else "",
            f"{self.allowed:,.1f} an hour" if flat else f"{self.allowed:,.0f}",
            "yes" if self.ok else "**no**",
        )
        return f"| {' | '.join(cells)} |"


HEAD = "| measure | after warm-up | end | slope an hour | allowed | ok |\n|---|--:|--:|--:|--:|---|"


def slope(lives: Sequence[Points]) -> float | None:
    """The median slope an hour between all points of each life (Theil and Sen); None without enough of them.

    A few outliers do not move it. Nothing is drawn from one process to the one that replaced it.
    """
    slopes = [
        (late - early) * HOUR_S / (after - before)
        for points in lives
        if len(points) >= LEAST
        for (before, early), (after, late) in combinations(points, 2)
    ]
    return statistics.median(slopes) if slopes else None


def settled(points: Points, begin_s: float, young_s: float) -> Points:
    """What counts of a life: after the warm-up, and not while the process itself was young."""
    since = max(begin_s, points[0][0] + young_s) if points else begin_s
    return [point for point in points if point[0] >= since]


def flat(
    measure: str,
    lives: Mapping[object, Points],
    allowance: Allowance,
    *,
    begin_s: float,
    young_s: float = 0.0,
    unit: str = "",
) -> Verdict | None:
    """The verdict on a measure from `begin_s` on; None where nothing lived for long enough to be judged."""
    counted = [settled(points, begin_s, young_s) for points in lives.values()]
    counted = [points for points in counted if len(points) >= LEAST]
    found = slope(counted)
    if found is None:
        return None
    points = sorted(point for life in counted for point in life)
    first, last = _ends(points)
    span_s = max(life[-1][0] - life[0][0] for life in counted)
    return Verdict(measure, first, last, found, allowance.slope(span_s), unit)


def _ends(points: Points) -> tuple[float, float]:
    """The medians of the first and the last tenth of the time."""
    tenth = (points[-1][0] - points[0][0]) / 10
    first = [value for at, value in points if at <= points[0][0] + tenth]
    last = [value for at, value in points if at >= points[-1][0] - tenth]
    return statistics.median(first), statistics.median(last)
