"""Doubles for the tests of programs that use collectors."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from tasks.base import BaseCollector


class FakeCollector(BaseCollector):
    """A collector that calls nobody: ten points for each collection, a hundred for each day of a backfill.

    `points` and `backfill_points` change that; with `fails` both say that they failed, and why.
    """

    key = ("at", "n")

    def __init__(
        self,
        *,
        collector_name: str = "fake",
        points: int = 10,
        backfill_points: int = 100,
        fails: str | None = None,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        self.points = points
        self.backfill_points = backfill_points
        self.fails = fails
        self.collected = 0
        super().__init__(collector_name=collector_name, config=config)

    def _validate_config(self) -> None:
        """Anything goes."""

    def collect_data(self) -> Mapping[str, Any]:
        """Store points that no collection before has stored."""
        self.collected += 1
        return self._keep([{"at": "now", "n": self.collected * 1000 + n} for n in range(self.points)])

    def backfill_historical(
        self, start_time: datetime, end_time: datetime, **kwargs: Any
    ) -> Mapping[str, Any]:
        """Store points at equal distances."""
        del kwargs
        step = (end_time - start_time) / max(self.backfill_points, 1)
        times = [start_time + n * step for n in range(self.backfill_points)]
        return self._keep([{"at": _whole(at).isoformat(), "n": n} for n, at in enumerate(times)])

    def _keep(self, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
        self.store(rows)
        errors = [] if self.fails is None else [self.fails]
        return {"success": not errors, "data_points": len(rows), "errors": errors}


def _whole(at: datetime) -> datetime:
    return at - timedelta(microseconds=at.microsecond)
