"""How things ended: the closed vocabulary, and its fold into totals and a CollectionResult. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any


class UnitState(StrEnum):
    """Where a unit stands. *Open* means not done."""

    WAITING = "waiting"
    SENT = "sent"
    RUNNING = "running"
    DONE = "done"


class Outcome(StrEnum):
    """How a unit ended."""

    STORED = "stored"
    EMPTY = "empty"
    SKIPPED = "skipped"
    FAILED = "failed"
    ABANDONED = "abandoned"


class RunState(StrEnum):
    """Where a run stands."""

    PLANNING = "planning"
    OPEN = "open"
    DONE = "done"


class RunOutcome(StrEnum):
    """How a run ended."""

    OK = "ok"
    PARTIAL = "partial"
    FAILED = "failed"
    EMPTY = "empty"
    SKIPPED = "skipped"
    CANCELLED = "cancelled"


class RunKind(StrEnum):
    """Who asked for a run."""

    SCHEDULED = "scheduled"
    ADHOC = "adhoc"
    BACKFILL = "backfill"


SUCCESSFUL = frozenset({Outcome.STORED, Outcome.EMPTY})
UNSUCCESSFUL = frozenset({Outcome.FAILED, Outcome.ABANDONED})

# How many errors a CollectionResult keeps; each unit's own error stays in its row.
ERRORS_KEPT = 1000


@dataclass(frozen=True, slots=True)
class CollectionResult:
    """What one run of one collector brought, and what it did not.

    An item is a unit: one endpoint, one symbol, one window. `successful_items` counts stored and empty
    units, `failed_items` failed and abandoned ones; skipped units count in the total only. `errors` holds
    the first 1,000, each with endpoint, symbol, error, message, timestamp and attempts.
    """

    collector_name: str
    started_at: datetime
    finished_at: datetime
    total_items: int
    successful_items: int
    failed_items: int
    errors: Sequence[Mapping[str, Any]]
    rate_limited: bool
    circuit_broken: bool
    outcome: RunOutcome
    records: int = 0
    units_by_outcome: Mapping[str, int] = field(default_factory=dict)
    by_endpoint: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    failed_symbols: Mapping[str, int] = field(default_factory=dict)
    calls: int = 0
    retries: int = 0
    waits: int = 0
    waited_s: float = 0.0
    resent: int = 0
    weight: float = 0.0
    bad_rows: int = 0
    vanished: int = 0

    @property
    def success_rate(self) -> float:
        """Share of successful units, 0.0 … 1.0; 0.0 when there was nothing to do."""
        return self.successful_items / self.total_items if self.total_items else 0.0

    @property
    def is_partial(self) -> bool:
        """Whether some units succeeded and some did not."""
        return 0 < self.successful_items < self.total_items

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts, the two derived ones included."""
        facts = asdict(self)
        for name in ("started_at", "finished_at"):
            facts[name] = facts[name].isoformat().replace("+00:00", "Z")
        return facts | {"success_rate": round(self.success_rate, 6), "is_partial": self.is_partial}


def run_outcome(by_outcome: Mapping[str, int]) -> RunOutcome:
    """One word for a whole run, from its units by outcome."""
    count = Counter({Outcome(name): n for name, n in by_outcome.items()})
    successful = sum(count[o] for o in SUCCESSFUL)
    unsuccessful = sum(count[o] for o in UNSUCCESSFUL)
    if successful and (unsuccessful or count[Outcome.SKIPPED]):
        return RunOutcome.PARTIAL
    if unsuccessful:
        return RunOutcome.FAILED
    if count[Outcome.SKIPPED]:
        return RunOutcome.SKIPPED
    return RunOutcome.OK if count[Outcome.STORED] else RunOutcome.EMPTY


def fold(outcomes: Iterable[Mapping[str, Any] | None]) -> dict[str, int]:
    """Total up what the units of a wave returned to their chord: units by outcome, and records."""
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        if outcome is None:
            continue
        totals[str(outcome.get("outcome"))] += 1
        totals["records"] += int(outcome.get("records") or 0)
    return dict(totals)
