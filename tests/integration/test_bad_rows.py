"""Rows that cannot be stored: kept once with their reason, in one transaction with those that can."""

import json
import sys

import pytest
from click.testing import CliRunner

from tasks import bad_rows as module
from tasks import reads
from tasks.collectors.rows import BAD_KEPT
from tasks.models import bad_rows, records
from tasks.store import ClaimLost, DatabaseError
from tasks.units import Delivery
from workers import cli

from .conftest import connect

SHOP = """
from tasks.collectors import Api, Number

shop = Api("shop", "http://127.0.0.1:1")

@shop.endpoint("/orders", key="id", page=Number(param="page", size=4))
def orders(row, unit):
    if row.get("colour") == "odd":
        raise KeyError("thirteen")
    return row
"""


@pytest.fixture
def shop(fleet, scripted, tmp_path, monkeypatch):
    """A collector that finds some rows odd."""
    (tmp_path / "shop_of_bad_rows.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    fleet.configure({"shop": {"base_url": scripted.url}}, PENSTOCK_COLLECTORS="shop_of_bad_rows:shop")
    connect(fleet.inbox.app)
    yield scripted
    sys.modules.pop("shop_of_bad_rows", None)


def pages(*rows):
    return [(200, {}, json.dumps(page).encode()) for page in rows]


def odd(n):
    return {"id": n, "colour": "odd"}


def kept(fleet):
    return sorted((json.loads(row["raw"])["id"], row["reason"]) for row in fleet.installation.rows(bad_rows))


REASON = "KeyError: 'thirteen'"
TWO_PAGES = ([{"id": 1}, odd(2), {"id": 3}, odd(4)], [{"id": 5}, odd(6)])


def test_bad_rows_are_kept_beside_the_good_ones(fleet, shop, inbox, caplog):
    """Counted by the unit, the result and the log; the run is well."""
    shop.answers = pages(*TWO_PAGES)
    run = fleet.run("shop.orders", None)
    assert inbox.drain("collect.shop") == [("SUCCESS", {"unit": 0, "outcome": "stored", "records": 3})]
    inbox.drain("ctl")
    assert kept(fleet) == [(2, REASON), (4, REASON), (6, REASON)]
    assert [row["key"] for row in fleet.installation.rows(records)] == ["1", "3", "5"]
    assert (fleet.unit(run)["bad_rows"], fleet.unit(run)["records"]) == (3, 3)
    result = fleet.result(run)
    assert (result["bad_rows"], result["outcome"], result["errors"]) == (3, "ok", [])
    assert reads.detail(run).to_dict()["bad_rows"] == 3
    assert "shop.orders : rows that could not be stored: 2, the first: KeyError: 'thirteen'" in caplog.text
    row = fleet.installation.rows(bad_rows)[0]
    assert (row["endpoint"], row["symbol"], row["run"], row["n"]) == ("shop.orders", "", run, 0)


def test_a_bad_row_that_comes_again_is_one(fleet, shop, inbox):
    """In every run; the newest is named."""
    for _ in range(2):
        shop.answers = pages([{"id": 1}, odd(2)])
        run = fleet.run("shop.orders", None)
        inbox.drain("collect.shop")
    assert kept(fleet) == [(2, REASON)]
    assert fleet.installation.rows(bad_rows)[0]["run"] == run
    assert fleet.unit(run)["bad_rows"] == 1


def test_what_is_not_stored_keeps_no_bad_row_either(fleet, shop, inbox, monkeypatch):
    """One transaction with rows and checkpoint: a page that is read twice counts once."""
    shop.answers = pages(TWO_PAGES[0], TWO_PAGES[0], TWO_PAGES[1])
    run = fleet.run("shop.orders", None)
    keep = module.keep

    def fail_once(*args, **options):
        keep(*args, **options)
        monkeypatch.setattr(module, "keep", keep)
        raise DatabaseError("it went away")

    monkeypatch.setattr(module, "keep", fail_once)
    assert inbox.deliver("collect.shop")[0] == "RETRY"
    assert (kept(fleet), fleet.installation.rows(records)) == ([], [])
    assert inbox.deliver("collect.shop")[0] == "SUCCESS"
    assert (fleet.unit(run)["bad_rows"], len(kept(fleet))) == (3, 3)


def test_a_worker_that_lost_its_unit_keeps_none(fleet, shop, inbox, monkeypatch):
    """Behind the fence as all that a unit writes."""
    shop.answers = pages([{"id": 1}, odd(2)])
    run = fleet.run("shop.orders", None)
    store = Delivery.store

    def too_late(delivery, page):
        delivery.claim.token -= 1
        with pytest.raises(ClaimLost):
            store(delivery, page)
        delivery.claim.token += 1
        assert kept(fleet) == []
        store(delivery, page)

    monkeypatch.setattr(Delivery, "store", too_late)
    inbox.drain("collect.shop")
    assert fleet.unit(run)["outcome"] == "stored"


def test_a_unit_keeps_so_many(fleet, shop, inbox):
    """A hundred of all its pages together; the rest is only counted."""
    good = [{"id": n} for n in range(70)]
    page = [*good, *(odd(n) for n in range(100, 170))]
    shop.answers = pages(page, [*good, *(odd(n) for n in range(200, 270))], [])
    run = fleet.run("shop.orders", None)
    inbox.drain("collect.shop")
    assert (fleet.unit(run)["bad_rows"], len(kept(fleet))) == (140, BAD_KEPT)


def penstock(*words):
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_lists_them(fleet, shop, inbox):
    """As a table and as JSON; a run shows how many there were."""
    assert penstock("bad-rows") == "Every row that came could be stored.\n"
    shop.answers = pages(*TWO_PAGES)
    run = fleet.run("shop.orders", None)
    inbox.drain("collect.shop")
    shown = penstock("bad-rows", "shop.orders")
    assert shown.count(REASON) == 3
    assert '"colour": "odd"' in shown
    rows = json.loads(penstock("bad-rows", "shop", "--limit", "2", "--json"))
    assert [(row["endpoint"], row["reason"], row["run"]) for row in rows] == [
        ("shop.orders", REASON, run)
    ] * 2
    assert rows[0]["seen_at"].endswith("Z")
    assert "3 +3 bad" in penstock("runs")
    assert "3 +3 bad" in penstock("show", str(run))
    result = CliRunner().invoke(cli.main, ["bad-rows", "shop.order"])
    assert (result.exit_code, "did you mean orders?" in result.stderr) == (2, True)
