"""What died and what is overdue is found in SQL; time passes there, not here."""

import logging
import sys
from datetime import UTC, datetime, timedelta

import pytest
import redis
from sqlalchemy import delete, insert

from resilience.guard import CircuitState, Guard
from resilience.store import Move
from resilience.store.redis import RedisStore
from tasks import heartbeat
from tasks import reconcile as module
from tasks.collectors.registry import endpoint_of
from tasks.data import ohlcv
from tasks.limits import circuit_of, guard
from tasks.models import events, runs, units, workers
from tasks.reconcile import reconcile
from tasks.runs import cancel
from tasks.store import claim, db_now, writing
from tasks.units import collect

from .conftest import connect, on_both

START = datetime(2026, 1, 5, tzinfo=UTC)
BINANCE = "collect.binance"
DATABASES = ("sqlite",)


@pytest.fixture
def ask(fleet):
    """Start a run of an hour of bars, one unit for each symbol; returns its id."""

    def start(count=1, **changes):
        symbols = [f"COIN{n}USDT" for n in range(count)]
        return fleet.run("binance.klines", symbols, START, START + timedelta(minutes=60), **changes)

    return start


@pytest.fixture
def mend(fleet):
    """The reconciler as it runs every five seconds, without a gap for an hour; returns what it did."""

    def run(*, idle_s=5, steady_s=3600):
        with writing() as connection:
            connection.execute(delete(workers).where(workers.c.id == module.LEASE))
            lease = {"id": module.LEASE, "kind": module.LEASE, "host": "", "pid": 0, "slots": 0}
            connection.execute(
                insert(workers).values(**lease, started_at=db_now(-steady_s), beat_at=db_now(-idle_s))
            )
        return reconcile()

    run()  # has seen this Redis
    return run


def add_worker(name, beat_s=0.0, slots=4):
    with writing() as connection:
        connection.execute(
            insert(workers).values(
                id=name,
                kind="units",
                host="h",
                pid=1,
                slots=slots,
                started_at=db_now(-3600),
                beat_at=db_now(beat_s),
            )
        )


def hold(run, n, worker):
    """A worker claims a unit, and is not heard of again."""
    return claim(run, n, worker=worker, gone_after_s=15, deliveries_max=3)


def of(run, n=0):
    return units.c.run == run, units.c.n == n


@on_both
def test_units_of_lost_workers_are_released(fleet, ask, inbox, mend):
    """And of those that hold one longer than any worker may, or that nobody knows; others are left alone."""
    run = ask(5)
    change = fleet.installation.change
    for n, (worker, beat_s, claimed_s) in enumerate(
        [("lost", -16, -20), ("alive", -4, -20), ("slow", -1, -91), (None, 0, -16), (None, 0, -5)]
    ):
        if worker:
            add_worker(worker, beat_s)
        hold(run, n, worker or "unknown")
        change(units, *of(run, n), claimed_at=db_now(claimed_s))
    assert mend()["released"] == 3
    states = [(row["state"], row["token"], row["deliveries"]) for row in fleet.units(run)]
    # Those released are due, and the same visit launched them again.
    assert states == [("sent", 2, 1), ("running", 1, 1), ("sent", 2, 1), ("sent", 2, 1), ("running", 1, 1)]
    assert inbox.length(BINANCE) == 5 + 3


def test_what_a_lost_worker_stored_stays(fleet, ask, inbox, mend):
    """The unit goes on at its checkpoint."""
    run = fleet.run("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=2500))
    fleet.configure(PENSTOCK_SLICE_S=5, PENSTOCK_CALL_TIMEOUT_S=5)
    inbox.deliver(BINANCE)
    add_worker("lost", -16)
    hold(run, 0, "lost")
    assert mend()["released"] == 1
    assert fleet.unit(run)["records"] == 1000
    fleet.configure(PENSTOCK_SLICE_S=45, PENSTOCK_CALL_TIMEOUT_S=30)
    inbox.drain(BINANCE, "ctl")
    assert fleet.unit(run)["records"] == 2500
    assert len(fleet.installation.rows(ohlcv)) == 2500
    assert fleet.upstream.stats("binance")["requests"] == 3


def test_a_worker_that_said_goodbye_is_not_waited_for(fleet, ask, mend):
    """Its units are released at the next visit."""
    run = ask()
    heartbeat.beat("units", 4)
    hold(run, 0, heartbeat.worker_id())
    assert "released" not in mend()
    heartbeat.stop()
    assert mend()["released"] == 1


@pytest.mark.parametrize("steady_s", [0, 10])
def test_after_a_gap_of_its_own_nobody_is_taken_for_dead(fleet, ask, mend, steady_s):
    """The database or the reconciler was away: every heartbeat looks old, and each gets time to beat."""
    run = ask()
    add_worker("silent", -60)
    hold(run, 0, "silent")
    found = mend(idle_s=60, steady_s=3600) if not steady_s else mend(steady_s=steady_s)
    assert "released" not in found
    assert fleet.unit(run)["state"] == "running"
    assert mend(steady_s=16)["released"] == 1


def test_two_at_once(mend):
    """The second sees that the first was here a moment ago."""
    mend()
    assert reconcile() == {}


@on_both
def test_a_unit_that_kills_its_workers(fleet, ask, inbox, mend, caplog):
    """Three deliveries, then once alone, then it is poison; the others of its run are unaffected."""
    run = ask(3)
    inbox.take(BINANCE)
    inbox.drain(BINANCE)
    for death in range(1, 4):
        add_worker(f"victim{death}", -16)
        hold(run, 0, f"victim{death}")
        row = fleet.unit(run)
        assert (row["deliveries"], row["alone"]) == (death, False)
        found = mend()
        assert found["released"] == 1
        assert found.get("alone", 0) == (death == 3)
        assert hold(run, 0, "nobody") is None or death < 3
        if death < 3:
            fleet.installation.change(units, *of(run), deliveries=death, state="sent")
    assert inbox.length("alone") == 1
    row = fleet.unit(run)
    assert (row["state"], row["alone"], row["outcome"]) == ("sent", True, None)
    message = inbox.take("alone")
    add_worker("victim4", -16)
    assert claim(run, 0, worker="victim4", gone_after_s=15, deliveries_max=3, alone=True) is not None
    assert mend()["released"] == 1
    row = fleet.unit(run)
    assert (row["state"], row["outcome"], row["reason"]) == ("done", "failed", "poison")
    assert inbox.run(message) == ("SUCCESS", {"unit": 0, "outcome": "duplicate"})
    result = fleet.result(run)
    assert (result["outcome"], result["successful_items"], result["failed_items"]) == ("partial", 2, 1)
    [error] = result["errors"]
    assert (error["error"], error["symbol"]) == ("poison", "COIN0USDT")
    assert error["message"]
    assert error["timestamp"]


def test_a_suspect_that_is_well_ends_well(fleet, ask, inbox, mend):
    """It was the machine: alone it goes through."""
    run = ask()
    inbox.take(BINANCE)
    fleet.installation.change(units, *of(run), deliveries=3)
    assert mend()["alone"] == 1
    assert inbox.deliver("alone")[1]["outcome"] == "stored"
    mend()
    assert fleet.result(run)["outcome"] == "ok"


def test_a_suspect_whose_message_was_lost(fleet, ask, inbox, mend):
    """Is sent to its own queue again, and nowhere else."""
    run = ask()
    inbox.take(BINANCE)
    fleet.installation.change(units, *of(run), deliveries=3)
    mend()
    inbox.take("alone")
    fleet.installation.change(units, *of(run), expected_at=db_now(-61))
    assert mend()["resent"] == 1
    assert (inbox.length("alone"), inbox.length(BINANCE)) == (1, 0)


@on_both
def test_a_run_that_nobody_has_planned(fleet, inbox, mend):
    """The broker was away when it was asked for; not before its own message had a chance."""
    run = fleet.order("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    assert "planned" not in mend()
    fleet.installation.change(runs, requested_at=db_now(-10))
    assert mend()["planned"] == 1
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["outcome"] == "ok"


@on_both
def test_a_planner_that_died(fleet, inbox, mend):
    """Another one starts anew; what the first had written is not there twice."""
    run = fleet.order("binance.klines", ["BTCUSDT", "ETHUSDT"], START, START + timedelta(minutes=60))
    change = fleet.installation.change
    change(runs, requested_at=db_now(-60), planner="dead", planned_at=db_now(-14))
    with writing() as connection:
        row = {"run": run, "endpoint": "binance.klines", "symbol": "LEFTOVER", "state": "waiting"}
        connection.execute(insert(units).values(**row, n=0, not_before=db_now()))
    assert "planned" not in mend()
    change(runs, planned_at=db_now(-16))
    assert mend()["planned"] == 1
    inbox.deliver("ctl")
    assert [row["symbol"] for row in fleet.units(run)] == ["BTCUSDT", "ETHUSDT"]
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["total_items"] == 2


def park(fleet, run):
    """As the units of a run are after their circuit opened."""
    values = {"state": "waiting", "parked_on": "binance.klines", "reason": "circuit_open", "wave": None}
    values["not_before"] = db_now(3600)
    fleet.installation.change(units, units.c.run == run, **values)


@on_both
def test_parked_units_go_on_when_the_circuit_closes(fleet, ask, inbox, mend):
    """Not while it is open; closed, disabled, or forgotten by Redis, they are due at once."""
    run = ask(8)
    while inbox.take(BINANCE):
        pass
    park(fleet, run)
    circuit = circuit_of(endpoint_of("binance.klines"))
    for state in (CircuitState.OPEN, CircuitState.FORCED_OPEN):
        circuit.guard.store.move([Move(circuit.spec, state, "somebody", "to see")])
        assert "unparked" not in mend()
        assert {row["state"] for row in fleet.units(run)} == {"waiting"}
    circuit.close()
    assert mend()["unparked"] == 8
    assert {row["state"] for row in fleet.units(run)} == {"sent"}
    inbox.drain(BINANCE, "ctl")
    result = fleet.result(run)
    assert (result["outcome"], result["circuit_broken"], result["successful_items"]) == ("ok", True, 8)


def test_a_half_open_circuit_gets_as_many_as_it_has_permits(fleet, ask, inbox, mend):
    """The rest waits until it has closed."""
    run = ask(8)
    while inbox.take(BINANCE):
        pass
    park(fleet, run)
    circuit_of(endpoint_of("binance.klines")).half_open()
    assert mend()["unparked"] == 8
    assert inbox.length(BINANCE) == 3
    assert sorted(row["state"] for row in fleet.units(run)) == ["sent"] * 3 + ["waiting"] * 5
    mend()
    assert inbox.length(BINANCE) == 3
    inbox.drain(BINANCE)
    assert circuit_of(endpoint_of("binance.klines")).view.state is CircuitState.CLOSED
    inbox.drain(BINANCE, "ctl")
    mend()
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["successful_items"] == 8


@on_both
def test_a_message_that_is_late_is_sent_again(fleet, ask, inbox, mend):
    """A minute after it was expected; by itself, and counted."""
    run = ask(2)
    add_worker("alive")
    first, other = inbox.take(BINANCE), inbox.take(BINANCE)
    hold(run, 1, "alive")  # while somebody works it may wait behind that
    fleet.installation.change(units, *of(run), expected_at=db_now(-59))
    assert "resent" not in mend()
    fleet.installation.change(units, *of(run), expected_at=db_now(-61))
    assert mend()["resent"] == 1
    again = inbox.take(BINANCE)
    assert again.headers["group"] is None
    assert again.headers["id"] != first.headers["id"]
    assert again.headers["shadow"] == "binance.klines"
    row = fleet.unit(run)
    assert (row["resent"], row["state"]) == (1, "sent")
    assert "resent" not in mend()  # it is expected again
    assert inbox.run(again)[1]["outcome"] == "stored"
    assert inbox.run(first)[1]["outcome"] == "duplicate"
    fleet.installation.change(units, *of(run, 1), state="sent")
    assert inbox.run(other)[1]["outcome"] == "stored"
    mend()
    assert (fleet.result(run)["outcome"], fleet.result(run)["resent"]) == ("ok", 1)


@on_both
@pytest.mark.parametrize(("overdue_s", "again"), [(4, 0), (6, 1)])
def test_a_message_that_is_nowhere_is_sent_again_soon(fleet, ask, inbox, mend, overdue_s, again):
    """Its queue was purged: it is in no queue, and as nobody works it is in no worker's hands either."""
    run = ask()
    add_worker("alive")
    inbox.take(BINANCE)
    fleet.installation.change(units, *of(run), expected_at=db_now(-overdue_s))
    assert mend().get("resent", 0) == again
    assert inbox.length(BINANCE) == again


def test_a_full_queue_is_no_loss(fleet, ask, inbox, mend):
    """As many messages as slots: late units are only waiting for their turn."""
    run = ask(6)
    add_worker("alive", slots=6)
    fleet.installation.change(units, units.c.run == run, expected_at=db_now(-3600))
    assert "resent" not in mend()
    inbox.take(BINANCE)
    assert mend()["resent"] == 6


@pytest.mark.parametrize(
    ("beat_s", "sent_s", "stopped", "again"),
    [(-20, -30, False, 1), (-20, -4, False, 0), (-10, -30, False, 0), (-20, -30, True, 0)],
)
def test_after_the_loss_of_a_worker(fleet, ask, inbox, mend, beat_s, sent_s, stopped, again):
    """What was sent before is sent again as soon as it is overdue; a worker that stopped lost nothing."""
    run = ask()
    inbox.take(BINANCE)
    add_worker("alive")
    add_worker("lost", beat_s)
    if stopped:
        fleet.installation.change(workers, workers.c.id == "lost", stopped_at=db_now(beat_s))
    fleet.installation.change(units, *of(run), sent_at=db_now(sent_s), expected_at=db_now(-1))
    assert mend().get("resent", 0) == again


@on_both
def test_redis_came_back_empty(fleet, ask, inbox, mend, redis_url):
    """Every unit that was sent is sent again at once, whatever its queue or run; the run ends as ever."""
    run = ask(5)
    # This process has published by named exchanges before: kombu does not declare those again by itself.
    collect.apply_async(
        kwargs={"run": run, "n": 4, "endpoint": "binance.klines", "symbol": "COIN4USDT"}, queue=BINANCE
    )
    inbox.deliver(BINANCE)
    backfill = fleet.run("binance.klines", ["XUSDT"], START, START + timedelta(minutes=60), kind="backfill")
    fleet.installation.change(units, sent_at=db_now(-2))
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    fleet.configure()
    assert mend()["resent"] == 5
    assert (inbox.length(BINANCE), inbox.length(f"{BINANCE}.backfill")) == (4, 1)
    assert "resent" not in mend()
    inbox.drain(BINANCE, f"{BINANCE}.backfill", "ctl")
    mend()
    for each, count in ((run, 5), (backfill, 1)):
        result = fleet.result(each)
        assert (result["outcome"], result["successful_items"]) == ("ok", count)
    assert len(fleet.installation.rows(ohlcv)) == 6 * 60
    kinds = [row["kind"] for row in fleet.installation.rows(events)]
    assert kinds.count("redis_emptied") == 1


def test_a_new_redis_has_lost_nothing(fleet, ask, inbox):
    """The first visit ever finds it empty too."""
    ask(3)
    fleet.installation.change(units, sent_at=db_now(-2))
    assert "resent" not in reconcile()
    assert [row["kind"] for row in fleet.installation.rows(events)] == ["redis_seen"]


@on_both
def test_a_transition_that_nobody_kept(fleet, ask, mend, monkeypatch):
    """Is kept at the next visit; while the circuits' Redis is away everything else goes on without it."""
    breaker = circuit_of(endpoint_of("binance.klines"))
    guard().store.move([Move(breaker.spec, CircuitState.OPEN, "ada", "an audit")])
    run = ask()
    add_worker("lost", -16)
    hold(run, 0, "lost")
    away = Guard(RedisStore("redis://127.0.0.1:1/0"))
    with monkeypatch.context() as patched:
        patched.setattr(module, "guard", lambda: away)
        found = mend()
    assert (found["released"], found.get("transitions")) == (1, None)
    assert mend()["transitions"] == 1
    assert "transitions" not in mend()
    [told] = fleet.installation.rows(events, events.c.kind == "circuit")
    assert told["subject"] == "binance.klines"
    assert told["detail"] == {"old": "closed", "new": "open", "reason": "an audit", "actor": "ada"}


def test_without_faults_nothing_is_mended(fleet, ask, inbox, mend):
    """A visit after every delivery, from the first unit to the close."""
    run = ask(30)
    add_worker("alive")
    while fleet.result(run) is None:
        assert mend() == {}
        if inbox.deliver(BINANCE) is None and inbox.deliver("ctl") is None:
            break
    result = fleet.result(run)
    assert (result["outcome"], result["resent"], result["calls"]) == ("ok", 0, 30)


def test_a_chord_that_never_fires(fleet, ask, inbox, mend):
    """Its body was lost: the next visit closes the run."""
    run = ask(3)
    inbox.drain(BINANCE)
    assert inbox.take("ctl").headers["task"] == "tasks.runs.advance"
    assert fleet.result(run) is None
    mend()
    assert fleet.result(run)["outcome"] == "ok"


@on_both
def test_a_run_past_its_deadline(fleet, ask, inbox, mend, caplog):
    """Parked: skipped for the circuit; never called: skipped for the deadline; else nobody knows: abandoned."""
    run = ask(5)
    change = fleet.installation.change
    inbox.deliver(BINANCE)
    parked = {"state": "waiting", "parked_on": "binance.klines", "reason": "circuit_open", "calls": 2}
    change(units, *of(run, 1), not_before=db_now(3600), **parked)
    change(units, *of(run, 3), state="waiting", calls=1, not_before=db_now(3600))
    add_worker("alive")
    held = hold(run, 4, "alive")
    assert "overdue" not in mend()
    change(runs, deadline_at=db_now(-1))
    with caplog.at_level(logging.WARNING):
        assert mend()["overdue"] == 1
    assert f"run {run} did not end before its deadline" in caplog.text
    assert [(row["outcome"], row["reason"]) for row in fleet.units(run)] == [
        ("stored", None),
        ("skipped", "circuit_open"),
        ("skipped", "deadline"),
        ("abandoned", "deadline"),
        ("abandoned", "deadline"),
    ]
    result = fleet.result(run)
    assert (result["outcome"], result["total_items"]) == ("partial", 5)
    assert (result["successful_items"], result["failed_items"]) == (1, 2)
    assert {row["token"] for row in fleet.units(run)[1:]} == {1, held.token + 1}
    assert fleet.the_run(run)["state"] == "done"


def test_a_run_that_is_not_planned_by_its_deadline(fleet, inbox, mend):
    """Is closed all the same, and says why."""
    run = fleet.order("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    fleet.installation.change(runs, deadline_at=db_now(-1), planner="somebody", planned_at=db_now(-1))
    assert mend()["overdue"] == 1
    assert (fleet.the_run(run)["state"], fleet.the_run(run)["outcome"]) == ("done", "failed")
    [error] = fleet.result(run)["errors"]
    assert "deadline" in error["message"]


SHOP = """
from tasks.collectors import Api

shop = Api("shop", "http://127.0.0.1:1")

def names():
    raise RuntimeError("the list of orders is away")

@shop.endpoint("/orders/{symbol}", key="id", symbols=names)
def orders(row, unit):
    return row
"""


@pytest.fixture
def shop(fleet, tmp_path, monkeypatch):
    """A collector whose symbols are a function, and the function fails."""
    (tmp_path / "shop_of_mends.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    fleet.configure(PENSTOCK_COLLECTORS="shop_of_mends:shop,binance")
    connect(fleet.inbox.app)
    yield
    sys.modules.pop("shop_of_mends", None)


def test_a_run_that_cannot_be_planned_does_not_stop_the_others(fleet, inbox, shop, mend, monkeypatch):
    """Nor what comes after planning: late messages, deadlines."""
    broken = fleet.order("shop.orders", None)

    def fail(endpoint):
        raise RuntimeError(f"a mistake about {endpoint.full_name}")

    monkeypatch.setattr("tasks.runs.symbols_of", fail)
    good = fleet.order("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    fleet.installation.change(runs, requested_at=db_now(-60))
    assert mend()["planned"] == 2
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(good)["outcome"] == "ok"
    fleet.installation.change(runs, runs.c.id == broken, deadline_at=db_now(-1))
    mend()
    result = fleet.result(broken)
    assert (result["outcome"], result["total_items"]) == ("failed", 0)


def test_a_run_whose_symbols_are_away_is_closed(fleet, inbox, shop, mend):
    """Skipped, with the reason, and the others go on."""
    away = fleet.order("shop.orders", None)
    good = fleet.order("binance.klines", ["BTCUSDT"], START, START + timedelta(minutes=60))
    fleet.installation.change(runs, requested_at=db_now(-60))
    assert mend()["planned"] == 2
    inbox.drain(BINANCE, "ctl")
    assert (fleet.result(good)["outcome"], fleet.result(away)["outcome"]) == ("ok", "skipped")
    assert "RuntimeError: the list of orders is away" in fleet.the_run(away)["reason"]


def test_a_collector_that_was_removed_does_not_stop_the_others(fleet, inbox, shop, mend, caplog):
    """Its run waits for its deadline; the others go on."""
    gone = fleet.run("shop.orders", ["a", "b"])
    fleet.installation.change(
        units, units.c.run == gone, state="waiting", parked_on="shop.orders", not_before=db_now(99)
    )
    good = fleet.run("binance.klines", [f"C{n}USDT" for n in range(3)], START, START + timedelta(minutes=60))
    fleet.configure(PENSTOCK_COLLECTORS="binance")
    while inbox.take(BINANCE):
        pass
    fleet.installation.change(units, units.c.run == good, state="waiting", wave=None)
    with caplog.at_level(logging.ERROR):
        mend()
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(good)["outcome"] == "ok"
    fleet.installation.change(runs, runs.c.id == gone, deadline_at=db_now(-1))
    mend()
    assert fleet.result(gone)["units_by_outcome"] == {"skipped": 2}


@on_both
def test_a_reserved_place_that_is_due_holds_up_nobody(fleet, ask, inbox, mend):
    """Its unit is to be sent; counted as in flight it would keep itself out."""
    run = ask(6)
    while inbox.take(BINANCE):
        pass
    due = {"state": "waiting", "ticket": "t", "wave": None, "not_before": db_now(-1)}
    fleet.installation.change(units, units.c.run == run, **due)
    fleet.configure({"binance": {"limits": ["12/1m"]}})  # two calls in ten seconds
    mend()
    assert sum(row["state"] == "sent" for row in fleet.units(run)) >= 1


@on_both
def test_other_units_probe_each_time(fleet, ask, inbox, mend):
    """The same ones might fail for reasons of their own, and would keep the circuit open for all."""
    run = ask(9)
    probed = set()
    for _ in range(3):
        while inbox.take(BINANCE):
            pass
        fleet.installation.change(
            units, units.c.run == run, units.c.state == "sent", state="waiting", wave=None
        )
        if not probed:
            fleet.installation.change(units, units.c.run == run, sent_at=None)
        circuit_of(endpoint_of("binance.klines")).half_open()
        mend()
        sent = {row["n"] for row in fleet.units(run) if row["state"] == "sent"}
        assert len(sent) == 3
        assert not probed & sent
        probed |= sent
    assert probed == set(range(9))


def test_a_suspect_that_has_to_wait_is_sent_again(fleet, ask, inbox, mend):
    """Alone, as before."""
    run = ask(1)
    inbox.take(BINANCE)
    fleet.installation.change(
        units, *of(run), alone=True, state="waiting", deliveries=0, not_before=db_now(-1)
    )
    assert mend()["alone"] == 1
    assert inbox.length("alone") == 1
    inbox.drain("alone", "ctl")
    assert fleet.unit(run)["outcome"] == "stored"


def test_what_waits_for_something_else_is_not_unparked(fleet, ask, inbox, mend):
    """It was parked once, and now has a back-off to wait for."""
    run = ask(1)
    inbox.take(BINANCE)
    change = {"state": "waiting", "parked_on": "binance.klines", "reason": None, "not_before": db_now(60)}
    fleet.installation.change(units, *of(run), **change)
    assert "unparked" not in mend()
    assert fleet.unit(run)["state"] == "waiting"


@on_both
def test_what_comes_back_to_a_cancelled_run_is_not_sent(fleet, ask, inbox, mend):
    """It was running when the run was cancelled, and then had to wait."""
    run = ask(2)
    with writing() as connection:
        cancel(connection, run, "enough")
    fleet.installation.change(
        units, *of(run), state="waiting", outcome=None, reason=None, not_before=db_now(-1)
    )
    mend()
    assert {row["reason"] for row in fleet.units(run)} == {"cancelled"}
    assert fleet.result(run)["outcome"] == "cancelled"
