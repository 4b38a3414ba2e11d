"""What died, what is overdue: finds in SQL what no message will ever finish, and sets it going again.

Runs every five seconds on the `ctl` queue. Everything it does is harmless when done twice: a unit that is
sent again loses its claim if the first message was alive after all.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from itertools import takewhile
from typing import Any

from celery import current_app, shared_task
from kombu.exceptions import OperationalError as BrokerError
from sqlalchemy import Connection, RowMapping, and_, exists, false, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from resilience.breaker import CircuitBreaker
from resilience.errors import ConfigurationError, DatabaseError, StoreUnavailableError
from tasks import circuits as forced_circuits
from tasks import heartbeat
from tasks.broker import away_is_one_error
from tasks.collectors.registry import collectors, endpoint_of
from tasks.collectors.spec import Endpoint
from tasks.events import catch_up
from tasks.heartbeat import LEASE
from tasks.launch import broker_was_emptied
from tasks.limits import circuit_named, circuits, guard
from tasks.models import NOT_DONE, events, runs, units, workers
from tasks.outcomes import Outcome, RunOutcome, RunState, UnitState
from tasks.runs import OPEN, carry_on, close, start, without_planner
from tasks.settings import Settings, get_settings
from tasks.store import db_now, reading, record_event, writing
from tasks.units import ALONE, PARKED, Poison, collect, error_facts, queue_for

logger = logging.getLogger(__name__)

RESEND_AT_ONCE = 1000
PLANS_AT_ONCE = 10


@shared_task(name="tasks.reconcile.reconcile", ignore_result=True)
def reconcile() -> dict[str, int]:
    """Find and mend; returns how many units or runs each step touched."""
    settings = get_settings()
    steady_s = _steady_for(settings)
    if steady_s is None:
        return {}
    done: dict[str, int] = {}
    emptied = _redis_was_emptied()
    if steady_s >= settings.gone_after_s:
        # Otherwise we, or the database, were away ourselves: every heartbeat looks old then.
        done["released"] = _release_orphans(settings)
    done["alone"] = _run_alone(settings)
    done["planned"] = _plan_again(settings)
    done["forced"] = _enforce()
    done["unparked"] = _unpark()
    done["resent"] = _send_again(settings, everything=emptied)
    done["overdue"] = _end_overdue()
    _for_each(_open_runs(), carry_on)
    heartbeat.forget_old()
    done["transitions"] = _keep_transitions()
    return {name: count for name, count in done.items() if count}


def _for_each(found: Sequence[int], step: Callable[[int], Any]) -> int:
    """Take this step for every run; one that cannot go on must not hold up the others.

    Its collector may have been removed, or its list of symbols be away. Returns how many runs there were.
    """
    for run in found:
        try:
            step(run)
        except (DatabaseError, BrokerError):
            raise
        except Exception:
            logger.exception("run %s cannot go on; its deadline will close it", run)
    return len(found)


def _steady_for(settings: Settings) -> float | None:
    """Seconds since which the reconciler runs without a gap; None when another one ran a moment ago."""
    lease = workers.alias()
    with writing() as connection:
        dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
        connection.execute(
            dialect.insert(workers)
            .values(id=LEASE, kind=LEASE, host="", pid=0, slots=0, started_at=db_now(), beat_at=db_now(-3600))
            .on_conflict_do_nothing(index_elements=[workers.c.id])
        )
        row = (
            connection.execute(
                select(lease, db_now().label("now")).where(lease.c.id == LEASE).with_for_update(of=lease)
            )
            .mappings()
            .one()
        )
        idle_s = (row["now"] - row["beat_at"]).total_seconds()
        if idle_s < settings.reconcile_s / 2:
            return None
        gap = idle_s > settings.gone_after_s
        started_at = row["now"] if gap else row["started_at"]
        connection.execute(
            update(workers).where(workers.c.id == LEASE).values(beat_at=db_now(), started_at=started_at)
        )
    return float((row["now"] - started_at).total_seconds())


def _redis_was_emptied() -> bool:
    """Whether Redis came back without what it held; kept as an event, for units sent before are lost."""
    try:
        emptied = broker_was_emptied()
    except BrokerError:
        return False
    if emptied and _seen_before():
        logger.warning("Redis was found empty: every sent unit is sent again")
        record_event("redis_emptied", "redis", {})
        return True
    if emptied:
        record_event("redis_seen", "redis", {})
    return False


def _seen_before() -> bool:
    """A Redis that is new to us is empty too, but has lost nothing of ours."""
    with reading() as connection:
        seen = select(events.c.id).where(events.c.kind.in_(("redis_seen", "redis_emptied"))).limit(1)
        return connection.execute(seen).first() is not None


def _gone(settings: Settings) -> Any:
    """A condition: the worker of a running unit is gone, or has held it longer than any worker may."""
    dead = exists().where(workers.c.id == units.c.worker, workers.c.beat_at < db_now(-settings.gone_after_s))
    unknown = ~exists().where(workers.c.id == units.c.worker)
    overdue = units.c.claimed_at < db_now(-settings.claim_max_s)
    return and_(
        NOT_DONE,
        units.c.state == UnitState.RUNNING,
        or_(dead, overdue, and_(unknown, units.c.claimed_at < db_now(-settings.gone_after_s))),
    )


def _enforce() -> int:
    """Circuits that somebody forced while Redis was away are forced now."""

    def find(name: str) -> CircuitBreaker | None:
        try:
            return circuit_named(name)
        except ConfigurationError:
            return None  # its collector was removed

    try:
        return forced_circuits.enforce(find)
    except StoreUnavailableError as error:
        logger.warning("forced circuits are not told: %s", error)
        return 0


def _keep_transitions() -> int:
    """Transitions of circuits that nobody kept when they happened are kept now."""
    try:
        return catch_up(guard().store, collectors())
    except StoreUnavailableError:
        return 0  # the next visit finds them


def _release_orphans(settings: Settings) -> int:
    """Units of workers that are gone wait again; what they stored stays stored."""
    with writing() as connection:
        released = connection.execute(
            update(units)
            .where(_gone(settings), units.c.alone.is_(False))
            .values(state=UnitState.WAITING, token=units.c.token + 1, wave=None)
        ).rowcount
        # Run alone, and still it ended its worker: the unit itself is what kills.
        poisoned = connection.execute(
            update(units)
            .where(_gone(settings), units.c.alone)
            .values(
                state=UnitState.DONE,
                outcome=Outcome.FAILED,
                reason="poison",
                error=error_facts(Poison()),
                token=units.c.token + 1,
                finished_at=db_now(),
            )
        ).rowcount
    if released or poisoned:
        logger.warning("%s units of lost workers wait again, %s are poison", released, poisoned)
    return released + poisoned


def _run_alone(settings: Settings) -> int:
    """Units that were delivered too often without getting anywhere run once by themselves."""
    often = and_(
        units.c.state.in_((UnitState.WAITING, UnitState.SENT)),
        units.c.deliveries >= settings.deliveries_max,
        units.c.alone.is_(False),
    )
    due_again = and_(units.c.state == UnitState.WAITING, units.c.alone, units.c.not_before <= db_now())
    suspect = and_(NOT_DONE, or_(often, due_again))
    with reading() as connection:  # looked for without holding up the writers
        if connection.execute(select(units.c.n).where(suspect).limit(1)).first() is None:
            return 0
    with writing() as connection:
        rows = list(
            connection.execute(
                update(units)
                .where(suspect)
                .values(
                    alone=True,
                    state=UnitState.SENT,
                    wave=None,
                    sent_at=db_now(),
                    expected_at=db_now(settings.wave_s),
                )
                .returning(units)
            ).mappings()
        )
    for row in rows:
        logger.warning(
            "unit %s/%s (%s %s) ended %s workers: it runs alone",
            row["run"],
            row["n"],
            row["endpoint"],
            row["symbol"],
            row["deliveries"],
        )
    return _publish(rows, {})


def _plan_again(settings: Settings) -> int:
    """Have the runs planned whose planner is gone, or that no planner has taken up."""
    with reading() as connection:
        waiting = list(
            connection.execute(
                select(runs.c.id)
                .where(runs.c.state == RunState.PLANNING, without_planner(settings))
                .where(runs.c.requested_at < db_now(-settings.reconcile_s / 2))
                .order_by(runs.c.priority.desc(), runs.c.id)
                .limit(PLANS_AT_ONCE)
            ).scalars()
        )
    # By message: a long plan here would keep the reconciler from its other duties.
    return sum(1 for _ in takewhile(start, waiting))


def _unpark() -> int:
    """Parked units whose circuit admits again are due at once; waves let them go as the limits admit."""
    parked = and_(
        NOT_DONE,
        units.c.state == UnitState.WAITING,
        units.c.reason == PARKED,
        units.c.not_before > db_now(),
    )
    with reading() as connection:
        names = list(connection.execute(select(units.c.endpoint).where(parked).distinct()).scalars())
    if not names:
        return 0
    try:
        views = circuits([endpoint for name in names if (endpoint := _known(name))])
    except StoreUnavailableError:
        return 0
    admitting = [name for name, view in views.items() if view.state in {"closed", "half_open", "disabled"}]
    if not admitting:
        return 0
    with writing() as connection:
        return connection.execute(
            update(units).where(parked, units.c.endpoint.in_(admitting)).values(not_before=db_now())
        ).rowcount


def _known(name: str) -> Endpoint | None:
    try:
        return endpoint_of(name)
    except ConfigurationError:
        return None  # its collector was removed; the deadline will close the run


def _send_again(settings: Settings, *, everything: bool) -> int:
    """Units whose message must be lost are sent again, without a chord."""
    with reading() as connection:
        overdue = units.c.expected_at < db_now()
        late = units.c.expected_at < db_now(-settings.late_after_s)
        since_loss = and_(overdue, units.c.sent_at < _last_loss(connection, settings))
        idle = _idle(connection, settings)
        lost = units.c.sent_at < db_now(-1.0) if everything else or_(late, since_loss, idle)
        rows = list(
            connection.execute(
                select(units, runs.c.lane)
                .join(runs, runs.c.id == units.c.run)
                .where(NOT_DONE, units.c.state == UnitState.SENT, runs.c.state == RunState.OPEN, lost)
                .order_by(runs.c.priority.desc(), units.c.run, units.c.n)
                .limit(RESEND_AT_ONCE)
            ).mappings()
        )
    if not rows:
        return 0
    _, slots = heartbeat.alive("units", settings.gone_after_s)
    lanes = {row["run"]: row["lane"] for row in rows}
    queued = {} if everything else ready_messages({_queue(row, lanes) for row in rows})
    missing = [row for row in rows if queued.get(_queue(row, lanes), 0) < max(slots, 1)]
    if not missing:
        return 0
    with writing() as connection:
        for row in missing:
            connection.execute(
                update(units)
                .where(units.c.run == row["run"], units.c.n == row["n"], units.c.state == UnitState.SENT)
                .values(sent_at=db_now(), expected_at=db_now(settings.wave_s), resent=units.c.resent + 1)
            )
    return _publish(missing, lanes)


def _idle(connection: Connection, settings: Settings) -> Any:
    """A condition: overdue, while nobody runs anything, so that it is in no worker's hands either."""
    running = select(units.c.n).where(NOT_DONE, units.c.state == UnitState.RUNNING).limit(1)
    if connection.execute(running).first() is not None:
        return false()
    return units.c.expected_at < db_now(-settings.reconcile_s)


def _last_loss(connection: Connection, settings: Settings) -> Any:
    """When a worker or Redis was last lost: messages sent before may have been lost with it."""
    died = connection.execute(
        select(func.max(workers.c.beat_at)).where(
            workers.c.kind != LEASE,
            workers.c.stopped_at.is_(None),
            workers.c.beat_at < db_now(-settings.gone_after_s),
        )
    ).scalar_one()
    emptied = connection.execute(
        select(func.max(events.c.at)).where(events.c.kind == "redis_emptied")
    ).scalar_one()
    # The last heartbeat came up to one interval before the end.
    died = died and died + timedelta(seconds=settings.heartbeat_s)
    known = [at for at in (died, emptied) if at is not None]
    return max(known) if known else db_now(-10 * 365 * 86400)


def ready_messages(names: Iterable[str]) -> dict[str, int]:
    """Ready messages by queue; a queue that is not there has none. Raises OperationalError."""
    counts: dict[str, int] = {}
    with away_is_one_error(), current_app.connection_for_read() as connection:
        for name in names:
            try:
                counts[name] = connection.default_channel.queue_declare(
                    queue=name, passive=True
                ).message_count
            except connection.channel_errors:
                counts[name] = 0
    return counts


def _queue(row: RowMapping, lanes: Mapping[int, str]) -> str:
    return ALONE if row["alone"] else queue_for(row["endpoint"], lanes[row["run"]])


def _publish(rows: Sequence[RowMapping], lanes: Mapping[int, str]) -> int:
    """Send units by themselves; returns how many went out before the broker failed, if it did."""
    for count, row in enumerate(rows):
        message = {"run": row["run"], "n": row["n"], "endpoint": row["endpoint"], "symbol": row["symbol"]}
        try:
            with away_is_one_error():
                # Once more on a new connection: one from the pool may be dead without knowing it.
                collect.apply_async(
                    kwargs=message,
                    queue=_queue(row, lanes),
                    retry_policy={"max_retries": 1, "interval_start": 0},
                )
        except BrokerError:
            return count  # SQL has them as sent; they are late again soon
    return len(rows)


def _end_overdue() -> int:
    """Close the runs that are past their deadline; never silent."""
    with writing() as connection:
        overdue = list(
            connection.execute(
                select(runs.c.id).where(runs.c.state != RunState.DONE, runs.c.deadline_at < db_now())
            ).scalars()
        )
        for run in overdue:
            unplanned = and_(runs.c.id == run, runs.c.started_at.is_(None))
            connection.execute(
                update(runs)
                .where(unplanned)
                .values(
                    started_at=db_now(),
                    outcome=RunOutcome.FAILED,
                    reason="the deadline came before it was planned",
                )
            )
            connection.execute(
                update(runs)
                .where(runs.c.id == run, runs.c.state != RunState.DONE)
                .values(state=RunState.OPEN)
            )
            _end_units(connection, run)
    for run in overdue:
        logger.warning("run %s did not end before its deadline", run)
        close(run)
    return len(overdue)


def _end_units(connection: Connection, run: int) -> None:
    """Parked units end as skipped, as do those never called; the fate of the others is unknown."""
    waiting = and_(units.c.run == run, units.c.state.in_((UnitState.WAITING, UnitState.SENT)))
    ends = (
        (and_(waiting, units.c.reason == PARKED), Outcome.SKIPPED, PARKED),
        (and_(waiting, units.c.calls == 0), Outcome.SKIPPED, "deadline"),
        (and_(units.c.run == run, units.c.state.in_(OPEN)), Outcome.ABANDONED, "deadline"),
    )
    for condition, outcome, reason in ends:
        connection.execute(
            update(units)
            .where(condition)
            .values(
                state=UnitState.DONE,
                outcome=outcome,
                reason=reason,
                token=units.c.token + 1,
                finished_at=db_now(),
            )
        )


def _open_runs() -> list[int]:
    with reading() as connection:
        return list(
            connection.execute(
                select(runs.c.id)
                .where(runs.c.state == RunState.OPEN)
                .order_by(runs.c.priority.desc(), runs.c.id)
            ).scalars()
        )
