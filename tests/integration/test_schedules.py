"""Schedules in SQL, slots, and the runs that ticks make of them; time passes in SQL."""

import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import insert, update

from resilience.errors import ConfigurationError
from tasks import schedules as module
from tasks.collectors.registry import endpoint_of
from tasks.models import runs, schedules, units
from tasks.runs import carry_on, plan
from tasks.schedules import sync, tick
from tasks.store import db_now, reading, writing

from .conftest import on_both

BINANCE = "collect.binance"
DATABASES = ("sqlite",)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def scheduled(fleet):
    """binance.klines every minute, as the settings of an installation say; returns how to change its row."""

    def change(**values):
        with writing() as connection:
            connection.execute(update(schedules).where(schedules.c.name == "binance.klines").values(**values))

    fleet.configure(PENSTOCK_SCHEDULES="binance")
    sync()
    return change


def now_slot():
    """The slot that is now, on the database's clock."""
    with reading() as connection:
        now = connection.execute(db_now().select()).scalar_one()
    return now.replace(second=0, microsecond=0)


@pytest.fixture
def slot(monkeypatch):
    """The current minute, and it stays: the tests must not meet the turn of a minute."""
    newest = now_slot()

    real = module.due_slots
    monkeypatch.setattr(
        module,
        "due_slots",
        lambda **said: real(**said | {"now": newest + timedelta(seconds=said.pop("at_s", 3))}),
    )
    return newest


@on_both
def test_declarations_become_schedules(fleet):
    """All that are declared; enabled are those that the setting names. Syncing again follows the settings."""
    assert sync() == []
    rows = {row["name"]: row for row in fleet.installation.rows(schedules)}
    assert set(rows) == {"binance.klines", "coinbase.candles", "asana.tasks", "asana.projects"}
    assert {row["enabled"] for row in rows.values()} == {False}
    assert (rows["binance.klines"]["every_s"], rows["asana.tasks"]["every_s"]) == (60, 300)
    assert (rows["binance.klines"]["catch_up"], rows["binance.klines"]["overlap"]) == ("latest", "skip")
    fleet.configure(PENSTOCK_SCHEDULES="binance.klines,asana")
    assert sorted(sync()) == ["asana.projects", "asana.tasks", "binance.klines"]
    fleet.configure(
        {"binance": {"klines": {"every": "5m", "overlap": "queue", "catch_up": "all"}}},
        PENSTOCK_SCHEDULES="*",
    )
    assert sorted(sync()) == ["binance.klines", "coinbase.candles"]  # nobody said what to ask Asana for
    row = fleet.installation.rows(schedules, schedules.c.name == "binance.klines")[0]
    assert (row["every_s"], row["overlap"], row["catch_up"]) == (300, "queue", "all")


def test_a_schedule_of_nothing_is_said(fleet, scheduled):
    """And what was enabled before stays so."""
    for names in ("binance.klines,nope.klines", "*,nope", "binance.kline"):
        fleet.configure(PENSTOCK_SCHEDULES=names)
        with pytest.raises(ConfigurationError, match=r"^PENSTOCK_SCHEDULES: (there is|binance has) no "):
            sync()
    assert fleet.installation.rows(schedules, schedules.c.name == "binance.klines")[0]["enabled"] is True


def test_a_schedule_whose_collector_is_gone_is_not_run(fleet, scheduled):
    """Its row stays, disabled."""
    fleet.configure(PENSTOCK_COLLECTORS="coinbase", PENSTOCK_SCHEDULES="*")
    sync()
    assert fleet.installation.rows(schedules, schedules.c.name == "binance.klines")[0]["enabled"] is False


def test_what_slots_have_passed_is_kept(fleet, scheduled, slot):
    """Syncing at every start of a worker makes no slot due again."""
    tick()
    sync()
    assert tick() == []


@on_both
def test_a_tick_makes_the_run_of_its_slot(fleet, scheduled, inbox, slot):
    """Once; it is sent to be planned, and skips what its circuit refuses."""
    [run] = tick()
    assert tick() == []
    row = fleet.the_run(run)
    assert (row["kind"], row["schedule"], row["slot_at"]) == ("scheduled", "binance.klines", slot)
    assert (row["on_open"], row["lane"], row["state"]) == ("skip", "live", "planning")
    assert (row["deadline_at"] - row["requested_at"]).total_seconds() == pytest.approx(300, abs=0.1)
    message = inbox.take("ctl")
    assert message.headers["task"] == "tasks.runs.plan"
    inbox.run(message)
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["outcome"] == "ok"
    assert [row["symbol"] for row in fleet.units(run)] == ["BTCUSDT", "ETHUSDT"]


def test_a_declaration_may_want_its_scheduled_runs_parked(fleet, scheduled, slot, monkeypatch):
    """Behind an open circuit they wait then, and are not skipped."""
    endpoint = endpoint_of("binance.klines")
    monkeypatch.setattr(module, "endpoint_of", lambda name: replace(endpoint, on_open="park"))
    [run] = tick()
    assert fleet.the_run(run)["on_open"] == "park"


def test_a_long_interval_has_a_long_deadline(fleet, scheduled, slot):
    """Twice its interval."""
    scheduled(every_s=3600)
    [run] = tick()
    row = fleet.the_run(run)
    assert (row["deadline_at"] - row["requested_at"]).total_seconds() == pytest.approx(7200, abs=0.1)


@on_both
def test_many_ticks_at_once_make_one_run(fleet, scheduled, slot):
    """Three beats, double and late ticks."""
    gate, made = threading.Barrier(6), []

    def work():
        gate.wait()
        made.extend(tick())

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(fleet.installation.rows(runs)) == 1


def one_after_the_other(fleet):
    """Tick until nothing is due, each run ending before the next tick; returns the runs."""
    made = []
    while now := tick():
        made += now
        fleet.installation.change(runs, runs.c.id.in_(now), state="done")
    return made


@on_both
@pytest.mark.parametrize(
    ("catch_up", "missed", "slots"),
    [("latest", 5, 1), ("all", 5, 5), ("none", 5, 1), ("latest", 0, 0), ("all", 0, 0), ("none", 0, 0)],
)
def test_catching_up(fleet, scheduled, slot, catch_up, missed, slots):
    """What beat missed follows from the last slot in SQL; a slot that is fresh is made in any case."""
    scheduled(catch_up=catch_up, last_slot_at=slot - missed * MINUTE)
    assert len(one_after_the_other(fleet)) == slots
    found = [row["slot_at"] for row in fleet.installation.rows(runs)]
    assert found == [slot - n * MINUTE for n in range(slots)][::-1]


def test_a_stale_slot_is_let_go(fleet, scheduled, monkeypatch):
    """With catch-up "none" only a slot of a moment ago is made."""
    newest, real = now_slot(), module.due_slots
    monkeypatch.setattr(
        module, "due_slots", lambda **said: real(**said | {"now": newest + timedelta(seconds=20)})
    )
    scheduled(catch_up="none", last_slot_at=newest - 5 * MINUTE)
    assert tick() == []


@pytest.mark.parametrize("overlap", ["skip", "queue", "replace"])
def test_catching_up_goes_one_by_one(fleet, scheduled, slot, overlap):
    """Whoever wants every slot gets each one collected, whatever is to happen to overlaps otherwise."""
    scheduled(catch_up="all", last_slot_at=slot - 3 * MINUTE, overlap=overlap)
    [first] = tick()
    assert tick() == []
    assert fleet.the_run(first)["slot_at"] == slot - 2 * MINUTE
    assert fleet.result(first) is None


@on_both
def test_overlap_skip(fleet, scheduled, inbox, slot, caplog):
    """The run before still goes on: this slot is skipped, with a result that says so."""
    scheduled(last_slot_at=slot - MINUTE)
    [first] = tick()
    fleet.installation.change(runs, slot_at=slot - MINUTE)
    scheduled(last_slot_at=slot - MINUTE)
    [second] = tick()
    assert fleet.result(first) is None
    result = fleet.result(second)
    assert (result["outcome"], result["total_items"]) == ("skipped", 0)
    assert fleet.the_run(second)["reason"] == f"run {first} still goes on"
    plan(run=first)
    inbox.drain(BINANCE, "ctl")
    scheduled(last_slot_at=slot - MINUTE)
    fleet.installation.change(runs, runs.c.id == second, slot_at=slot - 9 * MINUTE)
    [third] = tick()
    assert fleet.the_run(third)["state"] == "planning"


@on_both
def test_overlap_queue(fleet, scheduled, inbox, slot):
    """The slot stays due until the run before it is done."""
    scheduled(last_slot_at=slot - MINUTE, overlap="queue")
    with writing() as connection:
        connection.execute(
            insert(runs).values(
                collector="binance",
                endpoints=["binance.klines"],
                kind="scheduled",
                lane="live",
                priority=10,
                on_open="skip",
                state="open",
                schedule="binance.klines",
                slot_at=slot - MINUTE,
                requested_at=db_now(-60),
                deadline_at=db_now(600),
            )
        )
    assert tick() == []
    assert tick() == []
    carry_on(1)  # nothing is open in it: it closes
    [run] = tick()
    assert fleet.the_run(run)["slot_at"] == slot


@on_both
def test_overlap_replace(fleet, scheduled, inbox, slot):
    """The run before is cancelled, the new one is made."""
    scheduled(last_slot_at=slot - MINUTE, overlap="replace")
    [first] = tick()
    plan(run=first)
    inbox.deliver(BINANCE)
    scheduled(last_slot_at=slot - MINUTE)
    fleet.installation.change(runs, slot_at=slot - MINUTE)
    [second] = tick()
    assert [row["reason"] for row in fleet.units(first)] == [None, "cancelled"]
    carry_on(first)
    result = fleet.result(first)
    assert (result["outcome"], result["units_by_outcome"]) == ("cancelled", {"stored": 1, "skipped": 1})
    assert fleet.the_run(second)["state"] == "planning"


def test_disabled_schedules_make_nothing(fleet, slot):
    """Nothing runs on a schedule that nobody asked for."""
    sync()
    assert tick() == []


def test_the_broker_is_away_at_a_tick(fleet, scheduled, slot, monkeypatch):
    """The run is in SQL all the same."""
    monkeypatch.setattr(module, "start", lambda run: False)
    [run] = tick()
    assert fleet.the_run(run)["state"] == "planning"
    assert fleet.installation.rows(units) == []


@on_both
def test_an_hour_of_minutes_with_faults(fleet, scheduled, monkeypatch):
    """Ticks late, doubled, missing for minutes: with "all" each slot has exactly one run, DST or not."""
    real = module.due_slots
    start = datetime(2026, 3, 29, 0, 30, tzinfo=UTC)  # Europe's clocks go forward in this hour
    scheduled(catch_up="all", last_slot_at=start - MINUTE)
    at = {"now": start}
    monkeypatch.setattr(module, "due_slots", lambda **said: real(**said | at))
    monkeypatch.setattr(module, "start", lambda run: True)
    beats = [0, 0, 65, 66, 130, 131, 700, 701, 700, 1500, 1499, 2400, 2401, 3000, 3599, 3599]
    for beat_s in beats:
        at["now"] = start + timedelta(seconds=beat_s)
        one_after_the_other(fleet)
    found = [row["slot_at"] for row in fleet.installation.rows(runs)]
    assert sorted(found) == [start + n * MINUTE for n in range(60)]
