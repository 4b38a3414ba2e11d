"""Symbols that fail in run after run are skipped, and tried again after a while. Kept in SQL, per endpoint.

A closing run counts: once for each symbol, however many windows it had. Planning skips, unless the symbols
were named by whoever asked for the run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import (
    Connection,
    RowMapping,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    update,
)

from resilience.errors import NotFoundError, PenstockError, Scope
from resilience.quarantine import Quarantine, SymbolErrors
from tasks.models import events, quarantine, units
from tasks.outcomes import SUCCESSFUL, Outcome, UnitState
from tasks.store import db_now, reading, writing
from tasks.upsert import upsert

REASON = "quarantined"


def _symbol_errors(known: type[PenstockError] = PenstockError) -> Iterator[str]:
    for kind in known.__subclasses__():
        # A rule may say of any error that it speaks of the symbol.
        yield kind.code if kind.scope is Scope.SYMBOL else f"symbol:{kind.code}"
        yield from _symbol_errors(kind)


# Reasons of failed units that speak of their symbol. A unit that kills its worker is among them.
COUNTED = (*sorted(_symbol_errors()), "poison")


class SqlEntries:
    """The entries of one endpoint, as the transaction sees them."""

    def __init__(self, connection: Connection, endpoint: str) -> None:
        self._connection = connection
        self._endpoint = endpoint

    def get(self, symbol: str) -> SymbolErrors | None:
        """See `Entries.get`; the row stays locked."""
        found = self._connection.execute(
            select(quarantine).where(self._is(symbol)).with_for_update()
        ).mappings()
        return next((_entry(row) for row in found), None)

    def put(self, entry: SymbolErrors) -> None:
        """See `Entries.put`."""
        upsert(self._connection, quarantine, [{"endpoint": self._endpoint, **asdict(entry)}])

    def drop(self, symbol: str) -> None:
        """See `Entries.drop`."""
        self._connection.execute(delete(quarantine).where(self._is(symbol)))

    def all(self) -> list[SymbolErrors]:
        """See `Entries.all`."""
        mine = select(quarantine).where(quarantine.c.endpoint == self._endpoint).order_by(quarantine.c.symbol)
        return [_entry(row) for row in self._connection.execute(mine).mappings()]

    def _is(self, symbol: str) -> Any:
        return and_(quarantine.c.endpoint == self._endpoint, quarantine.c.symbol == symbol)


def skip(connection: Connection, run: RowMapping) -> int:
    """End the units of a planned run whose symbols are in quarantine; returns how many."""
    if run["symbols"] is not None:
        return 0
    away = exists().where(
        quarantine.c.endpoint == units.c.endpoint,
        quarantine.c.symbol == units.c.symbol,
        quarantine.c.since_at.is_not(None),
        or_(quarantine.c.until_at.is_(None), quarantine.c.until_at > db_now()),
    )
    return connection.execute(
        update(units)
        .where(units.c.run == run["id"], units.c.state == UnitState.WAITING, away)
        .values(state=UnitState.DONE, outcome=Outcome.SKIPPED, reason=REASON, finished_at=db_now())
    ).rowcount


def learn(connection: Connection, run: RowMapping) -> None:
    """Count what a closing run says of its symbols: failed, or well again."""
    for endpoint, symbol, reason, good in connection.execute(_told(run["id"])).all():
        entries = SqlEntries(connection, endpoint)
        kept = Quarantine(entries, clock=lambda: run["now"])
        if good:
            kept.record_success(symbol)
        elif kept.count(symbol, reason, gone=reason == NotFoundError.code):
            _tell(connection, run, endpoint, entries.get(symbol))


def listed() -> list[dict[str, Any]]:
    """Every symbol that failed last, with what is known of it; `skipped` where it is in quarantine now."""
    with reading() as connection:
        rows = connection.execute(
            select(quarantine, db_now().label("now")).order_by(quarantine.c.endpoint, quarantine.c.symbol)
        ).mappings()
        return [
            {"endpoint": row["endpoint"], **entry.to_dict(), "skipped": entry.skipped_at(row["now"])}
            for row in rows
            for entry in (_entry(row),)
        ]


def release(symbol: str, endpoint: str | None = None) -> list[str]:
    """Let a symbol be tried again by every endpoint, or by one; returns those that had it."""
    mine = [quarantine.c.symbol == symbol]
    if endpoint is not None:
        mine.append(quarantine.c.endpoint == endpoint)
    with writing() as connection:
        released = connection.execute(delete(quarantine).where(*mine).returning(quarantine.c.endpoint))
        names = sorted(released.scalars())
        for name in names:
            _record(connection, name, symbol, {"state": "released"})
    return names


def _told(run: int) -> Select[Any]:
    """Endpoint, symbol, why it failed and how often it did not, for symbols that failed now or last time."""
    failed = and_(units.c.outcome == Outcome.FAILED, units.c.reason.in_(COUNTED))
    failing = select(units.c.symbol).where(units.c.run == run, failed)
    known = exists().where(quarantine.c.endpoint == units.c.endpoint, quarantine.c.symbol == units.c.symbol)
    good = and_(units.c.outcome.in_(SUCCESSFUL), or_(units.c.symbol.in_(failing), known))
    return (
        select(
            units.c.endpoint,
            units.c.symbol,
            func.min(case((failed, units.c.reason))),
            func.count().filter(units.c.outcome.in_(SUCCESSFUL)),
        )
        .where(units.c.run == run, or_(failed, good))
        .group_by(units.c.endpoint, units.c.symbol)
        .order_by(units.c.endpoint, units.c.symbol)
    )


def _tell(connection: Connection, run: RowMapping, endpoint: str, entry: SymbolErrors | None) -> None:
    """Into the events, when the symbol was put away just now."""
    if entry is not None and entry.since_at == run["now"]:
        _record(connection, endpoint, entry.symbol, {"state": REASON, **entry.to_dict()}, run["id"])


def _record(
    connection: Connection, endpoint: str, symbol: str, detail: Mapping[str, Any], run: int | None = None
) -> None:
    subject = f"{endpoint} {symbol}"[:200]
    connection.execute(
        insert(events).values(at=db_now(), kind="quarantine", subject=subject, run=run, detail=dict(detail))
    )


def _entry(row: RowMapping) -> SymbolErrors:
    return SymbolErrors(**{field.name: row[field.name] for field in fields(SymbolErrors)})
