"""The symbols that come from a function, a table or another endpoint, as SQL has recorded them.

Planning asks for them here. A list that is young enough is used as it is recorded; else it is looked up anew,
and what was added and removed is recorded with it. A source that fails, or has nothing, takes no symbol away:
the last known list stays, and an event says why.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from resilience.errors import ConfigurationError, DatabaseError, PenstockError
from tasks.collectors import checks
from tasks.collectors.sources import FromEndpoint, FromTable
from tasks.collectors.spec import Endpoint
from tasks.models import events, records, symbol_lists, symbols
from tasks.store import db_now, reading, writing
from tasks.upsert import upsert

logger = logging.getLogger(__name__)

MOST = 1_000_000  # symbols of an endpoint
CALL_S = 30.0  # what a function may take
AGAIN_S = 60.0  # after so long a source that failed is asked again, while there is a list to go on with
CHUNK = 2000
NAMED = 20  # symbols that an event names


class NoSymbolsYet(PenstockError):  # noqa: N818 - it is news, not a mistake
    """The source has not brought a symbol so far."""

    code = "no_symbols"


class SourceFailed(PenstockError):  # noqa: N818
    """The source did not say which symbols there are."""

    code = "no_symbols"


def symbols_of(endpoint: Endpoint) -> Iterable[str]:
    """The symbols to collect now, of a source in the order of their names; looked up anew where it is time.

    Raises ConfigurationError where the declaration leaves them open, NoSymbolsYet where the source has not
    brought any, and DatabaseError.
    """
    if not endpoint.has_source:
        return endpoint.check_symbols()
    name = endpoint.full_name
    listed = _listed(name)
    if _is_due(endpoint, listed):
        refresh(endpoint, listed)
    if _some(name):
        return _recorded(name)
    listed = _listed(name)
    raise NoSymbolsYet(f"{name}: no symbols yet: {listed['error'] if listed else 'they were not looked up'}")


def refresh(endpoint: Endpoint, listed: Mapping[str, Any] | None) -> None:
    """Look the symbols up and record what changed since the list was as `listed` says."""
    try:
        found, refused = _found(endpoint)
    except DatabaseError:
        raise
    except Exception as error:  # noqa: BLE001 - a function may raise anything; the last list stays
        said = str(error) if isinstance(error, PenstockError) else f"{type(error).__name__}: {error}"
        _record(endpoint.full_name, listed, None, said[:1000])
        return
    _record(endpoint.full_name, listed, found, _refusal(refused))


def _listed(endpoint: str) -> dict[str, Any] | None:
    """What is known of the list, and the database's now."""
    statement = select(symbol_lists, db_now().label("now")).where(symbol_lists.c.endpoint == endpoint)
    with reading() as connection:
        row = connection.execute(statement).mappings().one_or_none()
        return None if row is None else dict(row)


def _is_due(endpoint: Endpoint, listed: Mapping[str, Any] | None) -> bool:
    if listed is None or listed["found_at"] is None:
        return True
    source = endpoint.symbols
    refresh_s = source.refresh_s if isinstance(source, FromTable | FromEndpoint) else 0.0
    if (listed["now"] - listed["found_at"]).total_seconds() < refresh_s:
        return False
    failed = listed["tried_at"] > listed["found_at"]
    return not failed or (listed["now"] - listed["tried_at"]).total_seconds() >= AGAIN_S


def _some(endpoint: str) -> bool:
    with reading() as connection:
        return connection.execute(_current(endpoint).limit(1)).first() is not None


def _current(endpoint: str) -> Select[Any]:
    return select(symbols.c.symbol).where(symbols.c.endpoint == endpoint, symbols.c.removed_at.is_(None))


def _recorded(endpoint: str) -> Iterator[str]:
    """The recorded list, in pieces: no transaction stays open while whoever asks makes units of it."""
    last = ""
    while True:
        page = _current(endpoint).where(symbols.c.symbol > last).order_by(symbols.c.symbol).limit(CHUNK)
        with reading() as connection:
            found: Sequence[str] = connection.execute(page).scalars().all()
        yield from found
        if len(found) < CHUNK:
            return
        last = found[-1]


def _found(endpoint: Endpoint) -> tuple[dict[str, None], list[str]]:
    """The symbols that the source names now, each once, and what it names that can be none."""
    found: dict[str, None] = {}
    refused: list[str] = []
    for value in _values(endpoint):
        text = str(value) if type(value) is int else value
        try:
            found[checks.symbol(endpoint.full_name, text, endpoint.symbol_pattern)] = None
        except ConfigurationError:
            refused.append(repr(value)[:100])
        if len(found) + len(refused) > MOST:
            raise SourceFailed(f"there are more than {MOST:,} symbols")
    if not found:
        raise SourceFailed(_nothing(endpoint, refused))
    return found, refused


def _values(endpoint: Endpoint) -> Iterable[Any]:
    source = endpoint.symbols
    if callable(source):
        return _called(source)
    return _selected(_column(endpoint))


def _called(function: Callable[[], Iterable[str]]) -> list[Any]:
    """What a function returns, within its time; one that hangs is left behind."""
    returned: list[Any] = []
    raised: list[BaseException] = []

    def call() -> None:
        try:
            given = function()
            if isinstance(given, str | bytes):
                raise TypeError(f"the function gave {given!r:.100} instead of a list")  # noqa: TRY301
            returned.extend(islice(given, MOST + 1))
        except BaseException as error:  # noqa: BLE001 - it is raised below
            raised.append(error)

    thread = threading.Thread(target=call, name="symbols", daemon=True)
    thread.start()
    thread.join(CALL_S)
    if thread.is_alive():
        raise SourceFailed(f"the function did not return within {CALL_S:g} s")
    if raised and not isinstance(raised[0], Exception):  # it would end the planner, as sys.exit() does
        raise SourceFailed(f"{type(raised[0]).__name__}: {raised[0]}")
    if raised:
        raise raised[0]
    return returned


def _selected(statement: Select[Any]) -> Iterator[Any]:
    with reading() as connection:
        rows = connection.execution_options(yield_per=CHUNK).execute(statement)
        yield from rows.scalars()


def _column(endpoint: Endpoint) -> Select[Any]:
    """Every value of the source's column, once."""
    source = endpoint.symbols
    if isinstance(source, FromTable):
        column: Any = source.table.columns[source.column]
        statement = select(column)
        if source.where is not None:
            statement = statement.where(source.where)
    else:
        assert isinstance(source, FromEndpoint)
        other = endpoint.api.endpoints[source.endpoint]
        if other.generic:
            column = records.c.data[source.field].as_string()
            statement = select(column).where(records.c.endpoint == other.name)
        else:
            column = other.table.columns[source.field]
            statement = select(column)
        if "source" in other.table.columns:
            statement = statement.where(other.table.columns["source"] == endpoint.api.name)
    return statement.where(column.is_not(None)).distinct()


def _nothing(endpoint: Endpoint, refused: list[str]) -> str:
    source = endpoint.symbols
    if refused:
        return _refusal(refused) or ""
    if isinstance(source, FromEndpoint):
        return f"{endpoint.api.name}.{source.endpoint} has not been collected"
    if isinstance(source, FromTable):
        return f"column {source.column!r} of table {source.table.name} holds none"
    return "the function gave none"


def _refusal(refused: list[str]) -> str | None:
    if not refused:
        return None
    more = "" if len(refused) <= NAMED else " …"
    return f"no symbols of this API, {len(refused):,}: {', '.join(refused[:NAMED])}{more}"


def _record(
    endpoint: str, seen: Mapping[str, Any] | None, found: Mapping[str, None] | None, error: str | None
) -> None:
    """Keep what was found, or that nothing was; in one transaction with the event that tells it.

    Where another planner recorded a list since `seen`, that one stays: it is as new as ours.
    """
    with writing() as connection:
        listed = _locked(connection, endpoint)
        if listed["found_at"] != (seen and seen["found_at"]):
            return
        now = listed["now"]
        changed = None if found is None else _change(connection, endpoint, found, now)
        if changed:
            _tell(connection, "symbols_changed", endpoint, changed)
        if error is not None and error != listed["error"]:
            _tell(connection, "symbols_failed", endpoint, {"error": error})
        connection.execute(
            update(symbol_lists)
            .where(symbol_lists.c.endpoint == endpoint)
            .values(tried_at=now, error=error, **({} if found is None else {"found_at": now}))
        )
    if changed:
        logger.info("%s: symbols added: %s, removed: %s", endpoint, changed["added"], changed["removed"])
    if error is not None:
        logger.warning("%s: symbols: %s", endpoint, error)


def _locked(connection: Connection, endpoint: str) -> RowMapping:
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(
        dialect.insert(symbol_lists).values(endpoint=endpoint, tried_at=db_now()).on_conflict_do_nothing()
    )
    return (
        connection.execute(
            select(symbol_lists, db_now().label("now"))
            .where(symbol_lists.c.endpoint == endpoint)
            .with_for_update(of=symbol_lists)
        )
        .mappings()
        .one()
    )


def _change(
    connection: Connection, endpoint: str, found: Mapping[str, None], now: Any
) -> dict[str, Any] | None:
    """Add what is new, mark what is gone; what changed, with some names, or None."""
    gone: set[str] = set(connection.execute(_current(endpoint)).scalars())
    added = []
    for symbol in found:
        if symbol in gone:
            gone.remove(symbol)
        else:
            added.append(symbol)
    for some in _chunks(added):
        rows = [{"endpoint": endpoint, "symbol": each, "added_at": now, "removed_at": None} for each in some]
        upsert(connection, symbols, rows)
    removed = sorted(gone)
    for some in _chunks(removed):
        connection.execute(
            update(symbols)
            .where(symbols.c.endpoint == endpoint, symbols.c.symbol.in_(some))
            .values(removed_at=now)
        )
    if not added and not removed:
        return None
    return {
        "added": len(added),
        "removed": len(removed),
        "added_symbols": added[:NAMED],
        "removed_symbols": removed[:NAMED],
    }


def _chunks(names: list[str]) -> Iterator[list[str]]:
    return (names[at : at + CHUNK] for at in range(0, len(names), CHUNK))


def _tell(connection: Connection, kind: str, endpoint: str, detail: Mapping[str, Any]) -> None:
    connection.execute(insert(events).values(at=db_now(), kind=kind, subject=endpoint, detail=dict(detail)))


def report(endpoint: Endpoint, limit: int) -> dict[str, Any]:
    """What is known of an endpoint's symbols: how many, since when, and the newest changes."""
    name = endpoint.full_name
    known = {"endpoint": name, "from": endpoint.symbols_from}
    if not endpoint.has_source:
        declared = endpoint.symbols if isinstance(endpoint.symbols, tuple) else ()
        current = [{"symbol": each, "added_at": None} for each in declared[:limit]]
        return known | {"count": len(declared), "symbols": current, "removed": []}
    mine = select(symbols.c.symbol, symbols.c.added_at, symbols.c.removed_at).where(
        symbols.c.endpoint == name
    )
    present, past = mine.where(symbols.c.removed_at.is_(None)), mine.where(symbols.c.removed_at.is_not(None))
    newest = present.order_by(symbols.c.added_at.desc(), symbols.c.symbol).limit(limit)
    gone = past.order_by(symbols.c.removed_at.desc(), symbols.c.symbol).limit(limit)
    with reading() as connection:
        count = connection.execute(select(func.count()).select_from(present.subquery())).scalar_one()
        listed = (
            connection.execute(select(symbol_lists).where(symbol_lists.c.endpoint == name)).mappings().first()
        )
        return known | {
            "count": count,
            "symbols": [dict(row) for row in connection.execute(newest).mappings()],
            "removed": [dict(row) for row in connection.execute(gone).mappings()],
            **{key: listed and listed[key] for key in ("found_at", "tried_at", "error")},
        }
