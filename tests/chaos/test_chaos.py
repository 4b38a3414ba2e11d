"""Break everything that can break, and see that nothing is lost, doubled or closed twice."""

import contextlib
import os
import random
import time

import pytest

from tasks.outcomes import RunKind
from tasks.runs import Order, request, start
from tests.chaos.fleet import Fleet, report

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

UNITS = int(os.environ.get("PENSTOCK_TEST_CHAOS_UNITS", "2000"))


@pytest.fixture(autouse=True)
def same_every_time():
    """The faults are drawn, but the same ones each time."""
    random.seed(7)


@pytest.fixture(params=["sqlite", "postgres"])
def database(request, tmp_path):
    """Where the truth is kept."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'penstock.db'}"
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def fleet(tmp_path, monkeypatch):
    """Makes fleets, and a clean environment after them."""
    made = contextlib.ExitStack()

    def make(**options):
        for name in ("POND_URL", "POND_SYMBOLS", "PENSTOCK_REDIS_URL"):
            monkeypatch.setenv(name, "")  # remembered, so that it is undone
        return made.enter_context(Fleet(tmp_path, **options))

    with made:
        yield make


def launch(symbols):
    """Ask for one run over all symbols."""
    run = request(Order("pond", ("pond.klines",), RunKind.ADHOC, deadline_s=1800))
    start(run)
    return run


def finish(name, fleet, run, *, units=None, slack_s=30, failed=0, but=(), began=None, **figures):
    """Wait for the close, assert what every scenario has to hold, and print the figures."""
    units = units or fleet.symbols
    result, closed_at = fleet.wait_for_close(run)
    time.sleep(6)  # one more reconcile: a second close would show now
    stats = fleet.upstream.stats("binance")
    missing, extra = fleet.check_rows(run, but)
    report(
        name,
        units=units,
        faults=fleet.faults,
        lost=units - result["successful_items"] - failed,
        rows_missing=missing,
        rows_extra=extra,
        closes=fleet.closes(run),
        extra_calls=stats["requests"] - result["calls"] if name == "none" else stats["requests"] - units,
        resent=result["resent"],
        seconds_after_last_fault=round(closed_at - fleet.last_fault, 1) if fleet.last_fault else None,
        seconds=round(closed_at - began, 1) if began else None,
        restarts=sum(member.starts - 1 for member in fleet.members.values()),
        **figures,
    )
    assert result["total_items"] == units
    assert result["successful_items"] == units - failed
    assert (missing, extra) == (0, 0)
    assert fleet.closes(run) == 1
    if fleet.last_fault:
        assert closed_at - fleet.last_fault <= slack_s
    return result


def test_no_faults(fleet, database):
    """Nothing is sent twice and nothing called twice when nothing goes wrong."""
    fleet = fleet(symbols=UNITS, database=database)
    began = time.monotonic()
    run = launch(UNITS)
    result = finish("none", fleet, run, began=began)
    assert result["resent"] == 0
    assert result["calls"] == UNITS


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_kills(fleet, database, pool):
    """Pool children and whole workers are killed at random; with threads a kill takes everything in flight."""
    fleet = fleet(symbols=UNITS, database=database, pool=pool, concurrency=4 if pool == "prefork" else 16)
    run = launch(UNITS)
    fleet.wait_for(run, 50)
    while fleet.done(run) < 0.9 * UNITS:
        if pool == "prefork":
            fleet.kill_child()
            time.sleep(0.7)
        if random.random() < 0.3:
            fleet.kill_worker()
            time.sleep(2.0)
        time.sleep(0.5)
    finish(f"kills-{pool}", fleet, run)


def test_flush(fleet):
    """Redis forgets everything, twice."""
    fleet = fleet(symbols=UNITS)
    run = launch(UNITS)
    for share in (0.3, 0.6):
        fleet.wait_for(run, share * UNITS)
        fleet.flush()
    finish("flush", fleet, run)


def test_redis_comes_back_empty(fleet):
    """Killed, three seconds away, and back with nothing."""
    fleet = fleet(symbols=UNITS)
    run = launch(UNITS)
    fleet.wait_for(run, 0.4 * UNITS)
    fleet.kill_redis(empty=True, away_s=3)
    finish("redis-empty", fleet, run)


def test_redis_frozen(fleet):
    """Half-open connections for twenty seconds."""
    fleet = fleet(symbols=UNITS)
    run = launch(UNITS)
    fleet.wait_for(run, 0.4 * UNITS)
    fleet.freeze_redis(20)
    finish("redis-frozen", fleet, run)


def test_database_away(fleet):
    """Nobody can write for thirty seconds; no attempt and no delivery is spent."""
    fleet = fleet(symbols=UNITS)
    run = launch(UNITS)
    fleet.wait_for(run, 0.4 * UNITS)
    fleet.lock_database(30)
    result = finish("database-away", fleet, run)
    assert result["retries"] == 0


def test_every_message_twice(fleet):
    """Each unit is delivered two times."""
    fleet = fleet(symbols=UNITS, app="tests.chaos.doubled")
    run = launch(UNITS)
    finish("doubled", fleet, run)


def test_rolling_restart(fleet):
    """SIGTERM for all workers, one after the other, spends no attempt and ends within a slice."""
    fleet = fleet(symbols=UNITS)
    run = launch(UNITS)
    fleet.wait_for(run, 0.2 * UNITS)
    took = fleet.roll()
    result = finish("rolling", fleet, run, slack_s=60, longest_exit_s=round(max(took), 1))
    assert result["retries"] == 0
    assert max(took) <= 45


def test_poison(fleet):
    """One unit kills every process that runs it: it fails alone, as poison."""
    fleet = fleet(symbols=200, environment={"POND_POISON": "SYM00100"})
    run = launch(200)
    result = finish("poison", fleet, run, failed=1, but={"SYM00100"})
    assert [error["error"] for error in result["errors"]] == ["poison"]
    assert result["outcome"] == "partial"


@pytest.mark.skipif(
    "PENSTOCK_TEST_CHAOS_LONG" not in os.environ,
    reason="set PENSTOCK_TEST_CHAOS_LONG=1 for ten thousand units",
)
def test_ten_thousand(fleet):
    """10,000 units and at least 120 kills."""
    fleet = fleet(symbols=10_000)
    run = launch(10_000)
    fleet.wait_for(run, 50)
    while fleet.done(run) < 9_000:
        fleet.kill_child()
        time.sleep(0.6)
        if random.random() < 0.2:
            fleet.kill_worker()
            time.sleep(1.5)
    finish("ten-thousand", fleet, run, slack_s=60)
    assert sum(fleet.faults.values()) >= 120
