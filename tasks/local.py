"""What a collector's class does outside of a worker: its runs in this process, its schedule, its health."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Double, case, cast, func, select

from resilience.errors import ConfigurationError, PenstockError, ServerAwayError
from resilience.health import Health
from resilience.policy import Lane
from tasks import bad_rows, drift, schema, store
from tasks.calls import Calls, Snooze
from tasks.collectors.endpoint import Endpoint
from tasks.collectors.registry import configured
from tasks.collectors.spec import Api
from tasks.collectors.values import Answer, Fetched, Unit
from tasks.http import client
from tasks.limits import ask_for, circuit_of, limits, without_redis
from tasks.models import results, schedules, units
from tasks.outcomes import RunOutcome, UnitState
from tasks.reads import limit_row
from tasks.schedules import set_enabled
from tasks.session import GuardedSession
from tasks.settings import get_settings
from tasks.units import RETRYABLE, End, next_step
from tasks.upsert import upsert

logger = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_AGAIN_S = 0.2


def now() -> str:
    """This moment, as it is written in results."""
    return told(datetime.now(UTC))


def told(at: datetime) -> str:
    """ISO 8601 in UTC with a Z; a time without a zone is taken as UTC."""
    aware = at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    return aware.isoformat().replace("+00:00", "Z")


@dataclass(slots=True)
class Counts:
    """What was done in this process."""

    requests: int = 0
    failed_requests: int = 0
    records: int = 0
    runs: int = 0
    runtime_s: float = 0.0
    started_at: str | None = None
    last_collection: str | None = None
    last_success: str | None = None
    last_error: str | None = None

    def spend(self, **amounts: float) -> None:
        """Count a call that was admitted."""
        self.requests += int(amounts.get("calls", 0))


@dataclass(frozen=True, slots=True)
class Done:
    """How one run of a method ended."""

    records: int = 0
    errors: list[str] = field(default_factory=list)


class Local:
    """A collector of one endpoint that runs in this process, through the same guard as everywhere."""

    def __init__(self, api: Api, counts: Counts, ends: threading.Event) -> None:
        self._settings = get_settings()
        _prepare(self._settings.database)
        try:
            self._settings.redis  # noqa: B018 - asks whether there is one
        except ServerAwayError:
            logger.warning("no Redis is known: limits and circuits of %s are those of this process", api.name)
            without_redis()
        (self.endpoint,) = configured(api).endpoints.values()
        self._counts = counts
        self._ends = ends

    def close(self) -> None:
        """Close the connections."""
        client().close()

    def run(self, start: datetime | None, end: datetime | None) -> Done:
        """Run the method, as often as the rules say, and keep its rows."""
        began = time.monotonic()
        self._counts.started_at = self._counts.started_at or now()
        done = self._tried(start, end)
        self._counts.runs += 1
        self._counts.runtime_s += time.monotonic() - began
        self._counts.last_collection = now()
        self._counts.records += done.records
        if done.errors:
            self._counts.last_error = done.errors[-1]
        else:
            self._counts.last_success = self._counts.last_collection
        return done

    def _tried(self, start: datetime | None, end: datetime | None) -> Done:
        row: dict[str, Any] = {"attempts": 0, "throttles": 0, "retries": 0, "ticket": None}
        while True:
            calls = self._calls(row["ticket"])
            try:
                return Done(self._once(calls, self._unit(start, end)))
            except Exception as error:  # noqa: BLE001 - told to the caller, and logged where it is a mistake
                self._failed(calls, error)
                wait_s = self._wait_s(error, row, probe=calls.probed)
                if wait_s is None:
                    return Done(errors=[str(error) or type(error).__name__])
            if self._ends.wait(wait_s):
                return Done(errors=["it was stopped while it waited"])

    def _once(self, calls: Calls, unit: Unit) -> int:
        assert self.endpoint.fetch is not None
        with GuardedSession(calls) as session:
            fetched = session.let(self.endpoint.fetch, unit, {})
        stored = self._store(unit, fetched, calls.answer)
        calls.settle()
        return stored

    def _failed(self, calls: Calls, error: Exception) -> None:
        calls.settle(error)
        if not isinstance(error, PenstockError):
            logger.error("%s failed by a mistake", self.endpoint.full_name, exc_info=error)
        if not isinstance(error, Snooze):
            self._counts.failed_requests += calls.failure is not None and calls.refused is None

    def _wait_s(self, error: Exception, row: dict[str, Any], *, probe: bool) -> float | None:
        """How long to wait before it is tried again, by the rules of units; None: it is not."""
        if not isinstance(error, PenstockError) or not isinstance(error, RETRYABLE):
            return None
        step = next_step(
            error,
            row,
            policy=self.endpoint.api.retry,
            on_open="skip",
            settings=self._settings,
            now=datetime.now(UTC),
            probe=probe,
        )
        row |= step.values
        return None if isinstance(step, End) else step.seconds

    def call(self, ask: Callable[[GuardedSession], T]) -> T:
        """One call outside of a run: it waits as long as a limit wants, and raises what it came to."""
        ticket = None
        while True:
            calls = self._calls(ticket)
            try:
                with GuardedSession(calls) as session:
                    return ask(session)
            except Snooze as snooze:
                ticket = snooze.ticket
                if self._ends.wait(snooze.seconds):
                    raise
            except BaseException as error:
                calls.settle(error)
                self._counts.failed_requests += 1
                raise
            finally:
                calls.settle()

    def keep(self, rows: list[Any]) -> None:
        """Check rows and store them."""
        self._counts.records += self._store(self._unit(None, None), Fetched(rows), None)

    def _store(self, unit: Unit, fetched: Fetched, answer: Answer | None) -> int:
        page = self.endpoint.take(unit, {}, fetched, answer)
        with store.writing() as connection:
            upsert(connection, self.endpoint.table, self.endpoint.stamped(page.rows))
            bad_rows.keep(connection, self.endpoint.full_name, unit, page.bad, before=0)
        drift.watch(self.endpoint.full_name, page.sample)
        return len(page.rows)

    def _calls(self, ticket: str | None) -> Calls:
        ask = ask_for(self.endpoint, "", Lane.LIVE, self.endpoint.weigh(self._unit(None, None)))
        return Calls(
            self.endpoint.api, ask, self._counts, self._settings, ticket=ticket, stopping=self._ends.is_set
        )

    def _unit(self, start: datetime | None, end: datetime | None) -> Unit:
        return Unit(0, 0, self.endpoint.api.name, self.endpoint.name, "", start, end, None)


def _prepare(url: str) -> None:
    """A SQLite database is made where there is none; any other has to be migrated already."""
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        schema.upgrade(url)
    schema.check(url)


def enable(endpoint: Endpoint) -> None:
    """Have beat run the endpoint at its interval."""
    _prepare(get_settings().database)
    set_enabled(endpoint, enabled=True)


def disable(endpoint: Endpoint, timeout_s: float) -> bool:
    """Have it run no more, and wait for units that run; says whether they are through."""
    if not _is_there():
        return True
    set_enabled(endpoint, enabled=False)
    until = time.monotonic() + timeout_s
    while running := _running(endpoint):
        if time.monotonic() >= until:
            logger.warning("%s: %s units still run", endpoint.full_name, running)
            return False
        time.sleep(_LOOK_AGAIN_S)
    return True


def _running(endpoint: Endpoint) -> int:
    with store.reading() as connection:
        return connection.execute(
            select(func.count()).where(
                units.c.endpoint == endpoint.full_name, units.c.state == UnitState.RUNNING
            )
        ).scalar_one()


def enabled(endpoint: Endpoint) -> bool:
    """Whether the endpoint's schedule is enabled."""
    if not _is_there():
        return False
    with store.reading() as connection:
        found = connection.execute(
            select(schedules.c.enabled).where(schedules.c.name == endpoint.full_name)
        ).scalar_one_or_none()
    return bool(found)


def health_of(endpoint: Endpoint, counts: Counts) -> dict[str, Any]:
    """Circuit, limit and statistics of an endpoint. Raises StoreUnavailableError where Redis is away."""
    health = Health.of(endpoint.full_name, circuit_of(endpoint).get_status())
    rates = [limit_row(limiter, reading) for limiter, reading in limits([endpoint]).items()]
    return {
        "healthy": health.healthy,
        "status": health.status.value,
        "detail": health.detail and health.detail.value,
        "collector_name": endpoint.api.name,
        "is_running": enabled(endpoint),
        "circuit_breaker": dict(health.facts),
        "rate_limiter": rates[0],
        "statistics": _with_status(endpoint, counts, health.status.value),
    }


def statistics_of(endpoint: Endpoint, counts: Counts) -> dict[str, Any]:
    """What the collector has done in the fleet, as SQL has it, and in this process."""
    status = Health.of(endpoint.full_name, circuit_of(endpoint).get_status()).status.value
    return _with_status(endpoint, counts, status)


def _with_status(endpoint: Endpoint, counts: Counts, status: str) -> dict[str, Any]:
    fleet = _in_fleet(endpoint) if _is_there() else {}
    requests = counts.requests + fleet.get("calls", 0)
    failed = min(requests, counts.failed_requests + fleet.get("failed", 0))
    newer = _later(counts.last_collection, fleet.get("last_collection")) == counts.last_collection
    return {
        "collector_name": endpoint.api.name,
        "status": status,
        "started_at": min(filter(None, (counts.started_at, fleet.get("started_at"))), default=None),
        "last_collection": _later(counts.last_collection, fleet.get("last_collection")),
        "last_success": _later(counts.last_success, fleet.get("last_success")),
        "last_error": (newer and counts.last_error) or fleet.get("last_error") or counts.last_error,
        "total_requests": requests,
        "successful_requests": requests - failed,
        "failed_requests": failed,
        "data_points_collected": counts.records + fleet.get("records", 0),
        "total_runtime": round(counts.runtime_s + fleet.get("runtime_s", 0.0), 3),
        "collections_completed": counts.runs + fleet.get("runs", 0),
    }


def _later(one: str | None, other: str | None) -> str | None:
    return max(filter(None, (one, other)), default=None)


def _in_fleet(endpoint: Endpoint) -> dict[str, Any]:
    """Totals of all runs of the collector, in which every unit is one of its endpoint."""
    mine = results.c.collector_name == endpoint.api.name
    good = results.c.outcome.in_((RunOutcome.OK, RunOutcome.EMPTY, RunOutcome.PARTIAL))
    with store.reading() as connection:
        totals = (
            connection.execute(
                select(
                    func.count().label("runs"),
                    func.min(results.c.started_at).label("started_at"),
                    func.max(results.c.finished_at).label("last_collection"),
                    func.max(case((good, results.c.finished_at))).label("last_success"),
                    _total(results.c.calls).label("calls"),
                    _total(results.c.retries + results.c.failed_items).label("failed"),
                    _total(results.c.records).label("records"),
                    cast(_total(_lasted(connection)), Double).label("runtime_s"),
                ).where(mine)
            )
            .mappings()
            .one()
        )
        errors = connection.execute(
            select(results.c.errors)
            .where(mine, results.c.outcome.not_in((RunOutcome.OK, RunOutcome.EMPTY)))
            .order_by(results.c.run.desc())
            .limit(1)
        ).scalar_one_or_none()
    facts = {name: told(value) if isinstance(value, datetime) else value for name, value in totals.items()}
    return facts | {"last_error": errors[0]["message"] if errors else None}


def _total(column: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(column), 0)


def _lasted(connection: Connection) -> ColumnElement[Any]:
    """Seconds that a run took, in the words of the database."""
    if connection.dialect.name == "sqlite":
        days = func.julianday(results.c.finished_at) - func.julianday(results.c.started_at)
        return days * 86_400
    return func.extract("epoch", results.c.finished_at - results.c.started_at)


def _is_there() -> bool:
    """Whether the database is there and migrated; makes none by looking."""
    url = get_settings().database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        return False
    try:
        schema.check(url)
    except ConfigurationError:
        return False
    return True
