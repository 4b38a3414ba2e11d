"""The transitions of circuits in the table of events, each exactly once.

Whoever causes one keeps it at once. When that fails, because the database is away or the process ends at
that moment, the reconciler finds it in the stream that Redis keeps for each API. Both ways meet in
`transitions`: who puts the row there also writes the event. What happens while Redis is away is in no stream;
it is kept at once, or only logged.
"""

import logging
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, insert, select
from sqlalchemy.dialects import postgresql, sqlite

from resilience.guard import Transition, transition_of
from resilience.store import Change, Event, Store
from tasks.models import event_streams, events, transitions
from tasks.store import reading, writing
from tasks.upsert import upsert

logger = logging.getLogger(__name__)

_MOST = 200  # letters of a name that the tables hold


def keep(told: Transition) -> None:
    """Keep a transition, unless it is kept already. Raises DatabaseError."""
    with writing() as connection:
        _keep(connection, told)


def catch_up(store: Store, apis: Iterable[str]) -> int:
    """Keep what the streams of these APIs have and the table has not; returns how many transitions that were.

    Raises StoreUnavailableError or DatabaseError; the next time goes on where this one ended.
    """
    with reading() as connection:
        last = dict(connection.execute(select(event_streams.c.api, event_streams.c.last)).all())
    return sum(_catch_up(store, api, last.get(api)) for api in apis)


def _catch_up(store: Store, api: str, last: str | None) -> int:
    found = _after(store, api, last)
    if not found:
        return 0
    with writing() as connection:
        count = sum(_keep(connection, _transition(event)) for event in found)
        upsert(connection, event_streams, [{"api": api, "last": found[-1].id}])
    if count:
        logger.warning("%s: transitions of circuits that were not kept at once: %s", api, count)
    return count


def _after(store: Store, api: str, last: str | None) -> list[Event]:
    """What came after this event; everything when the stream does not hold it.

    It was lost then, with Redis or by its age, and its ids may have begun anew behind this one.
    """
    if last is not None:
        found = store.events(api, _before(last))
        if found and found[0].id == last:
            return found[1:]
    return store.events(api)


def _before(id_: str) -> str:
    """The id directly before this one."""
    ms, n = map(int, id_.split("-"))
    return f"{ms}-{n - 1}" if n else f"{ms - 1}-{2**64 - 1}"


def _transition(event: Event) -> Transition:
    """An event of the stream as whoever caused it was told of it."""
    change = Change(0, event.old, event.new, event.reason, event.at_us, event.actor)
    return transition_of(event.circuit, change)


def _keep(connection: Connection, told: Transition) -> bool:
    """Whether it is new."""
    detail = {"old": told.old.value, "new": told.new.value, "reason": told.reason, "actor": told.actor}
    subject = told.circuit[:_MOST]
    key = {"circuit": subject, "at": told.at, "actor": told.actor[:_MOST]}
    if not _is_new(connection, key | {name: detail[name] for name in ("old", "new")}):
        return False
    connection.execute(insert(events).values(at=told.at, kind="circuit", subject=subject, detail=detail))
    return True


def _is_new(connection: Connection, key: dict[str, Any]) -> bool:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    statement = dialect.insert(transitions).on_conflict_do_nothing(index_elements=[*transitions.primary_key])
    return connection.execute(statement.returning(transitions.c.at), key).first() is not None
