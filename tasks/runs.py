"""A run, from its request to its CollectionResult: accept, plan, advance, close.

SQL decides every step. A wave is a plain Celery chord; its body calls `advance`, which launches the next
wave or closes the run. The reconciler calls the same functions, so a chord that never fires costs seconds
and not the run.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, islice
from typing import Any

from celery import chord, shared_task
from celery.utils import uuid
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Connection, RowMapping, and_, delete, exists, func, insert, or_, select, true, update
from sqlalchemy.dialects import postgresql, sqlite

from resilience.errors import ConfigurationError, DatabaseError, StoreUnavailableError
from resilience.guard import CircuitView
from resilience.policy import Lane
from tasks import heartbeat, quarantine, upsert
from tasks.broker import away_is_one_error
from tasks.collectors.registry import endpoint_of
from tasks.collectors.spec import Endpoint
from tasks.launch import launch
from tasks.limits import circuits
from tasks.models import RUN_WITHOUT_SYMBOLS, results, runs, units, waves, workers
from tasks.outcomes import (
    CollectionResult,
    Outcome,
    RunKind,
    RunOutcome,
    RunState,
    UnitState,
    fold,
)
from tasks.results import log_result, result_columns, result_of
from tasks.settings import Settings, get_settings
from tasks.store import db_now, finish_open_units, read_cursors, reading, writing
from tasks.symbols import NoSymbolsYet, symbols_of
from tasks.units import collect, queue_for
from tasks.waves import WAVES_AT_ONCE, pick, refuses, take_back

logger = logging.getLogger(__name__)

PRIORITY = {RunKind.ADHOC: 20, RunKind.SCHEDULED: 10, RunKind.BACKFILL: 0}
UNITS_MAX = 1_000_000  # more windows are surely a mistake in the range
CHUNK = 2000  # unit rows in one transaction: short enough that other writers hardly wait
Planned = tuple[str, str, datetime | None, datetime | None, str | None]
PLANNED = ("endpoint", "symbol", "start_at", "end_at", "cursor")
NOT_RUNNING = (UnitState.WAITING, UnitState.SENT)
OPEN = (UnitState.WAITING, UnitState.SENT, UnitState.RUNNING)


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants collected."""

    collector: str
    endpoints: tuple[str, ...]  # full names
    kind: RunKind
    symbols: tuple[str, ...] | None = None
    start: datetime | None = None
    end: datetime | None = None
    deadline_s: float = 3600.0
    on_open: str = "park"
    schedule: str | None = None
    slot_at: datetime | None = None


def accept(connection: Connection, order: Order) -> int | None:
    """Store a run that is to be planned; from here on it cannot be lost.

    None when the schedule's slot has its run already (two beats, a late or a double tick).
    """
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = (
        dialect.insert(runs)
        .values(
            collector=order.collector,
            endpoints=list(order.endpoints),
            kind=order.kind,
            lane=Lane.BACKFILL if order.kind == RunKind.BACKFILL else Lane.LIVE,
            priority=PRIORITY[order.kind],
            on_open=order.on_open,
            state=RunState.PLANNING,
            schedule=order.schedule,
            slot_at=order.slot_at,
            symbols=None if order.symbols is None else list(order.symbols),
            start_at=order.start,
            end_at=order.end,
            requested_at=db_now(),
            deadline_at=db_now(order.deadline_s),
        )
        .on_conflict_do_nothing(index_elements=[runs.c.schedule, runs.c.slot_at])
        .returning(runs.c.id)
    )
    return connection.execute(statement).scalar_one_or_none()


def request(order: Order) -> int:
    """Accept a run and return its id. Raises DatabaseError when it could not be stored."""
    with writing() as connection:
        run = accept(connection, order)
    assert run is not None
    return run


def start(run: int) -> bool:
    """Ask a ctl worker to plan a run now; False when the broker is away (the reconciler plans it later)."""
    try:
        with away_is_one_error():
            plan.apply_async(kwargs={"run": run}, retry=False)
    except BrokerError:
        return False
    return True


@shared_task(name="tasks.runs.plan", autoretry_for=(DatabaseError,), retry_backoff=True, max_retries=3)
def plan(*, run: int) -> None:
    """Write the units of a run in short transactions, open it, and launch its first waves.

    Planning again after a planner died starts anew: no unit of a run that is not open was ever sent.
    """
    row = _take_planning(run)
    if row is None:
        return
    try:
        planned = _write_units(run, row)
    except ConfigurationError as error:
        logger.warning("run %s cannot be planned: %s", run, error)
        with writing() as connection:
            _decide(connection, run, RunOutcome.FAILED, str(error))
        _end_what_waits(run)
        return
    if planned:
        carry_on(run)


def _write_units(run: int, row: RowMapping) -> bool:
    """Write the units, then open the run; False when another planner took over."""
    endpoints = [endpoint_of(name) for name in row["endpoints"]]
    lacking: dict[str, str] = {}
    planned = chain.from_iterable(_units_of(row, endpoint, lacking) for endpoint in endpoints)
    first = 0
    while chunk := list(islice(planned, CHUNK)):
        with writing() as connection:
            if not _still_planning(connection, run):
                return False
            upsert.insert(connection, units, _columns_of(row, first, chunk))
        first += len(chunk)
        if first > UNITS_MAX and row["kind"] == RunKind.BACKFILL:
            raise ConfigurationError(f"more than {UNITS_MAX:,} units in one backfill: take a shorter range")
    with writing() as connection:
        if not _still_planning(connection, run):
            return False
        _skip_lacking(connection, row, first, lacking)
        quarantine.skip(connection, row)
        connection.execute(
            update(runs).where(runs.c.id == run).values(state=RunState.OPEN, started_at=db_now())
        )
    return True


def _skip_lacking(connection: Connection, run: RowMapping, first: int, lacking: Mapping[str, str]) -> None:
    """One skipped unit for each endpoint without symbols, and the reasons as the run's."""
    ended = {"state": UnitState.DONE, "outcome": Outcome.SKIPPED, "reason": NoSymbolsYet.code}
    for n, endpoint in enumerate(lacking, start=first):
        mine = {
            "run": run["id"],
            "n": n,
            "endpoint": endpoint,
            "symbol": "",
            "not_before": run["requested_at"],
        }
        connection.execute(insert(units).values(**mine, **ended, finished_at=db_now()))
    if lacking:
        connection.execute(
            update(runs).where(runs.c.id == run["id"]).values(reason="; ".join(lacking.values()))
        )


def _columns_of(run: RowMapping, first: int, chunk: Sequence[Planned]) -> dict[str, Sequence[Any]]:
    """The columns of units that are numbered from `first` on."""
    size = len(chunk)
    return {
        "run": [run["id"]] * size,
        "n": range(first, first + size),
        "state": [UnitState.WAITING] * size,
        "not_before": [run["requested_at"]] * size,
        **dict(zip(PLANNED, zip(*chunk, strict=True), strict=True)),
    }


def _take_planning(run: int) -> RowMapping | None:
    """Become the planner of a run that has none alive, and clear what an earlier one wrote."""
    settings = get_settings()
    with writing() as connection:
        row = (
            connection.execute(
                update(runs)
                .where(runs.c.id == run, runs.c.state == RunState.PLANNING)
                .where(without_planner(settings))
                .values(planner=heartbeat.worker_id(), planned_at=db_now())
                .returning(runs, db_now().label("now"))
            )
            .mappings()
            .one_or_none()
        )
        if row is not None:
            connection.execute(delete(units).where(units.c.run == run))
    return row


def without_planner(settings: Settings) -> Any:
    """A condition: nobody plans the run, or its planner is gone or has been silent for too long."""
    planner = exists().where(workers.c.id == runs.c.planner)
    gone = exists().where(workers.c.id == runs.c.planner, workers.c.beat_at < db_now(-settings.gone_after_s))
    silent = runs.c.planned_at < db_now(-settings.claim_max_s)
    unknown = and_(~planner, runs.c.planned_at < db_now(-settings.gone_after_s))
    return or_(runs.c.planner.is_(None), gone, silent, unknown)


def _still_planning(connection: Connection, run: int) -> bool:
    """Renew the planner's lease; False when another planner took over."""
    result = connection.execute(
        update(runs)
        .where(runs.c.id == run, runs.c.state == RunState.PLANNING, runs.c.planner == heartbeat.worker_id())
        .values(planned_at=db_now())
    )
    return result.rowcount == 1


def _units_of(run: RowMapping, endpoint: Endpoint, lacking: dict[str, str]) -> Iterator[Planned]:
    """The units of one endpoint: one for each symbol, and for each window of a backfill.

    Without symbols there are none, and `lacking` says why.
    """
    name, start, end, now = endpoint.full_name, run["start_at"], run["end_at"], run["now"]
    try:
        symbols = run["symbols"] if run["symbols"] is not None else symbols_of(endpoint)
    except NoSymbolsYet as none:
        lacking[name] = str(none)
        return
    if start is not None:
        for symbol in symbols:
            for since, until in endpoint.chunks(start, end):
                yield name, symbol, since, until, None
        return
    with reading() as connection:
        cursors = read_cursors(connection, name)
    # Most symbols stand at one cursor.
    windows: dict[str | None, tuple[datetime | None, datetime | None]] = {}
    for symbol in symbols:
        cursor = cursors.get(symbol)
        if cursor not in windows:
            windows[cursor] = endpoint.window(symbol, cursor, now)
        yield name, symbol, *windows[cursor], cursor


@shared_task(name="tasks.runs.advance", autoretry_for=(DatabaseError,), retry_backoff=True, max_retries=3)
def advance(
    outcomes: Sequence[Mapping[str, Any] | None] | None = None, *, run: int, wave: int | None = None
) -> None:
    """The body of a wave's chord: keep its totals, then launch the next wave or close the run."""
    if wave is not None and outcomes is not None:
        _keep_totals(run, wave, outcomes)
    carry_on(run)


def _keep_totals(run: int, wave: int, outcomes: Sequence[Mapping[str, Any] | None]) -> None:
    """Keep what the chord counted beside whether SQL agrees; SQL wins, a chord may count a duplicate."""
    totals = fold(outcomes)
    numbers: set[int] = {each["unit"] for each in outcomes if each is not None and "unit" in each}
    with writing() as connection:
        size = connection.execute(
            select(waves.c.units).where(waves.c.run == run, waves.c.n == wave)
        ).scalar_one_or_none()
        # Between a wave's first and last unit lies little else; otherwise the whole run is looked through.
        within = units.c.n.between(min(numbers), max(numbers)) if len(numbers) == size else true()
        counted: dict[str, int] = dict(
            connection.execute(
                select(units.c.outcome, func.count())
                .where(units.c.run == run, within, units.c.wave == wave, units.c.state == UnitState.DONE)
                .group_by(units.c.outcome)
            ).all()
        )
        differs = any(totals.get(outcome, 0) != counted.get(outcome, 0) for outcome in Outcome)
        connection.execute(
            update(waves)
            .where(waves.c.run == run, waves.c.n == wave)
            .values(totals=totals, closed_at=db_now(), differs=differs)
        )


def carry_on(run: int) -> None:
    """Launch what may be launched of a run, or close it when nothing is open."""
    if close(run) is not None:
        return
    with reading() as connection:
        row = (
            connection.execute(
                select(*RUN_WITHOUT_SYMBOLS).where(runs.c.id == run, runs.c.state == RunState.OPEN)
            )
            .mappings()
            .one_or_none()
        )
    if row is None:
        return
    if row["outcome"] is not None:
        _end_what_waits(run)
        return
    endpoints = [endpoint_of(name) for name in row["endpoints"]]
    views = _circuits(endpoints)
    if row["on_open"] == "skip":
        _skip_behind_open_circuits(row, endpoints, views)
    for _ in range(WAVES_AT_ONCE):
        if not _launch_wave(row, endpoints, views):
            break
    close(run)


def _end_what_waits(run: int) -> None:
    """The run's end is decided: what came back to wait since then is not sent again."""
    with writing() as connection:
        finish_open_units(connection, run, Outcome.SKIPPED, "cancelled", states=NOT_RUNNING)
    close(run)


def _circuits(endpoints: Sequence[Endpoint]) -> Mapping[str, CircuitView]:
    try:
        return circuits(endpoints)
    except StoreUnavailableError:
        return {}  # nothing is known; each unit asks for itself


def _skip_behind_open_circuits(
    run: RowMapping, endpoints: Sequence[Endpoint], views: Mapping[str, CircuitView]
) -> None:
    """A scheduled run does not wait for a circuit: its next slot catches up."""
    refusing = [each.full_name for each in endpoints if refuses(views.get(each.full_name))]
    if not refusing:
        return
    with writing() as connection:
        connection.execute(
            update(units)
            .where(
                units.c.run == run["id"], units.c.state == UnitState.WAITING, units.c.endpoint.in_(refusing)
            )
            .values(
                state=UnitState.DONE, outcome=Outcome.SKIPPED, reason="circuit_open", finished_at=db_now()
            )
        )


def _launch_wave(run: RowMapping, endpoints: Sequence[Endpoint], views: Mapping[str, CircuitView]) -> bool:
    """Pick due units, mark them sent, and publish them as one chord."""
    chord_id = uuid()
    picked = pick(run, endpoints, views, chord_id)
    if picked is None:
        return False
    wave, rows = picked
    body = advance.s(run=run["id"], wave=wave)
    body.link_error(advance.si(None, run=run["id"], wave=wave))
    header = [
        collect.s(**_message(run, row)).set(queue=queue_for(row["endpoint"], run["lane"])) for row in rows
    ]
    try:
        launch(chord(header, body, task_id=chord_id))
    except BrokerError:
        take_back(run["id"], wave)
        raise
    return True


def _message(run: RowMapping, row: RowMapping) -> dict[str, Any]:
    """What a unit's message says; all of it for people, but for the two numbers."""
    message = {"run": run["id"], "n": row["n"], "endpoint": row["endpoint"], "symbol": row["symbol"]}
    if run["start_at"] is not None and row["start_at"] is not None:
        message["window"] = row["start_at"].isoformat()
    return message


def accept_skipped(connection: Connection, order: Order, reason: str) -> int | None:
    """Store a run that is not to be made, e.g. because the one before it still goes on: never silent."""
    run = accept(connection, order)
    if run is not None:
        _decide(connection, run, RunOutcome.SKIPPED, reason)
    return run


def cancel(connection: Connection, run: int, reason: str) -> None:
    """End what waits or is sent; running units finish, and the last of them closes the run."""
    _decide(connection, run, RunOutcome.CANCELLED, reason)  # first: it takes the run's lock, as all others do
    finish_open_units(connection, run, Outcome.SKIPPED, "cancelled", states=NOT_RUNNING)


def _decide(connection: Connection, run: int, outcome: RunOutcome, reason: str) -> None:
    """Say how a run ends before it does; it closes as soon as nothing of it is running."""
    connection.execute(
        update(runs)
        .where(runs.c.id == run, runs.c.state != RunState.DONE)
        .values(
            outcome=outcome,
            reason=reason,
            state=RunState.OPEN,
            started_at=func.coalesce(runs.c.started_at, db_now()),
        )
    )


def close(run: int) -> CollectionResult | None:
    """Close a run that has nothing open, exactly once, and keep its CollectionResult.

    Chord body, errback and reconciler all come here; the compare-and-set on the state lets one win.
    """
    with writing() as connection:
        row = (
            connection.execute(
                select(*RUN_WITHOUT_SYMBOLS, db_now().label("now"))
                .where(runs.c.id == run, runs.c.state == RunState.OPEN)
                .with_for_update(of=runs)
            )
            .mappings()
            .one_or_none()
        )
        if row is None or _has_open_units(connection, run):
            return None
        result = result_of(connection, row)
        connection.execute(
            update(runs)
            .where(runs.c.id == run, runs.c.state != RunState.DONE)
            .values(state=RunState.DONE, outcome=result.outcome, finished_at=row["now"])
        )
        connection.execute(insert(results).values(run=run, **result_columns(result)))
        quarantine.learn(connection, row)
    log_result(run, result)
    return result


def _has_open_units(connection: Connection, run: int) -> bool:
    return (
        connection.execute(
            select(units.c.n).where(units.c.run == run, units.c.state.in_(OPEN)).limit(1)
        ).first()
        is not None
    )
