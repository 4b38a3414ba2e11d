"""What is shown of runs, read from rows that stand for every case; on SQLite and on PostgreSQL."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert

from resilience.errors import DatabaseError
from tasks import reads, runs
from tasks.collectors.registry import endpoint_of
from tasks.data import ohlcv
from tasks.models import events, schedules, units, waves, workers
from tasks.models import runs as runs_table
from tasks.store import db_now, writing

AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)

pytestmark = pytest.mark.usefixtures("installation")


def add_run(state="open", **changes):
    values = {
        "collector": "binance",
        "endpoints": ["binance.klines"],
        "kind": "adhoc",
        "lane": "live",
        "priority": 20,
        "on_open": "park",
        "state": state,
        "requested_at": AT,
        "started_at": AT,
        "deadline_at": AT + timedelta(days=9999),
    } | changes
    with writing() as connection:
        return connection.execute(insert(runs_table).values(**values).returning(runs_table.c.id)).scalar_one()


def add_units(run, *rows):
    blank = {"endpoint": "binance.klines", "symbol": "BTCUSDT", "state": "done", "not_before": AT}
    with writing() as connection:
        for n, row in enumerate(rows):
            ended = {"finished_at": AT + timedelta(seconds=n)} if "outcome" in row else {}
            connection.execute(insert(units).values(run=run, n=n, **blank | ended | row))


def test_a_view_is_the_same_before_and_after_the_close():
    """Tallied from units while it is open, taken from its result when it is done."""
    run = add_run()
    add_units(
        run,
        {
            "outcome": "stored",
            "records": 5,
            "calls": 2,
            "retries": 1,
            "waits": 3,
            "waited_s": 1.5,
            "weight": 4,
        },
        {"outcome": "empty", "calls": 1},
        {"outcome": "skipped", "reason": "circuit_open"},
        {"outcome": "failed", "reason": "validation", "calls": 4, "rate_limited": True},
    )
    (before,) = reads.look_at([run])
    result = runs.close(run)
    (after,) = reads.look_at([run])
    assert (before.state, after.state, after.outcome) == ("open", "done", "partial")
    assert before.units.by_outcome == after.units.by_outcome == result.units_by_outcome
    for name in ("total", "successful", "failed", "skipped", *reads.COUNTED):
        assert getattr(before.units, name) == getattr(after.units, name), name


def test_json_of_a_run_holds_the_whole_result():
    """Under the same names, with the same values."""
    run = add_run()
    error = {"error": "ValidationError", "message": "400", "timestamp": "2026-03-01T12:00:05.250000Z"}
    add_units(
        run,
        {"outcome": "stored", "records": 5, "calls": 2, "waited_s": 1.5, "weight": 4},
        {"outcome": "failed", "reason": "validation", "error": error, "attempts": 1, "symbol": "BAD"},
        {"outcome": "abandoned", "reason": "deadline", "symbol": "LATE"},
    )
    kept = runs.close(run).to_dict()
    facts = reads.detail(run).to_dict()
    assert {name: facts[name] for name in kept} == kept


def test_a_run_without_units_has_a_view():
    """Being planned, or with nothing to do."""
    (view,) = reads.look_at([add_run("planning", started_at=None)])
    assert (view.units.total, view.lasted_s, view.is_done) == (0, None, False)


def test_the_newest_runs_come_first():
    """As many as asked for."""
    made = [add_run() for _ in range(4)]
    assert [view.id for view in reads.latest_runs(3)] == made[:0:-1]


def test_unknown_runs_are_left_out():
    """The caller decides whether that is an error."""
    run = add_run()
    assert [view.id for view in reads.look_at([run + 1, run])] == [run]
    assert reads.detail(run + 1) is None


def test_open_units_say_what_they_wait_for():
    """Circuit, limit, Retry-After, retry, wave, worker: each its own line, with the earliest end."""
    run = add_run()
    later, soon = db_now(3600), db_now(60)
    add_units(
        run,
        {"state": "running"},
        {"state": "sent"},
        {"state": "waiting"},
        {"state": "waiting", "not_before": later, "parked_on": "binance.klines"},
        {"state": "waiting", "not_before": soon, "parked_on": "binance.klines"},
        {"state": "waiting", "not_before": later, "ticket": "t1"},
        {"state": "waiting", "not_before": later, "throttles": 1},
        {"state": "waiting", "not_before": later, "attempts": 2},
    )
    found = {each.reason: each for each in reads.detail(run).waiting}
    assert {reason: each.units for reason, each in found.items()} == {
        "its answer": 1,
        "a worker": 1,
        "a wave": 1,
        "circuit binance.klines": 2,
        "its place in a limit": 1,
        "the server's Retry-After": 1,
        "a retry": 1,
    }
    parked, limited = found["circuit binance.klines"].until_at, found["its place in a limit"].until_at
    assert parked.tzinfo is not None
    assert timedelta(minutes=50) < limited - parked < timedelta(minutes=70)
    assert found["a wave"].until_at is None


def test_failures_are_told_in_order_and_bounded():
    """With what a person needs to act: endpoint, symbol, error, message, attempts."""
    run = add_run()
    error = {"error": "ServerError", "message": "binance answered 503"}
    bad = {"outcome": "failed", "reason": "server_error", "error": error, "attempts": 4, "finished_at": AT}
    add_units(run, {"outcome": "stored"}, *[bad | {"symbol": f"S{n}"} for n in range(reads.ERRORS_SHOWN + 3)])
    shown = reads.detail(run)
    assert len(shown.failures) == reads.ERRORS_SHOWN
    assert shown.run.units.failed == reads.ERRORS_SHOWN + 3
    assert shown.failures[0].to_dict() == {
        "endpoint": "binance.klines",
        "symbol": "S0",
        "error": "server_error",
        "message": "binance answered 503",
        "timestamp": "2026-03-01T12:00:00Z",
        "attempts": 4,
    }
    assert shown.reasons == {"failed": {"server_error": reads.ERRORS_SHOWN + 3}}


def test_endpoints_are_told_apart():
    """One run may have several."""
    run = add_run(endpoints=["binance.klines", "binance.trades"])
    add_units(run, {"outcome": "stored"}, {"endpoint": "binance.trades", "state": "waiting"})
    by_endpoint = reads.detail(run).to_dict()["by_endpoint"]
    assert by_endpoint == {"binance.klines": {"stored": 1}, "binance.trades": {"waiting": 1}}


def test_waves_are_counted():
    """Launched, closed, and those whose chord counted otherwise."""
    run = add_run(waves=2)
    with writing() as connection:
        for n, closed in ((1, AT), (2, None)):
            values = {"chord": f"c{n}", "units": 1, "launched_at": AT, "closed_at": closed}
            connection.execute(insert(waves).values(run=run, n=n, differs=closed and True, **values))
    shown = reads.detail(run)
    assert (shown.run.waves, shown.waves_done, shown.waves_differing) == (2, 1, 1)


def test_workers_alive_are_counted_by_kind():
    """Those whose heartbeat is fresh; the reconciler's own row is no worker."""
    rows = [("a", "units", 4, 0), ("b", "units", 1, -5), ("c", "units", 8, -60), ("d", "ctl", 1, 0)]
    with writing() as connection:
        for name, kind, slots, beat_s in [*rows, ("reconcile", "reconcile", 0, 0)]:
            values = {"host": "h", "pid": 1, "started_at": AT, "beat_at": db_now(beat_s)}
            connection.execute(insert(workers).values(id=name, kind=kind, slots=slots, **values))
    assert reads.workers_alive(15) == {"units": 5, "ctl": 1}


def test_runs_of_a_schedule():
    """Oldest first, after a known one."""
    first = add_run(schedule="binance.klines", slot_at=AT)
    add_run()
    second = add_run(schedule="binance.klines", slot_at=AT + timedelta(minutes=1))
    assert [view.id for view in reads.runs_of("binance.klines")] == [first, second]
    assert [view.id for view in reads.runs_of("binance.klines", after=first)] == [second]


def test_schedules_are_told():
    """As SQL has them, whatever this process was configured with."""
    with writing() as connection:
        connection.execute(
            insert(schedules).values(
                name="binance.klines",
                collector="binance",
                endpoint="klines",
                every_s=60,
                catch_up="latest",
                overlap="skip",
                enabled=True,
                last_slot_at=AT,
            )
        )
    assert reads.schedule_views() == [reads.ScheduleView("binance.klines", 60, enabled=True, last_slot_at=AT)]


def test_events_come_once():
    """From where the reader left off."""
    with writing() as connection:
        for n in range(3):
            connection.execute(
                insert(events).values(at=AT, kind="circuit", subject=f"s{n}", detail={"new": "open"})
            )
    first = reads.events_after(limit=2)
    assert [event.subject for event in first] == ["s0", "s1"]
    assert [event.subject for event in reads.events_after(first[-1].id)] == ["s2"]


def test_rows_are_counted_by_source():
    """Two collectors share a table, not their rows."""
    row = {"interval": "1m", "open": 1, "high": 1, "low": 1, "close": 1, "volume": 1, "symbol": "BTC"}
    with writing() as connection:
        for source, minutes in (("binance", 3), ("coinbase", 2)):
            for n in range(minutes):
                at = AT + timedelta(minutes=n)
                connection.execute(insert(ohlcv).values(source=source, open_time=at, **row))
    names = ("binance.klines", "coinbase.candles", "asana.tasks")
    assert reads.rows_stored([endpoint_of(name) for name in names]) == {
        "binance.klines": ("ohlcv", 3),
        "coinbase.candles": ("ohlcv", 2),
        "asana.tasks": ("asana_tasks", 0),
    }


def test_a_database_that_is_away_is_said(installation, tmp_path):
    """As DatabaseError, which callers know."""
    installation.configure(PENSTOCK_DATABASE_URL=f"sqlite:///{tmp_path / 'nowhere' / 'penstock.db'}")
    with pytest.raises(DatabaseError):
        reads.latest_runs()
