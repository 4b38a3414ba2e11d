"""SQL schedules → slots → runs.

A slot is a multiple of the schedule's interval since 1970, in UTC; (schedule, slot) is unique in SQL, so two
beats, a late tick and a double tick are harmless. What beat missed is read from the last slot in SQL.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from celery import shared_task
from sqlalchemy import Connection, RowMapping, select, update
from sqlalchemy.dialects import postgresql, sqlite

from resilience.errors import ConfigurationError
from tasks.collectors.registry import collectors, endpoint_of, scheduled
from tasks.collectors.spec import Endpoint
from tasks.models import runs, schedules
from tasks.outcomes import RunKind, RunState
from tasks.runs import Order, accept, accept_skipped, cancel, close, start
from tasks.settings import get_settings
from tasks.store import db_now, writing

logger = logging.getLogger(__name__)

# After a long outage a schedule with catch-up "all" makes at most this many runs in one tick.
CATCH_UP_AT_ONCE = 100
# Whoever wants every slot does not want them skipped because the first one made up for still goes on.
OVERLAP_OF = {"all": "queue"}


def sync() -> list[str]:
    """Write the schedules of all declared endpoints to SQL; returns the names of those that are enabled.

    Raises ConfigurationError, and writes nothing, when the setting asks for one that is not there.
    """
    enabled = scheduled()
    declared = [
        endpoint
        for api in collectors().values()
        for endpoint in api.endpoints.values()
        if endpoint.every is not None
    ]
    with writing() as connection:
        connection.execute(update(schedules).values(enabled=False))
        for endpoint in declared:
            _write(connection, endpoint, enabled=endpoint.full_name in enabled)
    return sorted(enabled)


def set_enabled(endpoint: Endpoint, *, enabled: bool) -> None:
    """Enable or disable one schedule, until `sync` goes by the setting again. It has to have an interval."""
    with writing() as connection:
        _write(connection, endpoint, enabled=enabled)


def _write(connection: Connection, endpoint: Endpoint, *, enabled: bool) -> None:
    assert endpoint.every is not None
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    columns = {
        "every_s": int(endpoint.every.total_seconds()),
        "catch_up": endpoint.catch_up,
        "overlap": endpoint.overlap,
        "enabled": enabled,
    }
    statement = dialect.insert(schedules).values(
        name=endpoint.full_name, collector=endpoint.api.name, endpoint=endpoint.name, **columns
    )
    connection.execute(statement.on_conflict_do_update(index_elements=[schedules.c.name], set_=columns))


def due_slots(
    *, every_s: int, last: datetime | None, now: datetime, catch_up: str, fresh_s: float
) -> list[datetime]:
    """The slots that are to be made into runs now, oldest first.

    `none` makes a slot only while it is fresh, `latest` only the newest, `all` every one that was missed.
    """
    newest_s = int(now.timestamp()) // every_s * every_s
    newest = datetime.fromtimestamp(newest_s, UTC)
    if last is not None and newest <= last:
        return []
    if catch_up == "none" and (now - newest).total_seconds() > fresh_s:
        return []
    if catch_up != "all" or last is None:
        return [newest]
    before_s = int(last.timestamp()) // every_s * every_s  # on the grid, also when `every` was changed
    missed = (newest_s - before_s) // every_s
    return [
        datetime.fromtimestamp(before_s + every_s * k, UTC)
        for k in range(1, min(missed, CATCH_UP_AT_ONCE) + 1)
    ]


@shared_task(name="tasks.schedules.tick", ignore_result=True)
def tick() -> list[int]:
    """Make the runs that are due; returns their ids."""
    made: list[int] = []
    with writing() as connection:
        rows = connection.execute(
            select(schedules, db_now().label("now")).where(schedules.c.enabled).with_for_update(of=schedules)
        ).mappings()
        for schedule in rows.all():
            made.extend(_make_due(connection, schedule))
    for run in made:
        if close(run) is None:
            start(run)
    return made


def _make_due(connection: Connection, schedule: RowMapping) -> Iterable[int]:
    slots = due_slots(
        every_s=schedule["every_s"],
        last=schedule["last_slot_at"],
        now=schedule["now"],
        catch_up=schedule["catch_up"],
        fresh_s=3 * get_settings().tick_s,
    )
    for slot in slots:
        going = _going(connection, schedule["name"])
        if going and "queue" in {schedule["overlap"], OVERLAP_OF.get(schedule["catch_up"])}:
            return  # the slot stays due until the run before it is done
        run = _make(connection, schedule, slot, going)
        connection.execute(
            update(schedules).where(schedules.c.name == schedule["name"]).values(last_slot_at=slot)
        )
        if run is not None:
            yield run


def _make(connection: Connection, schedule: RowMapping, slot: datetime, going: Sequence[int]) -> int | None:
    order = Order(
        collector=schedule["collector"],
        endpoints=(schedule["name"],),
        kind=RunKind.SCHEDULED,
        on_open=_on_open(schedule["name"]),
        schedule=schedule["name"],
        slot_at=slot,
        deadline_s=max(300.0, 2.0 * schedule["every_s"]),
    )
    if not going:
        return accept(connection, order)
    if schedule["overlap"] == "replace":
        for run in going:
            cancel(connection, run, "replaced by the next slot")
        return accept(connection, order)
    return accept_skipped(connection, order, f"run {going[0]} still goes on")


def _on_open(endpoint: str) -> str:
    """A scheduled run skips what an open circuit refuses, unless the declaration wants it parked."""
    try:
        return endpoint_of(endpoint).on_open or "skip"
    except ConfigurationError:
        return "skip"  # the plan of the run will say what is wrong


def _going(connection: Connection, schedule: str) -> list[int]:
    return list(
        connection.execute(
            select(runs.c.id).where(runs.c.schedule == schedule, runs.c.state != RunState.DONE)
        ).scalars()
    )
