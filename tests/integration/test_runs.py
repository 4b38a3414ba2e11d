"""A run from its order to its CollectionResult: accept, plan, waves, close; on SQLite and on PostgreSQL."""

import json
import logging
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import delete, event, insert

from tasks import runs as module
from tasks.collectors.fields import to_cursor
from tasks.collectors.registry import endpoint_of
from tasks.limits import circuit_of
from tasks.models import cursors, results, runs, units, waves, workers
from tasks.outcomes import CollectionResult
from tasks.runs import Order, accept, advance, cancel, carry_on, close, plan
from tasks.store import claim, db_now, engine, move_cursor, reading, writing

from .conftest import on_both

START = datetime(2026, 1, 5, tzinfo=UTC)
END = START + timedelta(minutes=60)
BINANCE = "collect.binance"
SLOT = datetime(2026, 3, 1, 12, tzinfo=UTC)
DATABASES = ("sqlite",)


def order(**changes):
    values = {
        "collector": "binance",
        "endpoints": ("binance.klines",),
        "kind": "scheduled",
        "schedule": "binance.klines",
        "slot_at": SLOT,
        "on_open": "skip",
    }
    return Order(**values | changes)


def symbols(count):
    return [f"COIN{n}USDT" for n in range(count)]


@pytest.fixture
def ask(fleet):
    """Start a run of an hour of bars, one unit for each symbol; returns its id."""

    def start(*names, **changes):
        return fleet.run("binance.klines", names, START, END, **changes)

    return start


def states(fleet, run):
    return Counter(row["state"] for row in fleet.units(run))


def add_worker(name, kind="units", host="h", slots=4):
    with writing() as connection:
        connection.execute(
            insert(workers).values(
                id=name,
                kind=kind,
                host=host,
                pid=1,
                slots=slots,
                started_at=db_now(),
                beat_at=db_now(),
            )
        )


@on_both
def test_a_slot_has_one_run(installation):
    """However often it is accepted; another slot, another schedule and runs without a slot are their own."""
    with writing() as connection:
        made = [accept(connection, order()) for _ in range(3)]
        other = [
            accept(connection, order(slot_at=SLOT + timedelta(minutes=1))),
            accept(connection, order(schedule="binance.other")),
            accept(connection, order(schedule=None, slot_at=None)),
            accept(connection, order(schedule=None, slot_at=None)),
        ]
    assert made[0] is not None
    assert made[1:] == [None, None]
    assert len({made[0], *other}) == 5
    assert None not in other


@on_both
def test_many_at_once_make_one_run(installation):
    """Eight beats, one slot."""
    made, gate = [], threading.Barrier(8)

    def tick():
        gate.wait()
        with writing() as connection:
            made.append(accept(connection, order()))

    in_threads(tick, 8)
    assert sum(run is not None for run in made) == 1
    assert len(installation.rows(runs)) == 1


def in_threads(work, count):
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@on_both
def test_what_a_run_is_made_of(fleet):
    """A unit for each symbol and window, numbered; from the cursor on where no range is asked for."""
    with writing() as connection:
        connection.execute(
            insert(cursors).values(
                endpoint="binance.klines",
                symbol="ETHUSDT",
                value="2026-01-05T00:00:00Z",
                updated_at=db_now(),
            )
        )
    run = fleet.run("binance.klines", ["BTCUSDT", "ETHUSDT"])
    fresh, known = fleet.units(run)
    now = fleet.the_run(run)["planned_at"]
    assert (fresh["n"], fresh["symbol"], fresh["cursor"]) == (0, "BTCUSDT", None)
    assert (known["n"], known["symbol"], known["cursor"]) == (1, "ETHUSDT", "2026-01-05T00:00:00Z")
    assert known["start_at"] == START - timedelta(minutes=2)
    assert fresh["end_at"] == known["end_at"]
    assert timedelta(0) <= now - fresh["end_at"] < timedelta(minutes=1, seconds=5)


def test_a_range_becomes_windows(fleet):
    """Three weeks of two symbols in chunks of seven days."""
    run = fleet.order(
        "binance.klines", ["A1USDT", "B1USDT"], START, START + timedelta(days=20), kind="backfill"
    )
    plan(run=run)
    found = [(row["symbol"], row["start_at"], row["end_at"]) for row in fleet.units(run)]
    windows = [(0, 7), (7, 14), (14, 20)]
    assert found == [
        (symbol, START + timedelta(days=first), START + timedelta(days=last))
        for symbol in ("A1USDT", "B1USDT")
        for first, last in windows
    ]
    assert {row["cursor"] for row in fleet.units(run)} == {None}
    assert (fleet.the_run(run)["lane"], fleet.the_run(run)["priority"]) == ("backfill", 0)


@on_both
def test_units_are_written_in_short_transactions(fleet, monkeypatch):
    """So that no other writer waits long; together they are complete, and each number is there once."""
    monkeypatch.setattr(module, "CHUNK", 100)
    sizes = []
    still = module._still_planning
    monkeypatch.setattr(module, "_still_planning", lambda *args: sizes.append(1) or still(*args))
    run = fleet.run("binance.klines", symbols(950))
    assert [row["n"] for row in fleet.units(run)] == list(range(950))
    assert len(sizes) == 11  # ten chunks, and one to open the run


@on_both
def test_planning_costs_statements_per_chunk_not_per_unit(fleet, monkeypatch):
    """A chunk more is a fence and an insert more, whether units stand at one cursor or each at its own."""
    monkeypatch.setattr(module, "CHUNK", 50)
    names = symbols(200)
    with writing() as connection:
        for minute, name in enumerate(names[::2]):
            move_cursor(connection, "binance.klines", name, to_cursor(START + timedelta(minutes=minute)))
    said = []

    def planning(run):
        row = module._take_planning(run)
        said.clear()
        assert module._write_units(run, row)
        return len([each for each in said if not each.startswith(("BEGIN", "INSERT INTO"))])

    insert = module.upsert.insert  # which SQLite's driver gets itself, so that no event is heard
    monkeypatch.setattr(module.upsert, "insert", lambda *given: (said.append("INSERT"), insert(*given)))
    event.listen(engine(), "before_cursor_execute", lambda *given: said.append(given[2]))
    one = planning(fleet.order("binance.klines", names[:50]))
    assert one <= 5  # cursors, fence, insert, fence, open
    assert planning(fleet.order("binance.klines", names)) == one + 3 * 2
    assert planning(fleet.order("binance.klines", names, START, END)) == one + 3 * 2 - 1  # no cursors to read


def test_a_planner_that_was_replaced_writes_no_more(fleet, monkeypatch):
    """It was slow, not dead; the other one's units are the run's."""
    monkeypatch.setattr(module, "CHUNK", 10)
    run = fleet.order("binance.klines", symbols(30))
    still, seen = module._still_planning, []

    def replaced(connection, which):
        seen.append(which)
        if len(seen) == 2:
            connection.execute(runs.update().values(planner="another"))
        return still(connection, which)

    monkeypatch.setattr(module, "_still_planning", replaced)
    plan(run=run)
    assert len(fleet.units(run)) == 10
    assert fleet.the_run(run)["state"] == "planning"


@on_both
def test_planning_twice_makes_each_unit_once(fleet):
    """A second message, and a second planner after the first died half-way."""
    run = fleet.run("binance.klines", symbols(5))
    plan(run=run)
    assert len(fleet.units(run)) == 5
    fleet.installation.change(runs, state="planning", planner="dead", planned_at=db_now(-60))
    plan(run=run)
    assert [row["n"] for row in fleet.units(run)] == list(range(5))


def test_a_run_without_symbols_fails_and_says_why(fleet, caplog):
    """Asana has none until somebody names some."""
    with caplog.at_level(logging.INFO):
        run = fleet.run("asana.projects", None)
    assert fleet.result(run)["outcome"] == "failed"
    [error] = fleet.result(run)["errors"]
    assert "has no symbols yet" in error["message"]
    assert fleet.the_run(run)["reason"] == error["message"]


@on_both
def test_a_wave_is_what_the_limits_admit(fleet, inbox):
    """6,000 of weight a minute and two a call: the burst, and ten seconds of the rate, once."""
    run = fleet.run("binance.klines", symbols(2000))
    admitted = int((60 + 10 * (6000 - 60) / 60) / 2)
    assert admitted == 525
    assert states(fleet, run) == {"sent": admitted, "waiting": 2000 - admitted}
    assert inbox.length(BINANCE) == admitted
    assert [row["units"] for row in fleet.installation.rows(waves)] == [admitted]
    carry_on(run)
    assert inbox.length(BINANCE) == admitted
    row = fleet.unit(run)
    assert (row["expected_at"] - row["sent_at"]).total_seconds() == pytest.approx(10, abs=0.1)


def test_another_run_gets_what_is_left(fleet, inbox):
    """What is sent or running counts for everybody who calls that API."""
    first = fleet.run("binance.klines", symbols(300))
    second = fleet.run("binance.klines", symbols(500))
    assert states(fleet, first) == {"sent": 300}
    assert states(fleet, second) == {"sent": 225, "waiting": 275}


def test_a_small_rest_is_not_worth_a_wave(fleet, inbox):
    """With two waves at most a tiny one would hold up the next; but the last units of a run go at once."""
    fleet.run("binance.klines", symbols(400))
    large = fleet.run("binance.klines", symbols(500))
    small = fleet.run("binance.klines", symbols(100))
    assert states(fleet, large) == {"waiting": 500}
    assert states(fleet, small) == {"sent": 100}


def test_a_reserved_place_counts(fleet, inbox):
    """Units that wait with a ticket will call soon."""
    first = fleet.run("binance.klines", symbols(300))
    fleet.installation.change(
        units, units.c.run == first, state="waiting", ticket="t", not_before=db_now(60), wave=None
    )
    second = fleet.run("binance.klines", symbols(500))
    assert states(fleet, second)["sent"] == 225


@on_both
def test_live_work_does_not_wait_for_a_backfill(fleet, inbox):
    """It does not count what the backfill has in flight; the backfill counts everything."""
    backfill = fleet.run("binance.klines", symbols(2000), START, END, kind="backfill")
    live = fleet.run("binance.klines", symbols(600))
    more = fleet.run("binance.klines", symbols(600), START, END, kind="backfill")
    assert states(fleet, backfill)["sent"] == 525
    assert states(fleet, live)["sent"] == 525
    assert states(fleet, more) == {"waiting": 600}
    assert inbox.length(f"{BINANCE}.backfill") == 525


def test_a_wave_has_at_most_its_maximum(fleet, inbox):
    """A thousand by default, whatever the limits admit."""
    fleet.configure({"binance": {"limits": ["600000/1m"]}})
    run = fleet.run("binance.klines", symbols(2500))
    assert [row["units"] for row in fleet.installation.rows(waves)] == [1000, 1000]
    assert states(fleet, run) == {"sent": 2000, "waiting": 500}


@on_both
def test_two_waves_are_in_flight(fleet, inbox):
    """A third one only when one of them has ended."""
    fleet.configure(PENSTOCK_WAVE_MAX=3)
    run = fleet.run("binance.klines", symbols(8), START, END)
    assert [row["units"] for row in fleet.installation.rows(waves)] == [3, 3]
    for _ in range(3):
        carry_on(run)
    assert inbox.length(BINANCE) == 6
    for _ in range(3):
        inbox.deliver(BINANCE)
    assert inbox.deliver("ctl")[0] == "SUCCESS"
    assert [row["units"] for row in fleet.installation.rows(waves)] == [3, 3, 2]
    inbox.drain(BINANCE, "ctl")
    assert fleet.result(run)["successful_items"] == 8
    assert [row["differs"] for row in fleet.installation.rows(waves)] == [False] * 3


@on_both
def test_many_who_carry_on_launch_each_unit_once(fleet, inbox):
    """Chord bodies and reconcilers at the same moment: the run's row is locked."""
    fleet.configure(PENSTOCK_WAVE_MAX=5)
    run = fleet.order("binance.klines", symbols(40), START, END)
    plan(run=run)
    inbox.drain(BINANCE, limit=10)
    while inbox.take("ctl"):
        pass
    gate = threading.Barrier(6)

    def work():
        gate.wait()
        carry_on(run)

    in_threads(work, 6)
    assert inbox.length(BINANCE) == 10
    assert [row["units"] for row in fleet.installation.rows(waves)] == [5, 5, 5, 5]
    assert states(fleet, run) == {"done": 10, "sent": 10, "waiting": 20}


def test_without_limits_a_wave_is_what_the_slots_do(fleet):
    """In ten seconds, at half a second a call."""
    from tasks.collectors import Api
    from tasks.limits import wave_weight

    shop = Api("shop", "https://shop.example")

    @shop.endpoint("/orders", key="id")
    def orders(row, unit):
        return row

    assert wave_weight(shop.endpoints["orders"], 10, hosts=1, slots=12) == 240
    assert wave_weight(shop.endpoints["orders"], 10, hosts=1, slots=0) == 20


def test_a_limit_per_host_counts_the_hosts(fleet, inbox):
    """Each of them has an address of its own."""
    add_worker("a", host="one")
    add_worker("b", host="two")
    add_worker("c", kind="ctl", host="three")
    run = fleet.run("binance.klines", symbols(2000))
    assert states(fleet, run)["sent"] == 1000  # one wave's maximum, of the 1,050 that two addresses admit


def test_units_that_are_not_due_wait(fleet, inbox):
    """And those of a suspect are not launched at all."""
    run = fleet.order("binance.klines", symbols(3), START, END)
    plan(run=run)
    while inbox.take(BINANCE):
        pass
    change = fleet.installation.change
    change(units, state="waiting", wave=None)
    change(units, units.c.n == 0, not_before=db_now(60))
    change(units, units.c.n == 1, deliveries=3)
    carry_on(run)
    assert [row["state"] for row in fleet.units(run)] == ["waiting", "waiting", "sent"]


def test_a_forced_open_circuit_launches_nothing(fleet, inbox):
    """A run that parks waits; a scheduled one is over at once, without a single call."""
    from resilience.guard import CircuitState

    circuit_of(endpoint_of("binance.klines")).force(CircuitState.FORCED_OPEN, by="ops", why="to see")
    parks = fleet.run("binance.klines", symbols(3), START, END)
    skips = fleet.run("binance.klines", symbols(3), START, END, kind="scheduled", on_open="skip")
    assert inbox.length(BINANCE) == 0
    assert states(fleet, parks) == {"waiting": 3}
    assert fleet.result(parks) is None
    result = fleet.result(skips)
    assert (result["outcome"], result["circuit_broken"], result["calls"]) == ("skipped", True, 0)
    assert result["units_by_outcome"] == {"skipped": 3}


@on_both
def test_totals_of_a_chord_are_checked_against_sql(fleet, ask, inbox):
    """A chord that counted a unit twice, or that lost one, differs; the result is SQL's."""
    run = ask("BTCUSDT", "ETHUSDT")
    inbox.drain(BINANCE)
    body = inbox.take("ctl")
    stored = {"unit": 0, "outcome": "stored", "records": 60}
    advance([stored, stored, stored], run=run, wave=1)
    [wave] = fleet.installation.rows(waves)
    assert (wave["totals"], wave["differs"]) == ({"stored": 3, "records": 180}, True)
    result = fleet.result(run)
    assert (result["total_items"], result["successful_items"], result["records"]) == (2, 2, 120)
    inbox.run(body)
    [wave] = fleet.installation.rows(waves)
    assert (wave["totals"]["stored"], wave["differs"]) == (2, False)


@pytest.mark.parametrize("outcomes", [[None, {"unit": 1, "outcome": "duplicate"}], [], None])
def test_a_chord_with_odd_outcomes(fleet, ask, inbox, outcomes):
    """Duplicates, gaps, or an error: the run goes on as SQL has it."""
    run = ask("BTCUSDT", "ETHUSDT")
    inbox.drain(BINANCE)
    advance(outcomes, run=run, wave=1)
    assert fleet.result(run)["outcome"] == "ok"


@on_both
def test_a_run_is_closed_once(fleet, ask, inbox, caplog):
    """By eight at the same moment: one result, one line, one who is told."""
    run = ask(*symbols(4))
    inbox.drain(BINANCE)
    told, gate = [], threading.Barrier(8)

    def work():
        gate.wait()
        told.append(close(run))

    with caplog.at_level(logging.INFO, logger="tasks.results"):
        in_threads(work, 8)
    [result] = [each for each in told if each is not None]
    assert isinstance(result, CollectionResult)
    assert len(fleet.installation.rows(results)) == 1
    assert len([line for line in caplog.messages if line.startswith(f"run {run} of binance")]) == 1
    inbox.drain("ctl")
    assert len(fleet.installation.rows(results)) == 1


def test_a_run_with_open_units_is_not_closed(fleet, ask, inbox):
    """Whatever they wait for."""
    run = ask("BTCUSDT", "ETHUSDT")
    inbox.deliver(BINANCE)
    for state in ("waiting", "sent", "running"):
        fleet.installation.change(units, units.c.n == 1, state=state)
        assert close(run) is None
    assert close(987_654) is None


@on_both
def test_the_result_of_a_mixed_run(fleet, inbox, upstream, caplog):
    """Every field, for a run in which everything happened once; and the row is the value that was returned."""
    names = ["BTCUSDT", "EMPTYUSDT", "BADCOIN", "PARKED1USDT", "LOSTUSDT", "THROTTLED1", "ETHUSDT"]
    run = fleet.run("binance.klines", names, START, END)
    messages = [inbox.take(BINANCE) for _ in names]
    for n in (0, 2, 6):
        inbox.run(messages[n])
    change = fleet.installation.change
    change(
        units,
        units.c.n == 1,
        start_at=datetime(2019, 1, 1, tzinfo=UTC),
        end_at=datetime(2019, 1, 1, 1, tzinfo=UTC),
    )
    inbox.run(messages[1])
    upstream.control("binance", throttle_s=5)
    inbox.run(messages[5])
    change(
        units,
        units.c.n == 3,
        state="done",
        outcome="skipped",
        reason="circuit_open",
        parked_on="binance.klines",
    )
    lost = {
        "state": "done",
        "outcome": "abandoned",
        "reason": "deadline",
        "resent": 2,
        "finished_at": db_now(),
    }
    change(units, units.c.n == 4, **lost)
    change(units, units.c.n == 5, state="done", outcome="skipped", reason="cancelled")
    with caplog.at_level(logging.INFO, logger="tasks.results"):
        result = close(run)
    row, stored = fleet.the_run(run), fleet.result(run)
    assert stored == {"run": run} | {name: getattr(result, name) for name in stored if name != "run"}
    assert stored["collector_name"] == "binance"
    assert stored["started_at"] == row["started_at"]
    assert stored["finished_at"] == row["finished_at"]
    assert stored["started_at"] < stored["finished_at"]
    assert stored["started_at"].utcoffset() == timedelta(0)
    assert (stored["total_items"], stored["successful_items"], stored["failed_items"]) == (7, 3, 2)
    assert (stored["rate_limited"], stored["circuit_broken"]) == (True, True)
    assert (stored["outcome"], row["outcome"], row["state"]) == ("partial", "partial", "done")
    assert stored["units_by_outcome"] == {"stored": 2, "empty": 1, "failed": 1, "skipped": 2, "abandoned": 1}
    assert stored["by_endpoint"] == {"binance.klines": stored["units_by_outcome"]}
    assert stored["failed_symbols"] == {"BADCOIN": 1, "LOSTUSDT": 1}
    assert (stored["records"], stored["calls"], stored["weight"]) == (120, 5, 10)
    assert (stored["retries"], stored["resent"]) == (0, 2)
    bad, abandoned = stored["errors"]
    assert (bad["endpoint"], bad["symbol"], bad["error"]) == ("binance.klines", "BADCOIN", "validation")
    assert bad["attempts"] == 1
    assert "Invalid symbol" in bad["message"]
    assert (abandoned["symbol"], abandoned["error"], abandoned["attempts"]) == ("LOSTUSDT", "deadline", 0)
    for error in stored["errors"]:
        assert datetime.fromisoformat(error["timestamp"]).utcoffset() == timedelta(0)
    assert result.success_rate == pytest.approx(3 / 7)
    assert result.is_partial is True
    said = json.loads(json.dumps(result.to_dict()))
    assert (said["success_rate"], said["is_partial"]) == (0.428571, True)
    assert said["started_at"].endswith("Z")
    [line] = [line for line in caplog.messages if line.startswith("run ")]
    for part in (
        "partial",
        "3 of 7",
        "2 failed",
        "2 skipped",
        "120 records",
        "rate limited",
        "circuit broken",
    ):
        assert part in line


def test_a_thousand_errors_are_kept_and_all_are_counted(fleet, inbox):
    """The rest is in the units' rows."""
    run = fleet.order("binance.klines", symbols(1200))
    plan(run=run)
    fleet.installation.change(
        units,
        state="done",
        outcome="failed",
        reason="server_error",
        finished_at=db_now(),
        error={"message": "x"},
    )
    result = close(run)
    assert (result.failed_items, len(result.errors), len(result.failed_symbols)) == (1200, 1000, 1000)
    assert result.outcome == "failed"


@pytest.mark.parametrize("reason", ["run 7 still goes on"])
def test_a_skipped_run_leaves_a_line_and_a_result(fleet, caplog, reason):
    """Never silent."""
    with writing() as connection:
        run = module.accept_skipped(connection, order(), reason)
        assert module.accept_skipped(connection, order(), reason) is None
    with caplog.at_level(logging.INFO, logger="tasks.results"):
        close(run)
    result = fleet.result(run)
    assert (result["outcome"], result["total_items"], result["errors"]) == ("skipped", 0, [])
    assert fleet.the_run(run)["reason"] == reason
    [line] = caplog.messages
    assert f"run {run} of binance: skipped" in line
    assert CollectionResult(**{k: v for k, v in result.items() if k != "run"}).success_rate == 0.0


@on_both
def test_a_cancelled_run(fleet, ask, inbox):
    """What waits or is sent ends at once; what runs may finish, and closes it."""
    fleet.configure(PENSTOCK_WAVE_MAX=2)
    run = ask(*symbols(6))
    inbox.deliver(BINANCE)
    add_worker("busy")
    running = claim(run, 1, worker="busy", gone_after_s=15, deliveries_max=3)
    with writing() as connection:
        cancel(connection, run, "somebody asked")
    assert states(fleet, run) == {"done": 5, "running": 1}
    assert close(run) is None
    while message := inbox.take(BINANCE):
        assert inbox.run(message)[1]["outcome"] == "duplicate"
    with writing() as connection:
        running.write(connection, state="done", outcome="stored", records=1, finished_at=db_now())
    inbox.drain("ctl")
    carry_on(run)
    result = fleet.result(run)
    assert (result["outcome"], result["successful_items"]) == ("cancelled", 2)
    assert result["units_by_outcome"] == {"stored": 2, "skipped": 4}
    assert fleet.the_run(run)["reason"] == "somebody asked"


def test_cancelling_before_it_is_planned(fleet):
    """Nothing is planned after that."""
    run = fleet.order("binance.klines", symbols(3))
    with writing() as connection:
        cancel(connection, run, "somebody asked")
    plan(run=run)
    assert fleet.units(run) == []
    carry_on(run)
    assert fleet.result(run)["outcome"] == "cancelled"


def test_cancelling_a_run_that_is_over_changes_nothing(fleet, ask, inbox):
    """Its result stands."""
    run = ask("BTCUSDT")
    inbox.drain(BINANCE, "ctl")
    before = fleet.the_run(run)
    with writing() as connection:
        cancel(connection, run, "too late")
    assert fleet.the_run(run) == before


def test_a_run_that_was_deleted_takes_everything_with_it(fleet, ask, inbox):
    """Units, waves and result; the data stay."""
    run = ask("BTCUSDT")
    inbox.drain(BINANCE, "ctl")
    with writing() as connection:
        connection.execute(delete(runs))
    assert fleet.units(run) == []
    assert fleet.installation.rows(waves) == fleet.installation.rows(results) == []
    with reading() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM ohlcv").scalar_one() == 60


@on_both
def test_old_waves_do_not_hold_up_the_run(fleet, inbox):
    """A long unit goes on for hours; two of them are not the two waves that may be in flight."""
    fleet.configure(PENSTOCK_WAVE_MAX=1)
    run = fleet.run("binance.klines", symbols(3), START, END)
    assert states(fleet, run) == {"sent": 2, "waiting": 1}
    carry_on(run)
    assert states(fleet, run) == {"sent": 2, "waiting": 1}
    fleet.installation.change(waves, waves.c.run == run, launched_at=db_now(-60))
    carry_on(run)
    assert states(fleet, run) == {"sent": 3}
