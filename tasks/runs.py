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
from sqlalchemy import Connection, RowMapping, Select, and_, delete, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from resilience.errors import ConfigurationError, DatabaseError, StoreUnavailableError
from resilience.guard import CircuitState, CircuitView
from resilience.policy import Lane
from tasks import heartbeat
from tasks.collectors.registry import endpoint_of
from tasks.collectors.spec import Endpoint
from tasks.launch import launch
from tasks.limits import circuits, wave_weight
from tasks.models import NOT_DONE, results, runs, units, waves, workers
from tasks.outcomes import (
    ERRORS_KEPT,
    SUCCESSFUL,
    UNSUCCESSFUL,
    CollectionResult,
    Outcome,
    RunKind,
    RunOutcome,
    RunState,
    UnitState,
    fold,
    run_outcome,
)
from tasks.settings import Settings, get_settings
from tasks.store import db_now, finish_open_units, read_cursors, reading, writing
from tasks.units import collect, queue_for

logger = logging.getLogger(__name__)

PRIORITY = {RunKind.ADHOC: 20, RunKind.SCHEDULED: 10, RunKind.BACKFILL: 0}
CHUNK = 2000  # unit rows in one transaction: short enough that other writers hardly wait
WAVES_AT_ONCE = 2
# With two waves at most, a tiny one would keep the next from being launched before the first is through.
LEAST_WAVE = 1 / 3
WAVE_YOUNG = 3  # times what a wave is to take
NOT_RUNNING = (UnitState.WAITING, UnitState.SENT)
OPEN = (UnitState.WAITING, UnitState.SENT, UnitState.RUNNING)
IN_FLIGHT = (UnitState.SENT, UnitState.RUNNING)


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
        plan.apply_async(kwargs={"run": run}, retry=False)
    except (BrokerError, OSError):
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
    planned = enumerate(chain.from_iterable(_units_of(row, endpoint) for endpoint in endpoints))
    while rows := list(islice(planned, CHUNK)):
        with writing() as connection:
            if not _still_planning(connection, run):
                return False
            connection.execute(insert(units), [{"run": run, "n": n, **unit} for n, unit in rows])
    with writing() as connection:
        if not _still_planning(connection, run):
            return False
        connection.execute(
            update(runs).where(runs.c.id == run).values(state=RunState.OPEN, started_at=db_now())
        )
    return True


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


def _units_of(run: RowMapping, endpoint: Endpoint) -> Iterator[dict[str, Any]]:
    """The units of one endpoint: a row for each symbol, and for each window of a backfill."""
    with reading() as connection:
        known = read_cursors(connection, endpoint.full_name)
    symbols = run["symbols"] if run["symbols"] is not None else endpoint.check_symbols()
    for symbol in symbols:
        cursor = known.get(symbol)
        if run["start_at"] is not None:
            windows: Iterator[tuple[datetime | None, datetime | None]] = endpoint.chunks(
                run["start_at"], run["end_at"]
            )
        else:
            windows = iter((endpoint.window(symbol, cursor, run["now"]),))
        for start_at, end_at in windows:
            yield {
                "endpoint": endpoint.full_name,
                "symbol": symbol,
                "start_at": start_at,
                "end_at": end_at,
                "cursor": cursor if run["start_at"] is None else None,
                "state": UnitState.WAITING,
                "not_before": run["requested_at"],
            }


@shared_task(name="tasks.runs.advance", autoretry_for=(DatabaseError,), retry_backoff=True, max_retries=3)
def advance(
    outcomes: Sequence[Mapping[str, Any] | None] | None = None, *, run: int, wave: int | None = None
) -> None:
    """The body of a wave's chord: keep its totals, then launch the next wave or close the run."""
    if wave is not None and outcomes is not None:
        _keep_totals(run, wave, fold(outcomes))
    carry_on(run)


def _keep_totals(run: int, wave: int, totals: dict[str, int]) -> None:
    """Keep what the chord counted beside whether SQL agrees; SQL wins, a chord may count a duplicate."""
    with writing() as connection:
        counted: dict[str, int] = dict(
            connection.execute(
                select(units.c.outcome, func.count())
                .where(units.c.run == run, units.c.wave == wave, units.c.state == UnitState.DONE)
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
            connection.execute(select(runs).where(runs.c.id == run, runs.c.state == RunState.OPEN))
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
    refusing = [each.full_name for each in endpoints if _refuses(views.get(each.full_name))]
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


def _refuses(view: CircuitView | None) -> bool:
    return view is not None and view.state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}


def _launch_wave(run: RowMapping, endpoints: Sequence[Endpoint], views: Mapping[str, CircuitView]) -> bool:
    """Pick due units, mark them sent, and publish them as one chord."""
    chord_id = uuid()
    picked = _pick(run, endpoints, views, chord_id)
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
    except (BrokerError, OSError):
        _take_back(run["id"], wave)
        raise
    return True


def _take_back(run: int, wave: int) -> None:
    """A wave that could not be published waits again: nobody has to wait until its messages are late."""
    with writing() as connection:
        connection.execute(
            update(units)
            .where(units.c.run == run, units.c.wave == wave, units.c.state == UnitState.SENT)
            .values(state=UnitState.WAITING, wave=None)
        )
        connection.execute(delete(waves).where(waves.c.run == run, waves.c.n == wave))


def _message(run: RowMapping, row: RowMapping) -> dict[str, Any]:
    """What a unit's message says; all of it for people, but for the two numbers."""
    message = {"run": run["id"], "n": row["n"], "endpoint": row["endpoint"], "symbol": row["symbol"]}
    if run["start_at"] is not None and row["start_at"] is not None:
        message["window"] = row["start_at"].isoformat()
    return message


def _pick(
    run: RowMapping, endpoints: Sequence[Endpoint], views: Mapping[str, CircuitView], chord_id: str
) -> tuple[int, list[RowMapping]] | None:
    """Mark a wave's units as sent in one transaction under the run's lock; None when there is no room."""
    settings = get_settings()
    hosts, slots = heartbeat.alive("units", settings.gone_after_s)
    with writing() as connection:
        locked = connection.execute(
            select(runs.c.waves)
            .where(runs.c.id == run["id"], runs.c.state == RunState.OPEN, runs.c.outcome.is_(None))
            .with_for_update()
        ).one_or_none()
        if locked is None or _waves_in_flight(connection, run["id"]) >= WAVES_AT_ONCE:
            return None
        wave = locked.waves + 1
        flying = _in_flight(connection, run["lane"])
        used = _weight_by_api(flying)
        rows: list[RowMapping] = []
        for endpoint in endpoints:
            view = views.get(endpoint.full_name)
            if _refuses(view):
                continue
            api = endpoint.api.name
            full = wave_weight(endpoint, settings.wave_s, hosts=max(hosts, 1), slots=slots)
            room = full - used.get(api, 0.0)
            count = min(int(room / endpoint.weight_max), settings.wave_max - len(rows))
            probing = view is not None and view.state == CircuitState.HALF_OPEN
            if view is not None and probing:
                count = min(count, view.free_permits - flying.get(endpoint.full_name, 0))
            elif room < full * LEAST_WAVE and _more_due(connection, run["id"], endpoint.full_name, count):
                continue
            # Another unit probes each time: the same ones might fail for reasons of their own.
            order = units.c.sent_at.nulls_first() if probing else units.c.n
            due = _due(run["id"], endpoint.full_name).order_by(order, units.c.n).limit(max(count, 0))
            taken = _mark_sent(connection, run["id"], due, wave)
            used[api] = used.get(api, 0.0) + len(taken) * endpoint.weight_max
            rows.extend(taken)
        if not rows:
            return None
        connection.execute(
            insert(waves).values(run=run["id"], n=wave, chord=chord_id, units=len(rows), launched_at=db_now())
        )
        connection.execute(update(runs).where(runs.c.id == run["id"]).values(waves=wave))
    return wave, rows


def _waves_in_flight(connection: Connection, run: int) -> int:
    """Waves with sent or running units; an old one no longer counts, so a few long units hold up nothing."""
    young = select(waves.c.n).where(
        waves.c.run == run, waves.c.launched_at > db_now(-WAVE_YOUNG * get_settings().wave_s)
    )
    return connection.execute(
        select(func.count(units.c.wave.distinct())).where(
            units.c.run == run, units.c.state.in_(IN_FLIGHT), units.c.wave.in_(young)
        )
    ).scalar_one()


def _in_flight(connection: Connection, lane: str) -> dict[str, int]:
    """Units by endpoint that are sent, running or have a place reserved; live work ignores backfills."""
    reserved = and_(
        units.c.state == UnitState.WAITING, units.c.ticket.is_not(None), units.c.not_before > db_now()
    )
    rows = connection.execute(
        select(units.c.endpoint, func.count())
        .join(runs, runs.c.id == units.c.run)
        .where(NOT_DONE, or_(units.c.state.in_(IN_FLIGHT), reserved))
        .where(runs.c.lane == Lane.LIVE if lane == Lane.LIVE else runs.c.lane.is_not(None))
        .group_by(units.c.endpoint)
    )
    return dict(rows.all())


def _weight_by_api(flying: Mapping[str, int]) -> dict[str, float]:
    used: dict[str, float] = {}
    for name, count in flying.items():
        try:
            endpoint = endpoint_of(name)
        except ConfigurationError:
            continue  # its collector was removed; nobody calls that API any more
        used[endpoint.api.name] = used.get(endpoint.api.name, 0.0) + count * endpoint.weight_max
    return used


def _due(run: int, endpoint: str) -> Select[tuple[int]]:
    return select(units.c.n).where(
        units.c.run == run,
        units.c.state == UnitState.WAITING,
        units.c.endpoint == endpoint,
        units.c.not_before <= db_now(),
        units.c.deliveries < get_settings().deliveries_max,
        units.c.alone.is_(False),
    )


def _more_due(connection: Connection, run: int, endpoint: str, count: int) -> bool:
    beyond = _due(run, endpoint).limit(1).offset(max(count, 0))
    return connection.execute(beyond).first() is not None


def _mark_sent(connection: Connection, run: int, due: Select[tuple[int]], wave: int) -> list[RowMapping]:
    return list(
        connection.execute(
            update(units)
            # The state once more: after a wait for a row's lock only this condition is looked at again.
            .where(units.c.run == run, units.c.n.in_(due), units.c.state == UnitState.WAITING)
            .values(
                state=UnitState.SENT,
                wave=wave,
                sent_at=db_now(),
                expected_at=db_now(get_settings().wave_s),
            )
            .returning(units.c.n, units.c.endpoint, units.c.symbol, units.c.start_at)
        ).mappings()
    )


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
                select(runs, db_now().label("now"))
                .where(runs.c.id == run, runs.c.state == RunState.OPEN)
                .with_for_update(of=runs)
            )
            .mappings()
            .one_or_none()
        )
        if row is None or _has_open_units(connection, run):
            return None
        result = _result_of(connection, row)
        connection.execute(
            update(runs)
            .where(runs.c.id == run, runs.c.state != RunState.DONE)
            .values(state=RunState.DONE, outcome=result.outcome, finished_at=row["now"])
        )
        connection.execute(insert(results).values(run=run, **_result_columns(result)))
    log_result(run, result)
    return result


def _has_open_units(connection: Connection, run: int) -> bool:
    return (
        connection.execute(
            select(units.c.n).where(units.c.run == run, units.c.state.in_(OPEN)).limit(1)
        ).first()
        is not None
    )


def _result_of(connection: Connection, run: RowMapping) -> CollectionResult:
    """Fold the units of a run, as SQL has them, into its result."""
    mine = units.c.run == run["id"]
    by_endpoint: dict[str, dict[str, int]] = {}
    by_outcome: dict[str, int] = {}
    for endpoint, outcome, count in connection.execute(
        select(units.c.endpoint, units.c.outcome, func.count())
        .where(mine)
        .group_by(units.c.endpoint, units.c.outcome)
    ):
        by_endpoint.setdefault(endpoint, {})[outcome] = count
        by_outcome[outcome] = by_outcome.get(outcome, 0) + count
    sums = (
        connection.execute(
            select(
                *(func.coalesce(func.sum(units.c[name]), 0).label(name) for name in SUMMED),
                func.count().filter(units.c.rate_limited).label("rate_limited"),
                func.count()
                .filter(or_(units.c.reason == "circuit_open", units.c.parked_on.is_not(None)))
                .label("circuit_broken"),
            ).where(mine)
        )
        .mappings()
        .one()
    )
    bad = and_(mine, units.c.outcome.in_(UNSUCCESSFUL))
    errors = [
        {
            "endpoint": row["endpoint"],
            "symbol": row["symbol"],
            "error": row["reason"],
            "attempts": row["attempts"],
            "message": f"{row['outcome']}: {row['reason']}",
            "timestamp": row["finished_at"].isoformat().replace("+00:00", "Z"),
            **{key: value for key, value in (row["error"] or {}).items() if key != "error"},
        }
        for row in connection.execute(
            select(units).where(bad).order_by(units.c.n).limit(ERRORS_KEPT)
        ).mappings()
    ]
    if run["outcome"] == RunOutcome.FAILED:
        errors.insert(0, _error_of_run(run))
    symbols = connection.execute(
        select(units.c.symbol, func.count())
        .where(bad)
        .group_by(units.c.symbol)
        .order_by(units.c.symbol)
        .limit(ERRORS_KEPT)
    )
    return CollectionResult(
        collector_name=run["collector"],
        started_at=run["started_at"] or run["now"],
        finished_at=run["now"],
        total_items=sum(by_outcome.values()),
        successful_items=sum(by_outcome.get(outcome, 0) for outcome in SUCCESSFUL),
        failed_items=sum(by_outcome.get(outcome, 0) for outcome in UNSUCCESSFUL),
        errors=errors,
        rate_limited=bool(sums["rate_limited"]),
        circuit_broken=bool(sums["circuit_broken"]),
        outcome=RunOutcome(run["outcome"]) if run["outcome"] else run_outcome(by_outcome),
        units_by_outcome=by_outcome,
        by_endpoint=by_endpoint,
        failed_symbols=dict(symbols.all()),
        **{name: sums[name] for name in SUMMED},
    )


def _error_of_run(run: RowMapping) -> dict[str, Any]:
    """What kept the run itself from being made, in the shape of a unit's error."""
    return {
        "endpoint": ", ".join(run["endpoints"]),
        "symbol": None,
        "error": "configuration",
        "message": run["reason"],
        "timestamp": run["now"].isoformat().replace("+00:00", "Z"),
        "attempts": 0,
    }


SUMMED = ("records", "calls", "retries", "waits", "waited_s", "resent", "weight")


def _result_columns(result: CollectionResult) -> dict[str, Any]:
    return {column.name: getattr(result, column.name) for column in results.columns if column.name != "run"}


def log_result(run: int, result: CollectionResult) -> None:
    """One line for every run, skipped ones too."""
    logger.info(
        "run %s of %s: %s, %s of %s items stored or empty, %s failed, %s skipped, %s records, %s calls, "
        "%.1f s%s%s",
        run,
        result.collector_name,
        result.outcome,
        result.successful_items,
        result.total_items,
        result.failed_items,
        result.units_by_outcome.get(Outcome.SKIPPED, 0),
        result.records,
        result.calls,
        (result.finished_at - result.started_at).total_seconds(),
        ", rate limited" if result.rate_limited else "",
        ", circuit broken" if result.circuit_broken else "",
    )
