"""Symbols that fail in run after run are skipped by scheduled runs, until they are tried again or released."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from tasks import quarantine as module
from tasks.models import events, quarantine, units
from tasks.runs import Order, accept, close, plan
from tasks.store import writing
from workers import cli

START = datetime(2026, 1, 5, tzinfo=UTC)
HOUR = timedelta(hours=1)
TOML = '[binance.klines]\nsymbols = ["BTCUSDT", "GONEUSDT"]\n'


@pytest.fixture
def world(installation, inbox):
    """An installation whose collector has two symbols; nothing is sent anywhere."""
    installation.configure(toml=TOML)
    return World(installation)


class World:
    def __init__(self, installation):
        self.installation = installation

    def plan(self, **changes):
        order = Order("binance", ("binance.klines",), "adhoc", **changes)
        with writing() as connection:
            run = accept(connection, order)
        plan(run=run)
        return run

    def run(self, *, gone="validation", other="stored", **changes):
        """One run in which the units of each symbol end so: an outcome, or the reason of a failure."""
        run = self.plan(**changes)
        for symbol, end in (("GONEUSDT", gone), ("BTCUSDT", other)):
            ended = {"outcome": end, "reason": None}
            if end not in {"stored", "empty"}:
                ended = {"outcome": "failed", "reason": end}
            where = (units.c.run == run, units.c.symbol == symbol, units.c.state != "done")
            self.installation.change(units, *where, state="done", finished_at=START, **ended)
        return run, close(run)

    def fail(self, times, **changes):
        for _ in range(times):
            self.run(**changes)

    def known(self):
        return {row["symbol"]: row for row in self.installation.rows(quarantine)}

    def outcomes(self, run):
        return {
            row["symbol"]: (row["outcome"], row["reason"])
            for row in self.installation.rows(units, units.c.run == run)
        }


def test_ten_runs_that_fail_and_the_eleventh_skips(world):
    """The other symbol goes on; who failed is told once, with the run that it happened in."""
    world.fail(9)
    run, _ = world.run()
    assert world.known()["GONEUSDT"]["failures"] == 10
    run_after, result = world.run()
    assert world.outcomes(run_after) == {"BTCUSDT": ("stored", None), "GONEUSDT": ("skipped", "quarantined")}
    assert (result.failed_items, result.units_by_outcome) == (0, {"stored": 1, "skipped": 1})
    told = world.installation.rows(events, events.c.kind == "quarantine")
    assert [(row["subject"], row["run"], row["detail"]["state"]) for row in told] == [
        ("binance.klines GONEUSDT", run, "quarantined")
    ]


def test_it_is_tried_again_and_away_for_longer(world):
    """Due again, one failure doubles the time; one success ends it."""
    world.fail(10)
    for hours in (2, 4):
        world.installation.change(quarantine, until_at=START)
        world.run()
        row = world.known()["GONEUSDT"]
        assert row["until_at"] - row["since_at"] == hours * HOUR
    world.installation.change(quarantine, until_at=START)
    world.run(gone="stored")
    assert world.known() == {}


def test_what_the_server_does_not_know_stays_away(world):
    """Until somebody releases it."""
    world.fail(10, gone="not_found")
    assert world.known()["GONEUSDT"]["until_at"] is None
    assert world.outcomes(world.plan())["GONEUSDT"] == ("skipped", "quarantined")
    assert module.release("GONEUSDT") == ["binance.klines"]
    assert world.outcomes(world.plan())["GONEUSDT"] == (None, None)
    assert module.release("GONEUSDT") == []


def test_who_names_a_symbol_gets_it(world):
    """A run by hand and a backfill skip nothing; a good one ends the quarantine."""
    world.fail(10)
    run, _ = world.run(gone="empty", symbols=("GONEUSDT",))
    assert world.outcomes(run) == {"GONEUSDT": ("empty", None)}
    assert world.known() == {}


@pytest.mark.parametrize("reason", ["server_error", "timeout", "rate_limited", "unauthorized"])
def test_a_service_that_fails_puts_nothing_away(world, reason):
    """It says nothing about its symbols."""
    world.fail(2, gone=reason, other=reason)
    assert world.known() == {}


def test_a_unit_that_kills_its_workers_counts(world):
    """It would kill them in the next run as well."""
    world.fail(2, gone="poison")
    assert world.known()["GONEUSDT"]["failures"] == 2


def test_windows_of_one_symbol_count_once(world):
    """And not at all where one of them went well."""
    backfill = {"symbols": ("GONEUSDT",), "start": START, "end": START + timedelta(days=30)}
    run, result = world.run(**backfill)
    assert result.failed_items > 1
    assert world.known()["GONEUSDT"]["failures"] == 1
    run = world.plan(**backfill)
    world.installation.change(
        units, units.c.run == run, state="done", outcome="failed", reason="validation", finished_at=START
    )
    world.installation.change(units, units.c.run == run, units.c.n == 0, outcome="stored", reason=None)
    close(run)
    assert world.known() == {}


def test_the_command(world):
    """What is known, as a table and as JSON; and the way out."""
    assert "No symbol" in penstock("quarantine").output
    world.fail(9)
    assert json.loads(penstock("quarantine", "--json").output)[0]["skipped"] is False
    world.fail(1)
    table = penstock("quarantine").output
    assert "binance.klines" in table
    assert "GONEUSDT" in table
    known = json.loads(penstock("quarantine", "--json").output)
    assert [(row["symbol"], row["failures"], row["error"], row["skipped"]) for row in known] == [
        ("GONEUSDT", 10, "validation", True)
    ]
    wrong = penstock("quarantine", "release", "GONEUSDT", "--endpoint", "binance.trades")
    assert (wrong.exit_code, "has not failed in binance.trades" in wrong.output) == (2, True)
    right = penstock("quarantine", "release", "GONEUSDT")
    assert (right.exit_code, right.output) == (0, "GONEUSDT is tried again by binance.klines\n")
    assert world.known() == {}


def penstock(*words):
    return CliRunner().invoke(cli.main, words)


@pytest.mark.parametrize(
    ("endpoint", "good", "bad", "error"),
    [
        ("binance.klines", "BTCUSDT", "BADCOIN", "validation"),
        ("coinbase.candles", "BTC-USD", "BAD-USD", "not_found"),
    ],
)
def test_what_a_service_says_of_a_symbol_that_it_does_not_have(fleet, inbox, endpoint, good, bad, error):
    """A real unit, with the words of the real API: a failure of this symbol, and of no other."""
    queue = f"collect.{endpoint.partition('.')[0]}"
    run = fleet.run(endpoint, [good, bad], START, START + HOUR)
    for message in [inbox.take(queue) for _ in range(2)]:
        inbox.run(message)
    assert close(run) is not None
    known = [
        (row["endpoint"], row["symbol"], row["failures"], row["error"])
        for row in fleet.installation.rows(quarantine)
    ]
    assert known == [(endpoint, bad, 1, error)]
