"""Break everything that can break, and see that nothing is lost, doubled or closed twice."""

import math
import os
import random
import time
from itertools import pairwise

import pytest

from tasks.outcomes import RunKind
from tasks.runs import Order, request
from tests.chaos.fleet import report
from tests.deployments import DEPLOYMENTS, RABBITMQ_POSTGRESQL, REDIS_SQLITE

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1200)]

UNITS = int(os.environ.get("PENSTOCK_TEST_CHAOS_UNITS", "2000"))
CLOSE_S = 30  # after the last fault or the last unit, whichever is later


@pytest.fixture(autouse=True)
def same_every_time():
    """The faults are drawn, but the same ones each time."""
    random.seed(7)


@pytest.fixture
def symbols(deployment):
    """How many units; fewer where everything has been seen once already."""
    return UNITS if deployment.name == REDIS_SQLITE else UNITS // 2


def launch():
    """Store a run over all symbols, as a command does that finds no broker; the reconciler has it planned."""
    return request(Order("pond", ("pond.klines",), RunKind.ADHOC, deadline_s=1800))


def finish(name, fleet, run, *, failed=0, but=(), **figures):
    """Wait for the close, assert what every scenario has to hold, and print the figures."""
    result, closed_at = fleet.wait_for_close(run)
    time.sleep(6)  # one more reconcile: a second close would show now
    requests = fleet.upstream.stats("binance")["requests"]
    missing, extra = fleet.check_rows(run, but)
    finished = fleet.finished(run)
    after_fault_s = (closed_at - fleet.last_fault).total_seconds() if fleet.last_fault else None
    standstill = standstill_s(fleet.last_fault, finished)
    after_unit_s = (closed_at - finished[-1]).total_seconds()
    report(
        name,
        deployment=fleet.deployment,
        units=fleet.symbols,
        faults=fleet.faults,
        lost=fleet.symbols - result["successful_items"] - failed,
        rows_missing=missing,
        rows_extra=extra,
        closes=fleet.closes(run),
        extra_calls=requests - fleet.symbols,
        duplicates=fleet.duplicates(),
        resent=result["resent"],
        seconds_after_last_fault=after_fault_s and round(after_fault_s, 1),
        seconds_after_last_unit=round(after_unit_s, 1),
        longest_standstill_s=round(standstill, 1),
        seconds=round((result["finished_at"] - result["started_at"]).total_seconds(), 1),
        restarts=sum(member.starts - 1 for member in fleet.members.values()),
        **figures,
    )
    assert result["total_items"] == fleet.symbols
    assert result["successful_items"] == fleet.symbols - failed
    assert (missing, extra) == (0, 0)
    assert fleet.closes(run) == 1
    assert min(after_unit_s, after_fault_s or after_unit_s) <= CLOSE_S
    if fleet.last_fault:
        assert standstill <= CLOSE_S  # nor does a unit that was lost hold up the last of them for longer
    return result


def standstill_s(last_fault, finished):
    """The longest time after the last fault in which no unit was done."""
    since = last_fault or finished[0]
    times = [since, *(at for at in finished if at > since)]
    return max(((after - before).total_seconds() for before, after in pairwise(times)), default=0.0)


def kill(fleet, run, wanted):
    """Kill what has been killed least of what is wanted, up to nine tenths of the units or as long as it takes."""
    fleet.wait_for(run, min(50, 0.1 * fleet.symbols))

    def missing():
        return any(fleet.faults.get(kind, 0) < count for kind, count in wanted.items())

    while (done := fleet.done(run)) < 0.9 * fleet.symbols or (missing() and done < fleet.symbols):
        kind = min(wanted, key=lambda kind: fleet.faults.get(kind, 0) / wanted[kind])
        if kind == "child":
            fleet.kill_child()
            time.sleep(0.5)
        else:
            fleet.kill_worker(None if kind == "worker" else kind)
            time.sleep(2.0)
        # On a machine that is busy, workers would die before they had run anything, for ever.
        fleet.wait_for(run, min(done + fleet.symbols // 200, 0.9 * fleet.symbols))
    assert not missing(), f"{fleet.faults} of {wanted}: the units did not last"


@pytest.mark.parametrize("deployment", DEPLOYMENTS, indirect=True)
def test_no_faults(fleet, symbols):
    """Nothing is sent twice and nothing called twice when nothing goes wrong."""
    fleet = fleet()
    result = finish("none", fleet, launch())
    assert result["resent"] == 0
    assert result["calls"] == symbols


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_kills(fleet, symbols, pool):
    """Pool children, whole workers and now and then ctl are killed; with threads a kill takes everything in flight."""
    wanted = {"worker": math.ceil(symbols / 200), "ctl": math.ceil(symbols / 1000)}
    if pool == "prefork":
        wanted["child"] = math.ceil(symbols / 40)
    concurrency = 4 if pool == "prefork" else 16
    fleet = fleet(
        pool=pool,
        concurrency=concurrency,
        latency_ms=max(50, 50_000 * concurrency // symbols),  # the units have to last as long as the faults
    )
    run = launch()
    kill(fleet, run, wanted)
    finish(f"kills-{pool}", fleet, run)


def test_flush(fleet, symbols):
    """Redis forgets everything, twice."""
    fleet = fleet()
    run = launch()
    for share in (0.3, 0.6):
        fleet.wait_for(run, share * symbols)
        fleet.flush()
    finish("flush", fleet, run)


def test_redis_comes_back_empty(fleet, symbols):
    """Killed, three seconds away, and back with nothing."""
    fleet = fleet()
    run = launch()
    fleet.wait_for(run, 0.4 * symbols)
    fleet.kill_redis(empty=True, away_s=3)
    finish("redis-empty", fleet, run)


def test_redis_frozen(fleet, symbols):
    """Half-open connections for twenty seconds."""
    fleet = fleet()
    run = launch()
    fleet.wait_for(run, 0.4 * symbols)
    fleet.freeze_redis(20)
    finish("redis-frozen", fleet, run)


@pytest.mark.parametrize("deployment", [RABBITMQ_POSTGRESQL], indirect=True)
@pytest.mark.parametrize("empty", [False, True], ids=["durable", "empty"])
def test_rabbitmq_comes_back(fleet, symbols, empty):
    """Killed, three seconds away, and back with what it had written, or with nothing."""
    fleet = fleet()
    run = launch()
    fleet.wait_for(run, 0.4 * symbols)
    fleet.restart_rabbitmq(empty=empty, away_s=3)
    finish(f"rabbitmq-{'empty' if empty else 'killed'}", fleet, run)


@pytest.mark.parametrize("deployment", [RABBITMQ_POSTGRESQL], indirect=True)
def test_rabbitmq_frozen(fleet, symbols):
    """Half-open connections for twenty seconds."""
    fleet = fleet()
    run = launch()
    fleet.wait_for(run, 0.4 * symbols)
    fleet.freeze_rabbitmq(20)
    finish("rabbitmq-frozen", fleet, run)


@pytest.mark.parametrize("deployment", [RABBITMQ_POSTGRESQL], indirect=True)
def test_rabbitmq_closes_connections(fleet, symbols):
    """An operator throws every client out, three times: messages in hand go back, publishers notice."""
    fleet = fleet(latency_ms=max(50, 200_000 // symbols))  # so that it takes 25 s: operators are not quick
    run = launch()
    for share in (0.2, 0.4, 0.6):
        fleet.wait_for(run, share * symbols)
        fleet.close_connections()
        assert fleet.done(run) < symbols
    finish("rabbitmq-closed", fleet, run)


@pytest.mark.parametrize("deployment", [RABBITMQ_POSTGRESQL], indirect=True)
def test_rabbitmq_purged(fleet, symbols):
    """The messages that wait are deleted, twice; nobody is told."""
    fleet = fleet(latency_ms=max(50, 200_000 // symbols))
    run = launch()
    for share in (0.3, 0.6):
        fleet.wait_for(run, share * symbols)
        fleet.purge()
    result = finish("rabbitmq-purged", fleet, run)
    assert result["resent"] > 0  # there were some


def test_database_away(fleet, symbols):
    """Locked, or refusing everybody, for thirty seconds; no attempt and no delivery is spent."""
    fleet = fleet()
    run = launch()
    fleet.wait_for(run, 0.4 * symbols)
    fleet.take_database_away(30)
    result = finish("database-away", fleet, run)
    assert result["retries"] == 0


def test_every_message_twice(fleet, symbols):
    """Each unit is delivered two times."""
    fleet = fleet(app="tests.chaos.doubled")
    run = launch()
    finish("doubled", fleet, run)
    assert fleet.duplicates() >= symbols / 2  # they came


def test_rolling_restart(fleet, symbols):
    """SIGTERM for all workers, one after the other, spends no attempt and ends within a slice."""
    fleet = fleet()
    run = launch()
    fleet.wait_for(run, 0.2 * symbols)
    took = fleet.roll()
    result = finish("rolling", fleet, run, longest_exit_s=round(max(took), 1))
    assert result["retries"] == 0
    assert max(took) <= 45


def test_poison(fleet):
    """One unit kills every process that runs it: it fails alone, as poison."""
    fleet = fleet(symbols=200, environment={"POND_POISON": "SYM00100"})
    run = launch()
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
    run = launch()
    kill(fleet, run, {"child": 100, "worker": 20, "ctl": 3})
    finish("ten-thousand", fleet, run)
    assert sum(fleet.faults.values()) >= 120
