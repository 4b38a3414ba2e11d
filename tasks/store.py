"""The database: engine, transactions, the fenced writes of a unit, and cursors.

Everything that a unit writes goes through `Claim`: a write whose fence token is no longer the newest
changes nothing and raises ClaimLost, so a worker that was believed dead cannot write twice.
"""

import os
import re
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import (
    BindParameter,
    Column,
    Connection,
    CursorResult,
    Dialect,
    Double,
    Engine,
    Label,
    and_,
    bindparam,
    case,
    cast,
    create_engine,
    event,
    exists,
    insert,
    literal,
    or_,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import IntegrityError as BrokenRuleError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.expression import FunctionElement

from resilience.errors import (
    ConnectionPoolError,
    DatabaseError,
    IntegrityError,
    PenstockError,
    TransactionError,
)
from tasks.collectors.values import Known
from tasks.models import UtcDateTime, cursors, events, runs, units, validators, workers
from tasks.outcomes import Outcome, RunState, UnitState
from tasks.prepared import Prepared
from tasks.settings import get_settings


class ClaimLost(PenstockError):  # noqa: N818 - it is news, not a mistake
    """Another worker holds this unit now."""

    code = "claim_lost"


class db_now(FunctionElement[datetime]):  # noqa: N801 - reads like the SQL function it is
    """The database's clock plus some seconds: the one clock that all workers share."""

    type = UtcDateTime()
    inherit_cache = True

    def __init__(self, plus_s: float | BindParameter[float] = 0.0) -> None:
        self.plus_s = plus_s
        super().__init__(cast(literal(plus_s) if isinstance(plus_s, int | float) else plus_s, Double))


NOW = db_now()  # to make one takes longer than to store it


@compiles(db_now, "sqlite")
def _sqlite_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    plus_s = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({plus_s}) || ' seconds') || '000')"


@compiles(db_now, "postgresql")
def _postgresql_now(element: db_now, compiler: SQLCompiler, **kw: Any) -> str:
    return f"(clock_timestamp() + make_interval(secs => {compiler.process(element.clauses, **kw)}))"


_SQLITE_WAIT_S = 15


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    """WAL so that readers never wait; a writer waits its turn instead of failing at commit."""
    connection.isolation_level = None  # transactions are begun below, not by the driver
    for pragma in (
        "journal_mode=WAL",
        "synchronous=NORMAL",
        "foreign_keys=ON",
        f"busy_timeout={1000 * _SQLITE_WAIT_S}",
    ):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred BEGIN that writes later fails at once when another writer came between.
    mode = "DEFERRED" if connection.get_execution_options().get("penstock_read") else "IMMEDIATE"
    statement = f"BEGIN {mode}"
    driver: Any = connection.connection.driver_connection
    try:  # on the driver's connection: SQLAlchemy takes longer to prepare these two words than SQLite to act
        driver.execute(statement).close()
    except sqlite3.Error as error:
        raise OperationalError(statement, {}, error) from error


def open_engine(url: str) -> Engine:
    """Make an engine for SQLite or PostgreSQL with the settings that Penstock relies on."""
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": _SQLITE_WAIT_S}, pool_size=64, max_overflow=64)
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    return create_engine(
        url,
        pool_size=8,
        max_overflow=64,
        pool_timeout=10,
        connect_args={
            "application_name": "penstock",
            "connect_timeout": 5,
            # A peer that is gone without a word is noticed in half a minute, not in two hours.
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
            "tcp_user_timeout": 20_000,
        },
    )


@lru_cache(maxsize=8)
def _engine_of(url: str, pid: int) -> Engine:
    del pid  # a connection must not be shared with a forked child
    return open_engine(url)


_engine_lock = threading.Lock()


def engine() -> Engine:
    """The engine of this process, made at first use."""
    with _engine_lock:
        return _engine_of(get_settings().database, os.getpid())


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Turn what a database says into DatabaseError and its kinds; mistakes in a statement stay so."""
    try:
        yield
    except PoolTimeoutError as error:
        raise ConnectionPoolError("the database has no connection free", cause=error) from error
    except BrokenRuleError as error:
        raise IntegrityError(
            f"a row breaks a rule of its table: {_first_line(error)}", cause=error
        ) from error
    except DBAPIError as error:
        if _came_between(error):
            raise TransactionError(
                f"another transaction came between: {_first_line(error)}", cause=error
            ) from error
        if _is_away(error):
            raise DatabaseError(f"the database did not answer: {_first_line(error)}", cause=error) from error
        raise


def _came_between(error: DBAPIError) -> bool:
    """A lock that was not to be had, a deadlock, or a snapshot too old: class 40 and 55P03 of PostgreSQL."""
    state = getattr(error.orig, "sqlstate", None) or ""
    return state.startswith("40") or state == "55P03" or "database is locked" in str(error.orig)


def _is_away(error: DBAPIError) -> bool:
    """Whether a later try may find the database as it should be."""
    if error.connection_invalidated or isinstance(error, InterfaceError):
        return True
    if isinstance(error, InternalError):
        return "read-only" in str(error.orig)  # PostgreSQL between a failover and the new connection
    # SQLite says so of a missing table too, and no later try mends that.
    return isinstance(error, OperationalError) and not _MISTAKE.search(str(error.orig))


_MISTAKE = re.compile(r"no such (table|column)|has no column|syntax error")


def _first_line(error: DBAPIError) -> str:
    return str(error.orig).strip().partition("\n")[0]


class _Turn:
    """Lets this process's writers take turns with one connection to SQLite, which has one writer at a time.

    Who finds it taken by another process sleeps and looks again, up to 0.1 s later; threads that queue here
    lose no time. The connection stays open: to take one from the pool costs as much as a statement, and one
    that did not write last has to read from the file what it had in memory.
    """

    def __init__(self) -> None:
        self._free = threading.Lock()
        self._kept: Connection | None = None
        self._pool: Any = None  # where it is from; an engine that was disposed of has another one

    @contextmanager
    def begin(self, opened: Engine) -> Iterator[Connection]:
        """One transaction, in turn. Raises DatabaseError for a turn that does not come within 15 s.

        After an error the connection goes back to its pool, which makes it clean or gives it up.
        """
        if not self._free.acquire(timeout=_SQLITE_WAIT_S):
            raise DatabaseError(f"the database was busy for {_SQLITE_WAIT_S} s")
        try:
            connection = self._take(opened)
            try:
                with connection.begin():
                    yield connection
            except BaseException:
                connection.close()
                raise
            self._kept = connection
        finally:
            self._free.release()

    def _take(self, opened: Engine) -> Connection:
        kept, self._kept = self._kept, None
        if kept is not None and self._pool is opened.pool:
            return kept
        if kept is not None:
            kept.close()
        self._pool = opened.pool
        return opened.connect()


_turns = [_Turn()]  # the last one counts


def _new_turn() -> None:
    # A lock that was held at the fork would stay held in the child. The connection behind it is the parent's
    # and is neither used nor closed here, hence the list.
    _turns.append(_Turn())


os.register_at_fork(after_in_child=_new_turn)


@contextmanager
def writing() -> Iterator[Connection]:
    """One transaction. Raises DatabaseError when the database is away; nothing is kept then."""
    opened = engine()
    begun = _turns[-1].begin(opened) if opened.dialect.name == "sqlite" else opened.begin()
    with _plain_errors(), begun as connection:
        yield connection


@contextmanager
def reading() -> Iterator[Connection]:
    """One snapshot to read from; in SQLite it never waits for a writer."""
    with _plain_errors(), engine().connect() as connection:
        yield connection.execution_options(penstock_read=True)


@dataclass(slots=True)
class Claim:
    """A unit that this worker holds, and what it spent since it was claimed."""

    run: int
    n: int
    token: int
    row: Mapping[str, Any]
    spent: dict[str, float] = field(default_factory=dict)

    def spend(self, **amounts: float) -> None:
        """Count calls, weight, waits … to be written with every further write."""
        for name, amount in amounts.items():
            self.spent[name] = self.spent.get(name, 0) + amount

    def write(self, connection: Connection, **values: Any) -> None:
        """Update the unit if it is still ours, else raise ClaimLost; counts what was spent.

        Nobody else counts while we hold it, so totals are written: a write that is rolled back loses none.
        """
        values |= {name: self.row[name] + amount for name, amount in self.spent.items()}
        clocks = tuple(name for name, value in values.items() if isinstance(value, db_now))
        given = {f"to_{name}": value.plus_s if name in clocks else value for name, value in values.items()}
        changed = _write_statement(tuple(values), clocks).run(
            connection, {"its_run": self.run, "its_n": self.n, "its_token": self.token, **given}
        )
        if changed != 1:
            raise ClaimLost(f"unit {self.run}/{self.n} was taken over by another worker")


@lru_cache(maxsize=256)
def _write_statement(names: tuple[str, ...], clocks: tuple[str, ...]) -> Prepared:
    """The update of a unit that holds `its_token`; columns in `clocks` are given as seconds from now."""
    parameters: dict[str, Any] = {name: bindparam(f"to_{name}", type_=units.c[name].type) for name in names}
    parameters |= {name: db_now(bindparam(f"to_{name}", type_=Double())) for name in clocks}
    statement = (
        update(units)
        .where(
            units.c.run == bindparam("its_run"),
            units.c.n == bindparam("its_n"),
            units.c.token == bindparam("its_token"),
            units.c.state == UnitState.RUNNING,
        )
        .values(parameters)
    )
    return Prepared(lambda _: statement)


def _of_run(column: Column[Any]) -> Label[Any]:
    return select(column).where(runs.c.id == units.c.run).scalar_subquery().label(column.name)


_OPEN_RUN = exists().where(runs.c.id == units.c.run, runs.c.state == RunState.OPEN)


_OWN = and_(units.c.state == UnitState.RUNNING, units.c.token == bindparam("own_token"))
_DUE = and_(
    or_(units.c.state == UnitState.WAITING, units.c.state == UnitState.SENT), units.c.not_before <= db_now()
)
_ORPHAN = and_(
    units.c.state == UnitState.RUNNING,
    units.c.worker.in_(
        select(workers.c.id).where(workers.c.beat_at < db_now(bindparam("gone_s", type_=Double())))
    ),
)
_FRESH = or_(units.c.alone, units.c.deliveries < bindparam("most_deliveries"))
_CLAIM = Prepared(
    lambda _: (
        update(units)
        .where(
            units.c.run == bindparam("its_run"),
            units.c.n == bindparam("its_n"),
            units.c.alone == bindparam("is_alone"),
            _OPEN_RUN,
            or_(_OWN, and_(or_(_DUE, _ORPHAN), _FRESH)),
        )
        .values(
            state=UnitState.RUNNING,
            token=units.c.token + 1,
            deliveries=units.c.deliveries + case((_OWN, 0), else_=1),
            worker=bindparam("its_worker"),
            claimed_at=db_now(),
        )
        .returning(units, _of_run(runs.c.lane), _of_run(runs.c.on_open))
    )
)


def claim(
    run: int,
    n: int,
    *,
    worker: str,
    gone_after_s: float,
    deliveries_max: int,
    alone: bool = False,
    fence: int | None = None,
) -> Claim | None:
    """Take a unit: waiting or sent and due, running under a worker that is gone, or held by `fence` already.

    None when it is not to be had: done, not due, held by a live worker, delivered too often without getting
    anywhere (then it runs `alone`), or its run is closed. A duplicate delivery ends here, for the price of
    one indexed UPDATE.
    """
    given = {
        "its_run": run,
        "its_n": n,
        "is_alone": alone,
        "own_token": -1 if fence is None else fence,
        "its_worker": worker,
        "gone_s": -gone_after_s,
        "most_deliveries": deliveries_max,
    }
    with writing() as connection:
        row = _CLAIM.row(connection, given)
    return None if row is None else Claim(run, n, row["token"], row)


def _cursor_statement(dialect: Dialect, *, forward: bool) -> Any:
    statement = (
        (sqlite if dialect.name == "sqlite" else postgresql)
        .insert(cursors)
        .values(
            endpoint=bindparam("its_endpoint"),
            symbol=bindparam("its_symbol"),
            value=bindparam("its_value"),
            updated_at=db_now(),
        )
    )
    return statement.on_conflict_do_update(
        index_elements=[cursors.c.endpoint, cursors.c.symbol],
        set_={"value": statement.excluded.value, "updated_at": statement.excluded.updated_at},
        where=cursors.c.value < statement.excluded.value if forward else None,
    )


_MOVE_CURSOR = Prepared(partial(_cursor_statement, forward=True))
_REPLACE_CURSOR = Prepared(partial(_cursor_statement, forward=False))


def move_cursor(connection: Connection, endpoint: str, symbol: str, value: str) -> None:
    """Move a cursor forward; a value that is not beyond the stored one changes nothing."""
    _MOVE_CURSOR.run(connection, {"its_endpoint": endpoint, "its_symbol": symbol, "its_value": value})


def replace_cursor(connection: Connection, endpoint: str, symbol: str, value: str) -> None:
    """Put another cursor in the place of the stored one: a token, of which none is beyond another."""
    _REPLACE_CURSOR.run(connection, {"its_endpoint": endpoint, "its_symbol": symbol, "its_value": value})


def read_known(endpoint: str, symbol: str) -> Known | None:
    """What the server said of the last complete read."""
    mine = and_(validators.c.endpoint == endpoint, validators.c.symbol == symbol)
    with reading() as connection:
        row = connection.execute(
            select(validators.c.asked, validators.c.etag, validators.c.modified).where(mine)
        ).one_or_none()
    return None if row is None else Known(*row)


def keep_known(connection: Connection, endpoint: str, symbol: str, known: Known) -> None:
    """Keep what the server said of this read."""
    values = asdict(known) | {"updated_at": db_now()}
    statement = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(validators)
    connection.execute(
        statement.values(endpoint=endpoint, symbol=symbol, **values).on_conflict_do_update(
            index_elements=["endpoint", "symbol"], set_=values
        )
    )


def read_cursors(connection: Connection, endpoint: str) -> dict[str, str]:
    """All cursors of an endpoint by symbol."""
    rows = connection.execute(select(cursors.c.symbol, cursors.c.value).where(cursors.c.endpoint == endpoint))
    return dict(rows.all())


def record_event(kind: str, subject: str, detail: Mapping[str, Any], *, run: int | None = None) -> None:
    """Keep that something happened, e.g. that a circuit opened."""
    with writing() as connection:
        connection.execute(
            insert(events).values(at=db_now(), kind=kind, subject=subject, run=run, detail=dict(detail))
        )


def finish_open_units(
    connection: Connection, run: int, outcome: Outcome, reason: str, *, states: Sequence[UnitState]
) -> int:
    """End all units of a run that are in one of `states`; returns how many."""
    result: CursorResult[Any] = connection.execute(
        update(units)
        .where(units.c.run == run, units.c.state.in_(states))
        .values(
            state=UnitState.DONE,
            outcome=outcome,
            reason=reason,
            token=units.c.token + 1,  # whoever still runs it may no longer write
            finished_at=db_now(),
        )
    )
    return result.rowcount
