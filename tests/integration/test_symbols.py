"""Symbols that come from elsewhere: looked up when a run is planned, recorded, and never lost."""

import json
import sys
import threading
from datetime import timedelta

import pytest
from click.testing import CliRunner
from sqlalchemy import insert

from tasks import symbols
from tasks.collectors import FromTable
from tasks.collectors.registry import endpoint_of
from tasks.data import asana_projects
from tasks.models import events, records, symbol_lists
from tasks.models import symbols as symbols_table
from tasks.runs import plan, request
from tasks.store import DatabaseError, db_now, writing
from tasks.symbols import NoSymbolsYet, symbols_of
from tests.upstream import data
from workers import cli

from .conftest import connect

SHOP = """
from tasks.collectors import Api, FromEndpoint, FromTable
from tasks.data import asana_projects

shop = Api("shop", "http://127.0.0.1:1")
named = []

def ask():
    return named[0]() if named and callable(named[0]) else list(named)

@shop.endpoint("/owners", key="id")
def owners(row, unit):
    return row

@shop.endpoint("/orders", params={"of": "{symbol}"}, symbols=FromEndpoint("owners", field="id"), key="id")
def orders(row, unit):
    return row

@shop.endpoint("/asked", params={"of": "{symbol}"}, symbols=ask, symbol_pattern="[a-z]+", key="id")
def asked(row, unit):
    return row

open_ones = FromTable(asana_projects, "gid", where=asana_projects.c.archived.is_(False), refresh="10m")

@shop.endpoint("/tabled", params={"of": "{symbol}"}, symbols=open_ones, key="id")
def tabled(row, unit):
    return row
"""


@pytest.fixture
def shop(fleet, scripted, tmp_path, monkeypatch):
    """A collector with every kind of source; what its function returns is `named`."""
    (tmp_path / "shop_of_symbols.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    fleet.configure(
        {"shop": {"base_url": scripted.url}}, PENSTOCK_COLLECTORS="shop_of_symbols:shop,asana,binance"
    )
    connect(fleet.inbox.app)
    yield scripted
    sys.modules.pop("shop_of_symbols", None)


def name(*names):
    """What the function of shop.asked returns from now on."""
    sys.modules["shop_of_symbols"].named[:] = names


def add_owners(*ids):
    with writing() as connection:
        for each in ids:
            row = {
                "source": "shop",
                "endpoint": "owners",
                "key": str(each),
                "symbol": "",
                "data": {"id": each},
            }
            connection.execute(insert(records).values(**row))


def add_projects(*gids, archived=False):
    with writing() as connection:
        for gid in gids:
            row = {"gid": gid, "workspace": "1", "name": gid, "archived": archived, "data": {}}
            connection.execute(
                insert(asana_projects).values(**row, created_at=db_now(), modified_at=db_now())
            )


def told(fleet, kind):
    return [row["detail"] for row in fleet.installation.rows(events, events.c.kind == kind)]


def now(fleet, endpoint):
    return list(symbols_of(endpoint_of(endpoint)))


def later(fleet, endpoint, **ago):
    """Make time pass for the list of an endpoint."""
    row = fleet.installation.rows(symbol_lists, symbol_lists.c.endpoint == endpoint)[0]
    moved = {key: row[key] and row[key] - timedelta(**ago) for key in ("found_at", "tried_at")}
    fleet.installation.change(symbol_lists, symbol_lists.c.endpoint == endpoint, **moved)


def test_a_run_collects_what_another_endpoint_brought(fleet, shop, inbox):
    """One unit for each; texts and whole numbers; rows of other endpoints and APIs are others."""
    shop.answers = [(200, {}, b'[{"id": "b"}, {"id": 7}, {"id": "a"}]'), (200, {}, b"[]")]
    fleet.run("shop.owners", None)
    inbox.drain("collect.shop")
    with writing() as connection:
        for source, endpoint in (("shop", "others"), ("pond", "owners")):
            row = {"source": source, "endpoint": endpoint, "key": "x", "symbol": "", "data": {"id": "x"}}
            connection.execute(insert(records).values(**row))
    run = fleet.run("shop.orders", None)
    assert sorted(row["symbol"] for row in fleet.units(run)) == ["7", "a", "b"]
    changed = {"added": 3, "removed": 0, "added_symbols": ["7", "a", "b"], "removed_symbols": []}
    [event] = told(fleet, "symbols_changed")
    assert event | {"added_symbols": sorted(event["added_symbols"])} == changed


def test_the_projects_of_asana_are_the_symbols_of_its_tasks(fleet, inbox):
    """As shipped, by a column of a table."""
    add_projects(*data.PROJECTS)
    run = fleet.run("asana.tasks", None)
    assert [row["symbol"] for row in fleet.units(run)] == sorted(data.PROJECTS)


def test_a_first_run_without_symbols_is_skipped_and_says_why(fleet, shop, inbox):
    """One unit that was skipped, a result, and the reason; the next run collects."""
    run = fleet.run("shop.orders", None)
    reason = "shop.orders: no symbols yet: shop.owners has not been collected"
    assert (fleet.the_run(run)["reason"], fleet.result(run)["outcome"]) == (reason, "skipped")
    [unit] = fleet.units(run)
    assert (unit["outcome"], unit["reason"], unit["symbol"]) == ("skipped", "no_symbols", "")
    assert reason in CliRunner().invoke(cli.main, ["show", str(run)]).stdout
    add_owners("a")
    run = fleet.run("shop.orders", None)
    assert [row["symbol"] for row in fleet.units(run)] == ["a"]


def test_other_endpoints_of_the_run_are_collected(fleet, shop, inbox):
    """Only what lacks symbols is skipped."""
    run = fleet.run("shop.owners", None, endpoints=("shop.orders", "shop.owners", "shop.tabled"))
    units = {row["endpoint"]: (row["state"], row["reason"]) for row in fleet.units(run)}
    skipped = ("done", "no_symbols")
    assert units == {"shop.owners": ("sent", None), "shop.orders": skipped, "shop.tabled": skipped}
    inbox.drain("collect.shop", "ctl")
    assert fleet.result(run)["outcome"] == "partial"
    assert (
        "; shop.tabled: no symbols yet: column 'gid' of table asana_projects holds none"
        in (fleet.the_run(run)["reason"])
    )


def test_within_refresh_the_recorded_list_is_used(fleet, shop):
    """After it what is new and what is gone is recorded, in the table and as one event."""
    add_projects("1", "2", "3")
    add_projects("9", archived=True)
    assert now(fleet, "shop.tabled") == ["1", "2", "3"]
    fleet.installation.change(asana_projects, asana_projects.c.gid == "2", archived=True)
    add_projects("4")
    later(fleet, "shop.tabled", minutes=9)
    assert now(fleet, "shop.tabled") == ["1", "2", "3"]
    later(fleet, "shop.tabled", minutes=2)
    assert now(fleet, "shop.tabled") == ["1", "3", "4"]
    changed = {"added": 1, "removed": 1, "added_symbols": ["4"], "removed_symbols": ["2"]}
    assert told(fleet, "symbols_changed")[1:] == [changed]
    rows = {row["symbol"]: row["removed_at"] is None for row in fleet.installation.rows(symbols_table)}
    assert rows == {"1": True, "2": False, "3": True, "4": True}
    fleet.installation.change(asana_projects, asana_projects.c.gid == "2", archived=False)
    later(fleet, "shop.tabled", minutes=11)
    assert now(fleet, "shop.tabled") == ["1", "2", "3", "4"]
    later(fleet, "shop.tabled", minutes=11)
    now(fleet, "shop.tabled")
    assert len(told(fleet, "symbols_changed")) == 3


def test_a_function_is_asked_each_time(fleet, shop):
    """It may return any iterable, with repeats."""
    now_asked = endpoint_of("shop.asked")
    name("b", "a", "b")
    assert list(symbols_of(now_asked)) == ["a", "b"]
    name(lambda: iter("c"))
    assert list(symbols_of(now_asked)) == ["c"]


def broken():
    raise OSError("the file is gone")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (broken, "OSError: the file is gone"),
        (list, "the function gave none"),
        (lambda: "abc", "TypeError: the function gave 'abc' instead of a list"),
        (lambda: 5, "TypeError"),
        (lambda: ["UP", None], "no symbols of this API, 2: 'UP', None"),
        (lambda: sys.exit(3), "SystemExit: 3"),
    ],
)
def test_a_source_that_fails_takes_no_symbol_away(fleet, shop, caplog, given, said):
    """The last list is used; event and log say why, once for the same reason."""
    endpoint = endpoint_of("shop.asked")
    name(given)
    with pytest.raises(NoSymbolsYet, match="no symbols yet: "):
        symbols_of(endpoint)
    [event] = told(fleet, "symbols_failed")
    assert said in event["error"]
    assert f"shop.asked: symbols: {event['error']}" in caplog.text
    name("a", "b")
    assert list(symbols_of(endpoint)) == ["a", "b"]
    name(given)
    assert list(symbols_of(endpoint)) == ["a", "b"]
    later(fleet, "shop.asked", seconds=61)
    assert list(symbols_of(endpoint)) == ["a", "b"]
    assert len(told(fleet, "symbols_failed")) == 2
    name("c")
    later(fleet, "shop.asked", seconds=61)
    assert list(symbols_of(endpoint)) == ["c"]


def test_values_that_are_no_symbols_are_left_out_and_told(fleet, shop):
    """The others are used."""
    endpoint = endpoint_of("shop.asked")
    name("a", "B", "c", "\n")
    assert list(symbols_of(endpoint)) == ["a", "c"]
    [event] = told(fleet, "symbols_failed")
    assert event["error"] == r"no symbols of this API, 2: 'B', '\n'"


def test_a_function_that_hangs_is_left_behind(fleet, shop, monkeypatch):
    """Planning goes on with the last list; not asked again for a minute."""
    monkeypatch.setattr(symbols, "CALL_S", 0.05)
    endpoint, released, asked = endpoint_of("shop.asked"), threading.Event(), []
    name("a")
    assert list(symbols_of(endpoint)) == ["a"]
    name(lambda: asked.append(1) or released.wait(60) or ["z"])
    try:
        for _ in range(3):
            assert list(symbols_of(endpoint)) == ["a"]
    finally:
        released.set()
    assert len(asked) == 1
    assert told(fleet, "symbols_failed") == [{"error": "the function did not return within 0.05 s"}]


def test_too_many_symbols(fleet, shop, monkeypatch):
    """An endless generator ends."""
    monkeypatch.setattr(symbols, "MOST", 1000)
    name(lambda: ("a" * n for n in range(1, 10**9)))
    with pytest.raises(NoSymbolsYet, match="more than 1,000 symbols"):
        symbols_of(endpoint_of("shop.asked"))


def test_a_table_that_is_not_there_is_no_crash(fleet, shop):
    """A table of somebody's own that was never made."""
    from sqlalchemy import Column, MetaData, String, Table

    endpoint = endpoint_of("shop.tabled")
    object.__setattr__(endpoint, "symbols", FromTable(Table("never", MetaData(), Column("x", String)), "x"))
    with pytest.raises(NoSymbolsYet, match="never"):
        symbols_of(endpoint)


def test_a_database_that_is_away_is_another_matter(fleet, shop, monkeypatch):
    """Planning is tried again; nothing is recorded."""

    def away(statement):
        raise DatabaseError("away")

    monkeypatch.setattr(symbols, "_selected", away)
    with pytest.raises(DatabaseError):
        symbols_of(endpoint_of("shop.tabled"))
    assert fleet.installation.rows(symbol_lists) == []


def test_two_planners_at_once_record_once(fleet, shop):
    """Who comes second finds a list as new as its own, and leaves it."""
    endpoint = endpoint_of("shop.asked")
    name("a")
    seen = symbols._listed("shop.asked")
    now(fleet, "shop.asked")
    name("b")
    symbols.refresh(endpoint, seen)
    assert [row["symbol"] for row in fleet.installation.rows(symbols_table)] == ["a"]
    assert len(told(fleet, "symbols_changed")) == 1


def test_named_symbols_come_in_place_of_the_source(fleet, shop):
    """By the command and by the settings; the source is not asked."""
    name(broken)
    run = fleet.run("shop.asked", ["x"])
    assert [row["symbol"] for row in fleet.units(run)] == ["x"]
    fleet.configure({"shop": {"base_url": "http://127.0.0.1:1", "asked": {"symbols": ["y"]}}})
    run = fleet.run("shop.asked", None)
    assert [row["symbol"] for row in fleet.units(run)] == ["y"]
    assert fleet.installation.rows(symbol_lists) == []


def test_very_many_symbols_become_units(fleet, shop, monkeypatch):
    """In pieces, in order, each once; planning again after a death gives the same units."""
    monkeypatch.setattr("tasks.runs.carry_on", lambda run: None)
    many = ["".join(chr(97 + (n // 26**k) % 26) for k in range(4)) for n in range(12_345)]
    name(*many)
    run = fleet.order("shop.asked", None)
    plan(run=run)
    assert [row["symbol"] for row in fleet.units(run)] == sorted(many)
    assert told(fleet, "symbols_changed")[0]["added"] == 12_345
    assert len(told(fleet, "symbols_changed")[0]["added_symbols"]) == 20


def test_a_backfill_finds_its_symbols_when_it_is_planned(fleet, shop, monkeypatch):
    """The order leaves them open."""
    from datetime import UTC, datetime

    from tasks import backfill

    endpoint = endpoint_of("binance.klines")
    object.__setattr__(endpoint, "symbols", lambda: ["BTCUSDT", "ETHUSDT"])
    day = datetime(2026, 1, 5, tzinfo=UTC)
    order = backfill.order(endpoint, day, day + timedelta(hours=1), None)
    assert order.symbols is None
    run = request(order)
    plan(run=run)
    assert [row["symbol"] for row in fleet.units(run)] == ["BTCUSDT", "ETHUSDT"]


def test_the_command_shows_them(fleet, shop):
    """Current and removed ones, and what is wrong; a list is what it is."""
    name("a", "b")
    now(fleet, "shop.asked")
    name("b", "c", "No")
    now(fleet, "shop.asked")

    def penstock(*words):
        result = CliRunner().invoke(cli.main, words)
        assert result.exit_code == 0, result.output
        return result.stdout

    shown = penstock("symbols", "shop.asked")
    assert "shop.asked: 2 symbols from function, found 20" in shown
    assert "no symbols of this API, 1: 'No'" in shown
    facts = json.loads(penstock("symbols", "shop.asked", "--json"))
    assert {row["symbol"] for row in facts["symbols"]} == {"b", "c"}
    assert [row["symbol"] for row in facts["removed"]] == ["a"]
    assert facts["removed"][0]["removed_at"].endswith("Z")
    assert len(json.loads(penstock("symbols", "shop.asked", "--limit", "1", "--json"))["symbols"]) == 1
    assert json.loads(penstock("symbols", "binance.klines", "--json"))["count"] == 2
    assert "shop.owners: 0 symbols from none" in penstock("symbols", "shop.owners")
    assert "shop.orders: 0 symbols from shop.owners" in penstock("symbols", "shop.orders")
    result = CliRunner().invoke(cli.main, ["symbols", "shop"])
    assert (result.exit_code, "is a collector; name one of its endpoints" in result.stderr) == (2, True)
