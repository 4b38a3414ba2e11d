"""What people are shown of runs, units and data: every SQL read of the command line and the dashboard.

Everything here is one snapshot, comes back as frozen values, and changes nothing. All functions raise
DatabaseError when the database is away.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, case, func, literal, select

from resilience.limiter import RateLimiter
from resilience.statistics import rate_of
from resilience.store import LimitReading
from tasks.collectors.spec import Endpoint
from tasks.heartbeat import LEASE
from tasks.models import (
    NOT_DONE,
    RUN_WITHOUT_SYMBOLS,
    events,
    records,
    results,
    runs,
    schedules,
    units,
    waves,
    workers,
)
from tasks.outcomes import ERRORS_KEPT, SUCCESSFUL, UNSUCCESSFUL, Outcome, RunState, UnitState
from tasks.store import db_now, reading

# A run may have a million units; a page of errors is what a person reads.
ERRORS_SHOWN = 50

COUNTED = ("records", "bad_rows", "vanished", "calls", "retries", "waits", "waited_s", "resent", "weight")


def iso(at: datetime | None) -> str | None:
    """ISO 8601 in UTC with a Z, as in every JSON that we write."""
    return None if at is None else at.astimezone(UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Tally:
    """The units of a run (or of one of its endpoints) counted: open ones by state, done ones by outcome."""

    by_state: Mapping[str, int] = field(default_factory=dict)
    by_outcome: Mapping[str, int] = field(default_factory=dict)
    parked: int = 0  # of the waiting ones, those behind an open circuit
    rate_limited: int = 0
    circuit_broken: int = 0
    records: int = 0
    calls: int = 0
    retries: int = 0
    waits: int = 0
    waited_s: float = 0.0
    resent: int = 0
    weight: float = 0.0
    bad_rows: int = 0  # that came and could not be stored
    vanished: int = 0  # items that were listed, and gone when they were asked for

    @property
    def total(self) -> int:
        """All units, open and done."""
        return sum(self.by_state.values()) + sum(self.by_outcome.values())

    @property
    def open(self) -> int:
        """Units that are not done."""
        return sum(self.by_state.values())

    @property
    def successful(self) -> int:
        """Units that are stored or empty."""
        return sum(self.by_outcome.get(outcome, 0) for outcome in SUCCESSFUL)

    @property
    def failed(self) -> int:
        """Units that are failed or abandoned."""
        return sum(self.by_outcome.get(outcome, 0) for outcome in UNSUCCESSFUL)

    @property
    def skipped(self) -> int:
        """Units that were never to be called."""
        return self.by_outcome.get(Outcome.SKIPPED, 0)


@dataclass(frozen=True, slots=True)
class RunView:
    """A run as it stands."""

    id: int
    collector: str
    endpoints: Sequence[str]
    kind: str
    lane: str
    on_open: str
    state: str
    outcome: str | None
    reason: str | None
    schedule: str | None
    slot_at: datetime | None
    start_at: datetime | None
    end_at: datetime | None
    requested_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    deadline_at: datetime
    waves: int
    seen_at: datetime  # on the database's clock
    units: Tally

    @property
    def is_done(self) -> bool:
        """Whether it has its CollectionResult."""
        return self.state == RunState.DONE

    @property
    def lasted_s(self) -> float | None:
        """Seconds since it started, until it ended or now; None before it starts."""
        if self.started_at is None:
            return None
        return ((self.finished_at or self.seen_at) - self.started_at).total_seconds()

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts: the fields of CollectionResult under its own names (of an open run, so far)."""
        tally = self.units
        lasted_s = self.lasted_s
        return {
            "run": self.id,
            "collector_name": self.collector,
            "endpoints": list(self.endpoints),
            "kind": self.kind,
            "lane": self.lane,
            "on_open": self.on_open,
            "state": self.state,
            "outcome": self.outcome,
            "reason": self.reason,
            "schedule": self.schedule,
            "slot_at": iso(self.slot_at),
            "start_at": iso(self.start_at),
            "end_at": iso(self.end_at),
            "requested_at": iso(self.requested_at),
            "started_at": iso(self.started_at),
            "finished_at": iso(self.finished_at),
            "deadline_at": iso(self.deadline_at),
            "lasted_s": None if lasted_s is None else round(lasted_s, 3),
            "waves": self.waves,
            "total_items": tally.total,
            "successful_items": tally.successful,
            "failed_items": tally.failed,
            "success_rate": round(tally.successful / tally.total, 6) if tally.total else 0.0,
            "is_partial": 0 < tally.successful < tally.total,
            "rate_limited": bool(tally.rate_limited),
            "circuit_broken": bool(tally.circuit_broken),
            "units_by_state": dict(tally.by_state),
            "units_by_outcome": dict(tally.by_outcome),
            **{name: getattr(tally, name) for name in COUNTED},
        }


@dataclass(frozen=True, slots=True)
class Waiting:
    """Open units that wait for the same thing."""

    state: str
    reason: str  # a wave | a worker | a retry | a limit | a circuit's name | …
    units: int
    until_at: datetime | None

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts."""
        return {
            "state": self.state,
            "waits_for": self.reason,
            "units": self.units,
            "until_at": iso(self.until_at),
        }


@dataclass(frozen=True, slots=True)
class Failure:
    """Why one unit failed."""

    endpoint: str
    symbol: str
    error: str
    message: str
    at: datetime | None
    attempts: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts under the names of CollectionResult.errors."""
        return {
            "endpoint": self.endpoint,
            "symbol": self.symbol,
            "error": self.error,
            "message": self.message,
            "timestamp": iso(self.at),
            "attempts": self.attempts,
        }


@dataclass(frozen=True, slots=True)
class RunDetail:
    """Everything that is to be said about one run."""

    run: RunView
    by_endpoint: Mapping[str, Tally]
    reasons: Mapping[str, Mapping[str, int]]  # of units that are neither stored nor empty: outcome → reason
    waiting: Sequence[Waiting]
    failures: Sequence[Failure]  # the first ones; `run.units.failed` counts all
    failed_symbols: Mapping[str, int]
    waves_done: int
    waves_differing: int  # whose chord counted otherwise than SQL; SQL wins
    tiers: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # endpoint → tier → units it served

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts: all fields of CollectionResult, and what the run does now."""
        return {
            **self.run.to_dict(),
            "by_endpoint": {
                name: {**tally.by_state, **tally.by_outcome} for name, tally in self.by_endpoint.items()
            },
            "reasons": {outcome: dict(counts) for outcome, counts in self.reasons.items()},
            "waiting": [each.to_dict() for each in self.waiting],
            "errors": [each.to_dict() for each in self.failures],
            "failed_symbols": dict(self.failed_symbols),
            "waves_done": self.waves_done,
            "waves_differing": self.waves_differing,
            "tiers": {name: dict(counts) for name, counts in self.tiers.items()},
        }


@dataclass(frozen=True, slots=True)
class Pulse:
    """What shows whether the processes of one host get on."""

    alive: Mapping[str, int]  # slots with a young heartbeat, by kind
    running: int  # units that its processes hold
    overdue: Sequence[tuple[str, str]]  # anybody's: endpoint and lane of units that were sent long ago
    reconciled_s: float | None  # seconds since the reconciler last ran, anywhere; None: never


@dataclass(frozen=True, slots=True)
class ScheduleView:
    """A schedule as SQL has it."""

    name: str
    every_s: int
    enabled: bool
    last_slot_at: datetime | None


@dataclass(frozen=True, slots=True)
class EventView:
    """Something that happened, e.g. a circuit's transition."""

    id: int
    at: datetime
    kind: str
    subject: str
    run: int | None
    detail: Mapping[str, Any]


def latest_runs(limit: int = 20) -> list[RunView]:
    """The newest runs, newest first."""
    with reading() as connection:
        ids = connection.execute(select(runs.c.id).order_by(runs.c.id.desc()).limit(limit)).scalars().all()
        return _views(connection, ids)


def look_at(ids: Sequence[int]) -> list[RunView]:
    """These runs, in this order; unknown ones are left out."""
    with reading() as connection:
        return _views(connection, ids)


def runs_of(schedule: str, *, after: int = 0, limit: int = 20) -> list[RunView]:
    """The runs of a schedule with an id above `after`, oldest first."""
    ours = select(runs.c.id).where(runs.c.schedule == schedule, runs.c.id > after)
    with reading() as connection:
        ids = connection.execute(ours.order_by(runs.c.id).limit(limit)).scalars().all()
        return _views(connection, ids)


def detail(run: int, *, failures: int = ERRORS_SHOWN) -> RunDetail | None:
    """Everything about one run, with its first failures; None when there is no run with this number."""
    with reading() as connection:
        views = _views(connection, [run])
        if not views:
            return None
        done, differing = connection.execute(
            select(func.count(waves.c.closed_at), func.count().filter(waves.c.differs.is_(True))).where(
                waves.c.run == run
            )
        ).one()
        return RunDetail(
            run=views[0],
            by_endpoint=_tallies(connection, [run], units.c.endpoint),
            reasons=_reasons(connection, run),
            waiting=_waiting(connection, run),
            failures=_failures(connection, run, failures),
            failed_symbols=_failed_symbols(connection, run),
            waves_done=done,
            waves_differing=differing,
            tiers=_served(connection, [run]),
        )


def served(of: Sequence[int]) -> dict[str, dict[str, int]]:
    """How many units of these runs each tier has served, by endpoint; only endpoints with tiers."""
    with reading() as connection:
        return _served(connection, of)


def schedule_views() -> list[ScheduleView]:
    """All schedules, by name."""
    with reading() as connection:
        rows = connection.execute(select(schedules).order_by(schedules.c.name)).mappings()
        return [
            ScheduleView(row["name"], row["every_s"], row["enabled"], row["last_slot_at"]) for row in rows
        ]


def workers_alive(gone_after_s: float) -> dict[str, int]:
    """Slots of the workers that live, by what they are for: units, ctl, alone."""
    with reading() as connection:
        rows = connection.execute(
            select(workers.c.kind, func.sum(workers.c.slots))
            .where(workers.c.beat_at >= db_now(-gone_after_s), workers.c.stopped_at.is_(None))
            .where(workers.c.slots > 0)
            .group_by(workers.c.kind)
        )
        return {kind: int(slots) for kind, slots in rows}


def pulse(host: str, gone_after_s: float, late_after_s: float) -> Pulse:
    """How the processes of this host fare; overdue are units that should have run `late_after_s` ago."""
    alive = select(workers.c.kind, func.sum(workers.c.slots)).where(
        workers.c.host == host, workers.c.beat_at >= db_now(-gone_after_s), workers.c.stopped_at.is_(None)
    )
    here = select(workers.c.id).where(workers.c.host == host)
    running = select(func.count()).where(
        NOT_DONE, units.c.state == UnitState.RUNNING, units.c.worker.in_(here)
    )
    overdue = (
        select(units.c.endpoint, runs.c.lane)
        .distinct()
        .join(runs, runs.c.id == units.c.run)
        .where(NOT_DONE, units.c.state == UnitState.SENT, units.c.alone.is_(False))
        .where(units.c.expected_at < db_now(-late_after_s), runs.c.state == RunState.OPEN)
    )
    reconciled = select(db_now(), workers.c.beat_at).where(workers.c.id == LEASE)
    with reading() as connection:
        ran = connection.execute(reconciled).first()
        return Pulse(
            alive={kind: int(slots) for kind, slots in connection.execute(alive.group_by(workers.c.kind))},
            running=connection.execute(running).scalar_one(),
            overdue=[(endpoint, lane) for endpoint, lane in connection.execute(overdue)],
            reconciled_s=None if ran is None else (ran[0] - ran[1]).total_seconds(),
        )


def events_after(last: int = 0, *, limit: int = 100) -> list[EventView]:
    """What happened after the event with this id, oldest first."""
    with reading() as connection:
        rows = connection.execute(
            select(events).where(events.c.id > last).order_by(events.c.id).limit(limit)
        ).mappings()
        return [EventView(**row) for row in rows]


def rows_stored(endpoints: Iterable[Endpoint]) -> dict[str, tuple[str, int]]:
    """By collector and table: the table's name and how many rows of the collector it holds."""
    counts: dict[str, tuple[str, int]] = {}
    with reading() as connection:
        for endpoint in endpoints:
            table = endpoint.table
            statement = select(func.count()).select_from(table)
            if "source" in table.c:
                statement = statement.where(table.c.source == endpoint.api.name)
            if table is records:
                statement = statement.where(records.c.endpoint == endpoint.name)
            counts[endpoint.full_name] = (table.name, connection.execute(statement).scalar_one())
    return counts


def _views(connection: Connection, ids: Sequence[int]) -> list[RunView]:
    """Runs with their tallies: of done runs from their results, of open ones from their units."""
    rows = {
        row["id"]: row
        for row in connection.execute(
            select(*RUN_WITHOUT_SYMBOLS, db_now().label("seen_at")).where(runs.c.id.in_(ids))
        ).mappings()
    }
    closed = {
        row["run"]: _tally_of_result(row)
        for row in connection.execute(select(results).where(results.c.run.in_(rows))).mappings()
    }
    tallies = _tallies(connection, [run for run in rows if run not in closed], units.c.run) | closed
    return [_view(rows[run], tallies.get(run, Tally())) for run in ids if run in rows]


def _view(row: RowMapping, tally: Tally) -> RunView:
    names = [name for name in RunView.__slots__ if name != "units"]
    return RunView(**{name: row[name] for name in names}, units=tally)


def _tally_of_result(row: RowMapping) -> Tally:
    return Tally(
        by_outcome=row["units_by_outcome"],
        rate_limited=int(row["rate_limited"]),
        circuit_broken=int(row["circuit_broken"]),
        **{name: row[name] for name in COUNTED},
    )


def _tallies(connection: Connection, of: Sequence[int], by: ColumnElement[Any]) -> dict[Any, Tally]:
    """Count the units of some runs, grouped by run or by endpoint."""
    if not of:
        return {}
    parked = and_(units.c.state == UnitState.WAITING, units.c.parked_on.is_not(None))
    broken = (units.c.reason == "circuit_open") | units.c.parked_on.is_not(None)
    rows = connection.execute(
        select(
            by.label("group"),
            units.c.state,
            units.c.outcome,
            func.count().label("count"),
            func.count().filter(parked).label("parked"),
            func.count().filter(units.c.rate_limited).label("rate_limited"),
            func.count().filter(broken).label("circuit_broken"),
            *(func.sum(units.c[name]).label(name) for name in COUNTED),
        )
        .where(units.c.run.in_(of))
        .group_by(by, units.c.state, units.c.outcome)
        .order_by(by)
    ).mappings()
    grouped: dict[Any, list[RowMapping]] = {}
    for row in rows:
        grouped.setdefault(row["group"], []).append(row)
    return {group: _sum(parts) for group, parts in grouped.items()}


def _served(connection: Connection, of: Sequence[int]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for endpoint, tier, count in connection.execute(
        select(units.c.endpoint, units.c.tier, func.count())
        .where(units.c.run.in_(of), units.c.tier.is_not(None))
        .group_by(units.c.endpoint, units.c.tier)
        .order_by(units.c.endpoint, units.c.tier)
    ):
        found.setdefault(endpoint, {})[tier] = count
    return found


def _sum(parts: Sequence[RowMapping]) -> Tally:
    done = [row for row in parts if row["state"] == UnitState.DONE]
    return Tally(
        by_state={row["state"]: row["count"] for row in parts if row["state"] != UnitState.DONE},
        by_outcome={row["outcome"]: row["count"] for row in done},
        **{
            name: sum(row[name] for row in parts)
            for name in ("parked", "rate_limited", "circuit_broken", *COUNTED)
        },
    )


def _reasons(connection: Connection, run: int) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for outcome, reason, count in connection.execute(
        select(units.c.outcome, units.c.reason, func.count())
        .where(units.c.run == run, units.c.outcome.is_not(None), units.c.outcome.not_in(SUCCESSFUL))
        .group_by(units.c.outcome, units.c.reason)
        .order_by(func.count().desc())
    ):
        found.setdefault(outcome, {})[reason or "?"] = count
    return found


def _waiting(connection: Connection, run: int) -> list[Waiting]:
    """What the open units wait for, in the words of `Waiting.reason`."""
    later = units.c.not_before > db_now()
    reason = case(
        (units.c.state == UnitState.RUNNING, literal("its answer")),
        (units.c.state == UnitState.SENT, literal("a worker")),
        (and_(later, units.c.parked_on.is_not(None)), literal("circuit ") + units.c.parked_on),
        (and_(later, units.c.ticket.is_not(None)), literal("its place in a limit")),
        (and_(later, units.c.throttles > 0), literal("the server's Retry-After")),
        (and_(later, units.c.attempts > 0), literal("a retry")),
        (later, literal("its time")),
        else_=literal("a wave"),
    )
    rows = connection.execute(
        select(
            units.c.state,
            reason.label("reason"),
            func.count(),
            func.min(case((and_(units.c.state == UnitState.WAITING, later), units.c.not_before))),
        )
        .where(units.c.run == run, units.c.state != UnitState.DONE)
        .group_by(units.c.state, reason)
        .order_by(func.count().desc())
    )
    return [Waiting(*row) for row in rows]


def _failures(connection: Connection, run: int, limit: int) -> list[Failure]:
    rows = connection.execute(
        select(units)
        .where(units.c.run == run, units.c.outcome.in_(UNSUCCESSFUL))
        .order_by(units.c.n)
        .limit(limit)
    ).mappings()
    return [_failure(row, row["error"] or {}) for row in rows]


def _failure(row: RowMapping, error: Mapping[str, Any]) -> Failure:
    happened = error.get("timestamp")
    return Failure(
        endpoint=row["endpoint"],
        symbol=row["symbol"],
        error=row["reason"] or "?",
        message=error.get("message") or f"{row['outcome']}: {row['reason']}",
        at=datetime.fromisoformat(happened) if happened else row["finished_at"],
        attempts=row["attempts"],
    )


def _failed_symbols(connection: Connection, run: int) -> dict[str, int]:
    rows = connection.execute(
        select(units.c.symbol, func.count())
        .where(units.c.run == run, units.c.outcome.in_(UNSUCCESSFUL))
        .group_by(units.c.symbol)
        .order_by(units.c.symbol)
        .limit(ERRORS_KEPT)
    )
    return {symbol: number for symbol, number in rows}  # noqa: C416 - rows are no pairs to mypy


def limit_row(limiter: RateLimiter, reading: LimitReading) -> dict[str, Any]:
    """What `penstock limits` says of a limit; None where it does not apply to the kind."""
    limit, paced = limiter.limit, limiter.limit.kind == "bucket"
    return {
        "api": limiter.api,
        "limit": limit.spec,
        "kind": limit.kind,
        "shared_by": limiter.key,
        "amount": limit.amount,
        "declared_rate_per_s": rate_of(limit) if paced else None,
        "rate_per_s": rate_of(limit, reading.stretch) if paced else None,
        "adjusted_by_hand": reading.factor if paced else None,
        "used": None if paced else reading.used,
        "left": reading.left,
        "waiting": reading.waiting,
        "anew_at": iso(_moment(reading.end_us)),
        "closed_until_at": iso(_moment(reading.gate_until_us)),
        "banned": reading.banned,
        "calls": reading.calls if paced else None,
        "violations": reading.violations if paced else None,
    }


def _moment(us: int) -> datetime | None:
    return datetime.fromtimestamp(us / 1e6, UTC) if us else None
