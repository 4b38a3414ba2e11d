"""The database's side of a unit: claims, fence tokens, upserts, cursors; on SQLite and on PostgreSQL."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, delete, insert, select, text, update
from sqlalchemy.exc import DBAPIError, StatementError
from sqlalchemy.pool import QueuePool

from resilience.errors import ConnectionPoolError, DatabaseError, IntegrityError, TransactionError
from tasks import store
from tasks.data import asana_tasks, ohlcv
from tasks.models import cursors, events, records, runs, units, workers
from tasks.outcomes import Outcome, UnitState
from tasks.store import Claim, ClaimLost, claim, db_now, move_cursor, read_cursors, reading, writing
from tasks.upsert import upsert

AT = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ANY_CASE = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

pytestmark = pytest.mark.usefixtures("installation")


def bar(minute=0, **changes):
    return {
        "source": "binance",
        "symbol": "BTCUSDT",
        "interval": "1m",
        "open_time": AT.replace(microsecond=0) + timedelta(minutes=minute),
        "open": Decimal("1.10"),
        "high": Decimal(2),
        "low": Decimal("0.5"),
        "close": Decimal("1.5"),
        "volume": Decimal(10),
        "trades": 3,
    } | changes


def add_run(**changes):
    values = {
        "collector": "binance",
        "endpoints": ["binance.klines"],
        "kind": "adhoc",
        "lane": "live",
        "priority": 20,
        "on_open": "park",
        "state": "open",
        "requested_at": AT,
        "deadline_at": AT + timedelta(days=9999),
    } | changes
    with writing() as connection:
        return connection.execute(insert(runs).values(**values).returning(runs.c.id)).scalar_one()


def add_unit(run=None, n=0, **changes):
    run = run or add_run()
    values = {
        "run": run,
        "n": n,
        "endpoint": "binance.klines",
        "symbol": "BTCUSDT",
        "state": "sent",
        "not_before": db_now(-1),
    } | changes
    with writing() as connection:
        connection.execute(insert(units).values(**values))
    return run


def add_worker(name="w1", beat_s=0.0):
    with writing() as connection:
        connection.execute(
            insert(workers).values(
                id=name, kind="units", host="h", pid=1, slots=1, started_at=db_now(), beat_at=db_now(beat_s)
            )
        )


def take(run, n=0, worker="me", **changes):
    return claim(run, n, **{"worker": worker, "gone_after_s": 15, "deliveries_max": 3} | changes)


def the_unit(run, n=0):
    with reading() as connection:
        return dict(
            connection.execute(select(units).where(units.c.run == run, units.c.n == n)).mappings().one()
        )


def test_the_clock_is_the_databases():
    """It is aware, now, and takes an offset of any sign and size, as a value and in a comparison."""
    with reading() as connection:
        now, later, earlier = connection.execute(select(db_now(), db_now(90.5), db_now(-86400 * 400))).one()
    assert abs((now - datetime.now(UTC)).total_seconds()) < 5
    assert (later - now).total_seconds() == pytest.approx(90.5, abs=0.5)
    assert (now - earlier).total_seconds() == pytest.approx(86400 * 400, abs=0.5)
    add_worker(beat_s=-14)
    with reading() as connection:
        found = [
            connection.execute(select(workers.c.id).where(workers.c.beat_at < db_now(-s))).all()
            for s in (13, 60)
        ]
    assert [len(each) for each in found] == [1, 0]


def test_a_stored_time_is_not_before_itself():
    """What Python wrote and what the database's clock wrote compare as times, to the microsecond."""
    with writing() as connection:
        connection.execute(insert(events).values(at=AT, kind="a", subject="", detail={}))
        for at, count in ((AT, 1), (AT + timedelta(microseconds=1), 0), (AT - timedelta(microseconds=1), 1)):
            assert len(connection.execute(select(events).where(events.c.at >= at)).all()) == count


@ANY_CASE
@given(
    at=st.datetimes(
        datetime(1900, 1, 2),
        datetime(2999, 12, 30),
        timezones=st.integers(-14 * 60, 14 * 60).map(lambda m: timezone(timedelta(minutes=m))),
    )
)
def test_times_come_back_exactly(at):
    """Whatever the zone they were written in; they come back in UTC."""
    with writing() as connection:
        connection.execute(insert(events).values(at=at, kind="t", subject="", detail={}))
        back = connection.execute(select(events.c.at).order_by(events.c.id.desc()).limit(1)).scalar_one()
    assert back == at
    assert back.tzinfo is UTC or back.utcoffset() == timedelta(0)


def test_a_naive_time_is_refused():
    """It would be a guess."""
    with pytest.raises(StatementError, match="has no time zone"), writing() as connection:
        connection.execute(insert(events).values(at=datetime(2026, 1, 1), kind="t", subject="", detail={}))


@ANY_CASE
@given(value=st.decimals(min_value=-(10**20), max_value=10**20, places=18))
def test_decimals_come_back_exactly(value):
    """Every digit: SQLite's own numbers would lose some."""
    with writing() as connection:
        upsert(connection, ohlcv, [bar(close=value)])
        assert connection.execute(select(ohlcv.c.close)).scalar_one() == value


@pytest.mark.parametrize("text", ["0.00000001", "1E-12", "123456789012345678901234567890.123456789", "1E+5"])
def test_decimals_of_unusual_shape(text):
    """An exponent is written out."""
    with writing() as connection:
        upsert(connection, ohlcv, [bar(volume=Decimal(text))])
        assert connection.execute(select(ohlcv.c.volume)).scalar_one() == Decimal(text)


def test_upsert_inserts_and_updates(installation):
    """A row that is there takes the new values; the others stay."""
    with writing() as connection:
        upsert(connection, ohlcv, [bar(0), bar(1)])
        upsert(connection, ohlcv, [bar(1, close=Decimal(9), trades=None), bar(2)])
        upsert(connection, ohlcv, [])
    found = installation.rows(ohlcv)
    assert [row["close"] for row in found] == [Decimal("1.5"), Decimal(9), Decimal("1.5")]
    assert [row["trades"] for row in found] == [3, None, 3]


def test_of_one_key_in_a_batch_the_last_row_counts(installation):
    """PostgreSQL would refuse to touch a row twice."""
    with writing() as connection:
        upsert(connection, ohlcv, [bar(0, close=Decimal(n)) for n in range(5)])
    assert [row["close"] for row in installation.rows(ohlcv)] == [Decimal(4)]


def test_a_big_page_fits():
    """A thousand rows in one transaction, twice."""
    page = [bar(minute) for minute in range(1000)]
    for _ in range(2):
        with writing() as connection:
            upsert(connection, ohlcv, page)
    with reading() as connection:
        assert len(connection.execute(select(ohlcv.c.open_time)).all()) == 1000


def test_rows_of_a_table_that_has_a_source_get_it(installation):
    """Those of a table without one do not, and those without a table are kept as JSON."""
    from tasks.collectors import Api
    from tasks.collectors.registry import endpoint_of

    shop = Api("shop", "https://shop.example")
    shop.endpoint("/orders", key="id")(lambda_named("orders"))
    row = {"endpoint": "orders", "key": "1", "symbol": "", "data": {"id": 1, "name": "ünïcode"}}
    task = {
        "gid": "1",
        "project": "7",
        "name": "n",
        "completed": False,
        "assignee": None,
        "created_at": AT,
        "modified_at": AT,
        "due_on": AT.date(),
        "data": {"a": [1, None]},
    }
    pages = (
        (endpoint_of("binance.klines"), without_source(bar())),
        (shop.endpoints["orders"], row),
        (endpoint_of("asana.tasks"), task),
    )
    with writing() as connection:
        for endpoint, found in pages:
            upsert(connection, endpoint.table, endpoint.stamped([found]))
    assert installation.rows(ohlcv) == [bar()]
    assert installation.rows(records) == [{"source": "shop", **row}]
    assert installation.rows(asana_tasks) == [task]


def without_source(row):
    return {name: value for name, value in row.items() if name != "source"}


def lambda_named(name):
    def parse(row, unit):
        return row

    parse.__name__ = name
    return parse


@pytest.mark.parametrize(
    ("case", "had"),
    [
        ({"state": "sent"}, True),
        ({"state": "waiting"}, True),
        ({"state": "waiting", "not_before": db_now(60)}, False),
        ({"state": "sent", "not_before": db_now(60)}, False),
        ({"state": "done", "outcome": "stored"}, False),
        ({"state": "running", "worker": "live"}, False),
        ({"state": "running", "worker": "gone"}, True),
        ({"state": "running", "worker": "never-seen"}, False),
        ({"state": "sent", "deliveries": 2}, True),
        ({"state": "sent", "deliveries": 3}, False),
        ({"state": "running", "worker": "gone", "deliveries": 3}, False),
        ({"state": "sent", "alone": True}, False),
    ],
)
def test_who_may_claim(case, had):
    """Waiting or sent and due, or running under a worker that is gone; not what was delivered too often."""
    add_worker("live", -14)
    add_worker("gone", -16)
    run = add_unit(**case)
    found = take(run)
    assert (found is not None) is had
    row = the_unit(run)
    if found is None:
        assert row["token"] == 0
        assert row["state"] == case["state"]
    else:
        assert (row["state"], row["worker"], row["token"]) == ("running", "me", 1)
        assert row["deliveries"] == case.get("deliveries", 0) + 1
        assert (found.row["lane"], found.row["on_open"]) == ("live", "park")


def test_a_unit_that_runs_alone_is_claimed_only_there():
    """Its queue delivers it though it was delivered too often; nothing else goes there."""
    run = add_unit(state="sent", alone=True, deliveries=3)
    add_unit(run, 1)
    assert take(run, alone=True) is not None
    assert take(run, 1, alone=True) is None


@pytest.mark.parametrize("state", ["planning", "paused", "done"])
def test_units_of_a_run_that_is_not_open(state):
    """Are not to be had."""
    assert take(add_unit(add_run(state=state))) is None


def test_a_unit_that_is_not_there():
    """Is nobody's."""
    assert take(add_run(), 7) is None


def test_who_holds_the_fence_may_come_back():
    """It counts no delivery, even at the cap; the token of somebody else does not open the door."""
    run = add_unit(state="sent", deliveries=2)
    add_worker("me")
    first = take(run)
    assert (first.token, first.row["deliveries"]) == (1, 3)
    assert take(run) is None
    assert take(run, fence=7) is None
    again = take(run, fence=1)
    assert (again.token, again.row["deliveries"]) == (2, 3)
    assert take(run, fence=1) is None


def test_of_many_claims_one_wins():
    """Eight threads, twenty units: each unit is claimed once."""
    run = add_run()
    for n in range(20):
        add_unit(run, n)
    won, lock, gate = [], threading.Lock(), threading.Barrier(8)

    def race(worker):
        gate.wait()
        for n in range(20):
            if take(run, n, worker) is not None:
                with lock:
                    won.append(n)

    threads = [threading.Thread(target=race, args=(f"w{k}",)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won) == list(range(20))


def test_an_old_token_stores_nothing(installation):
    """The rows written before the fenced update go back with it."""
    run = add_unit()
    old = take(run)
    installation.change(units, units.c.run == run, state="sent")
    new = take(run, worker="other")

    def write_rows_and_then_the_unit():
        with writing() as connection:
            upsert(connection, ohlcv, [bar()])
            old.write(connection, state=UnitState.DONE, outcome=Outcome.STORED)

    with pytest.raises(ClaimLost):
        write_rows_and_then_the_unit()
    assert installation.rows(ohlcv) == []
    with writing() as connection:
        new.write(connection, state=UnitState.DONE, outcome=Outcome.STORED)
    with pytest.raises(ClaimLost), writing() as connection:
        new.write(connection, records=1)  # done is done


def test_what_was_spent_is_written_once():
    """Calls and waits add up over the writes; a write that fails keeps them for the next one."""
    run = add_unit(calls=4)
    mine = take(run)
    mine.spend(calls=1, waited_s=0.5)
    mine.spend(calls=1)

    def fail_after_writing():
        with writing() as connection:
            mine.write(connection)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_after_writing()
    mine.spend(calls=1)
    with writing() as connection:
        mine.write(connection)
    with writing() as connection:
        mine.write(connection, records=3)
    row = the_unit(run)
    assert (row["calls"], row["waited_s"], row["records"]) == (7, 0.5, 3)


def test_ended_units_take_their_token_with_them():
    """Whoever still runs such a unit may not write any more."""
    run = add_unit()
    mine = take(run)
    with writing() as connection:
        ended = store.finish_open_units(
            connection, run, Outcome.ABANDONED, "deadline", states=(UnitState.RUNNING, UnitState.SENT)
        )
    assert ended == 1
    with pytest.raises(ClaimLost), writing() as connection:
        mine.write(connection, records=1)


def test_a_cursor_only_moves_forward():
    """A value that is not beyond it changes nothing; each symbol has its own."""
    with writing() as connection:
        for value in ("2026-03-01T00:00:00Z", "2026-03-02T00:00:00Z", "2026-02-01T00:00:00Z"):
            move_cursor(connection, "binance.klines", "BTCUSDT", value)
        move_cursor(connection, "binance.klines", "ETHUSDT", "2026-01-01T00:00:00Z")
        assert read_cursors(connection, "binance.klines") == {
            "BTCUSDT": "2026-03-02T00:00:00Z",
            "ETHUSDT": "2026-01-01T00:00:00Z",
        }
        assert read_cursors(connection, "coinbase.candles") == {}


@ANY_CASE
@given(times=st.lists(st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1)), min_size=1, max_size=8))
def test_a_cursor_ends_at_the_highest(times):
    """As text they sort as the times do, with and without fractions of a second."""
    from tasks.collectors.fields import iso, to_cursor

    written = [to_cursor(at.replace(tzinfo=UTC)) for at in times]
    with writing() as connection:
        connection.execute(delete(cursors))
        for value in written:
            move_cursor(connection, "e", "s", value)
        assert iso(read_cursors(connection, "e")["s"]) == max(map(iso, written))


def test_a_mistake_in_a_statement_is_no_outage():
    """Trying it again would not mend it: a row that is there already, and a column that is not."""
    run = add_unit()
    with pytest.raises(IntegrityError, match="breaks a rule of its table") as caught:
        add_unit(run)
    assert not caught.value.recoverable
    with pytest.raises(DBAPIError), reading() as connection:
        connection.execute(text("SELECT nothing FROM runs"))


def test_no_connection_is_free(installation):
    """A pool of one that somebody else holds."""
    engine = create_engine(
        store.engine().url, poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
    )
    with engine.connect(), pytest.raises(ConnectionPoolError), store._plain_errors():
        engine.connect()
    engine.dispose()


def test_a_database_that_is_away(installation, tmp_path):
    """Wrong port, or a file in a folder that is not there: DatabaseError, and no password in it."""
    for url in (
        "postgresql://penstock:hush-hush@127.0.0.1:9/penstock",
        f"sqlite:///{tmp_path / 'no' / 'such' / 'folder' / 'x.db'}",
    ):
        installation.configure(PENSTOCK_DATABASE_URL=url)
        for way in (reading, writing):
            with pytest.raises(DatabaseError) as caught, way() as connection:
                connection.execute(select(runs.c.id))
            assert "hush-hush" not in str(caught.value)


def test_a_database_that_is_locked(installation):
    """A writer that has to wait too long gets DatabaseError and may come back; readers never wait."""
    is_sqlite = store.engine().dialect.name == "sqlite"
    run = add_unit()
    with writing() as connection:  # the next one has the same connection
        connection.exec_driver_sql("PRAGMA busy_timeout=50" if is_sqlite else "SET lock_timeout='50ms'")
    other = store.open_engine(store.engine().url.render_as_string(hide_password=False))
    with other.connect() as holder:
        holder.execute(update(units).values(records=7))
        with pytest.raises(TransactionError, match="lock"):
            take(run)
        with reading() as connection:
            assert connection.execute(select(units.c.records)).scalar_one() == 0
    other.dispose()
    assert isinstance(take(run), Claim)


def test_connections_that_the_server_has_closed():
    """One claim says so; the next one has a new connection, however many lay in the pool."""
    if store.engine().dialect.name == "sqlite":
        return  # it has no server
    run = add_unit()
    with store.engine().connect(), store.engine().connect(), store.engine().connect():
        pass
    other = store.open_engine(store.engine().url.render_as_string(hide_password=False))
    with other.begin() as connection:
        ours = text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        mine = connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        for pid in set(connection.execute(ours).scalars()) - {mine}:
            connection.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": pid})
    other.dispose()
    with pytest.raises(DatabaseError, match="did not answer"):
        take(run)
    assert isinstance(take(run), Claim)


def test_writers_of_one_process_take_turns(installation, monkeypatch):
    """In SQLite, where they would sleep; who waits too long gets DatabaseError."""
    run = add_unit()
    monkeypatch.setattr(store, "_SQLITE_WAIT_S", 0.05)
    with ThreadPoolExecutor(1) as other, store.writing():
        if store.engine().dialect.name == "postgresql":
            assert isinstance(other.submit(take, run).result(), Claim)
            return
        with pytest.raises(DatabaseError, match="busy"):
            other.submit(take, run).result()
    assert isinstance(take(run), Claim), "a turn ends with its transaction"


def driver_of(connection):
    return connection.connection.driver_connection


def write_and_fail():
    with writing() as connection:
        connection.execute(update(units).values(records=7))
        raise ZeroDivisionError


def test_the_connection_of_writers_stays_open():
    """In SQLite; after an error it is another one, or the same without what was written."""
    if store.engine().dialect.name != "sqlite":
        return
    run = add_unit()
    seen = []
    for _ in range(3):
        with writing() as connection:
            seen.append(driver_of(connection))
    assert len(set(map(id, seen))) == 1
    with pytest.raises(ZeroDivisionError):
        write_and_fail()
    with writing() as connection:
        assert connection.execute(select(units.c.records)).scalar_one() == 0
    store.engine().dispose()
    with writing() as connection:
        assert driver_of(connection) is not seen[0]
    assert isinstance(take(run), Claim)


def in_child(check):
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if check() else 1
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def test_a_fork_inherits_neither_a_turn_nor_its_connection():
    """The thread that holds it does not live on in the child, and the connection is the parent's."""
    run = add_unit()
    with writing() as connection:
        mine = driver_of(connection)
        assert in_child(lambda: store._turns[-1]._free.acquire(blocking=False))

    def writes():
        with writing() as connection:
            connection.execute(update(units).values(records=7))
            return driver_of(connection) is not mine

    assert in_child(writes)
    with writing() as connection:
        assert connection.execute(select(units.c.records)).scalar_one() == 7
    assert isinstance(take(run), Claim)
