"""Rows that change their looks: told once, shown until they are accepted, and no cost where nothing changes."""

import json
import sys

import pytest
from click.testing import CliRunner

from tasks import drift
from tasks.models import events, fields
from tasks.store import DatabaseError, db_now
from workers import cli

from .conftest import connect

SHOP = """
from tasks.collectors import Api

shop = Api("shop", "http://127.0.0.1:1")

@shop.endpoint("/orders", key="id")
def orders(row, unit):
    return {"id": row["id"]}
"""


@pytest.fixture
def shop(fleet, scripted, tmp_path, monkeypatch):
    """A collector that takes no notice of most fields."""
    (tmp_path / "shop_of_drift.py").write_text(SHOP)
    monkeypatch.syspath_prepend(tmp_path)
    fleet.configure({"shop": {"base_url": scripted.url}}, PENSTOCK_COLLECTORS="shop_of_drift:shop")
    connect(fleet.inbox.app)
    yield scripted
    sys.modules.pop("shop_of_drift", None)


@pytest.fixture
def collect(fleet, shop):
    """Collect these rows; returns what the unit came to."""

    def collected(*rows):
        shop.answers = [(200, {}, json.dumps(rows).encode())]
        fleet.run("shop.orders", None)
        return fleet.inbox.deliver("collect.shop")

    return collected


@pytest.fixture
def collect_later(fleet, collect):
    """As `collect`, when what is usual has been learnt."""

    def collected(*rows):
        fleet.installation.change(fields, first_seen_at=db_now(-7200))
        return collect(*rows)

    return collected


ROW = {"id": 1, "note": "x", "owner": {"id": "a"}}
DETAIL = {"new_fields": 0, "new": {}, "retyped_fields": 0, "retyped": {}, "missing_fields": 0, "missing": []}


def told(fleet):
    found = fleet.installation.rows(events, events.c.kind == "schema_drift")
    assert all(row["subject"] == "shop.orders" for row in found)
    return [row["detail"] for row in found]


def shown():
    return {row["field"]: row["drift"] for row in drift.report(["shop.orders"])}


def penstock(*words):
    result = CliRunner().invoke(cli.main, words)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_first_hour_is_how_things_are(fleet, collect):
    """No drift whatever comes."""
    collect(ROW)
    collect({"id": "7", "extra": [1]})
    assert {row["name"]: (row["types"], row["always"]) for row in fleet.installation.rows(fields)} == {
        "id": ("number|string", True),
        "note": ("string", False),
        "owner": ("object", False),
        "owner.id": ("string", True),
        "extra": ("array", False),
    }
    assert (told(fleet), shown()) == ([], {})


def test_new_and_retyped_fields_are_told_once(fleet, collect, collect_later, caplog):
    """By one event for both; the next page with them is as known."""
    collect(ROW)
    collect_later(ROW | {"colour": None, "owner": {"id": 7}})
    detail = {"new_fields": 1, "new": {"colour": "null"}, "retyped_fields": 1, "retyped": {"owner.id": "string → number|string"}}  # fmt: skip
    assert told(fleet) == [DETAIL | detail]
    assert "shop.orders: its rows have changed: new colour, retyped owner.id, missing none" in caplog.text
    collect(ROW | {"colour": None, "owner": {"id": 7}})
    drift._known.cache_clear()  # another process
    collect(ROW | {"colour": None})
    assert len(told(fleet)) == 1
    assert shown() == {"colour": "new", "owner.id": "retyped"}


def test_a_field_that_is_gone_is_told_once(fleet, collect, collect_later):
    """After twenty rows without it; when it is back it may come and go."""
    collect(ROW)
    without = {"id": 1, "owner": {"id": "a"}}
    collect_later(*[without] * 19)
    assert shown() == {}
    collect_later(without)
    assert told(fleet) == [DETAIL | {"missing_fields": 1, "missing": ["note"]}]
    collect(*[without] * 20)
    drift._known.cache_clear()
    collect(*[without] * 20)
    assert (len(told(fleet)), shown()) == (1, {"note": "missing"})
    collect(ROW)
    assert shown() == {}
    collect(*[without] * 40)
    assert (len(told(fleet)), shown()) == (1, {})


def test_a_field_that_some_rows_lack_is_optional(fleet, collect, collect_later):
    """Not missing, however long none has it then."""
    collect(ROW)
    collect_later(ROW, {"id": 2, "owner": None})
    collect(*[{"id": 2, "owner": None}] * 40)
    assert (told(fleet), shown()) == ([DETAIL | {"retyped_fields": 1, "retyped": {"owner": "object → null|object"}}], {"owner": "retyped"})  # fmt: skip


def test_rows_of_which_nothing_can_be_made_are_looked_at_too(fleet, collect, collect_later):
    """That the key has another name is why the page is broken."""
    collect(ROW)
    assert collect_later(*[{"gid": 1, "note": "x", "owner": {"id": "a"}}] * 20)[0] == "RETRY"
    assert told(fleet) == [DETAIL | {"new_fields": 1, "new": {"gid": "number"}, "missing_fields": 1, "missing": ["id"]}]  # fmt: skip


def test_a_page_as_known_costs_no_sql(fleet, collect, monkeypatch):
    """The rows are compared in memory; SQL is asked again after an hour."""
    collect(ROW)
    monkeypatch.setattr(drift, "_look", lambda *args: pytest.fail("it looked"))
    collect(ROW, {"id": 2, "note": "y", "owner": {"id": "b"}})
    looked = []
    monkeypatch.setattr(drift, "_look", lambda *args: looked.append(1))
    monkeypatch.setattr(drift, "LOOKS_AGAIN_S", -1)
    collect(ROW)
    assert looked == [1]


def test_forms_that_are_usual_hide_nothing(fleet, collect, collect_later):
    """Rows that were looked at often, and then others."""
    for _ in range(3):
        collect(ROW)
    collect_later({"id": 1, "note": "x", "owner": {"id": 5}})
    collect(ROW)
    collect(*[{"id": 1, "owner": {"id": "a"}}] * 19)
    collect(ROW)
    collect(*[{"id": 1, "owner": {"id": "a"}}] * 19)
    assert shown() == {"owner.id": "retyped"}
    collect({"id": 1, "owner": {"id": "a"}})
    assert shown() == {"owner.id": "retyped", "note": "missing"}


def test_a_look_that_fails_harms_no_unit(fleet, collect, monkeypatch, caplog):
    """The rows are stored already; the next page is compared again."""

    def away(*args):
        raise DatabaseError("it went away")

    with monkeypatch.context() as patch:
        patch.setattr(drift, "_look", away)
        assert collect(ROW)[1]["outcome"] == "stored"
    assert "shop.orders: its fields could not be compared" in caplog.text
    collect(ROW)
    assert len(fleet.installation.rows(fields)) == 4


def test_two_processes_that_see_it_at_once_tell_it_once(fleet, collect, collect_later):
    """Who comes second finds it in SQL."""
    collect(ROW)
    fleet.installation.change(fields, first_seen_at=db_now(-7200))
    knows = {name: getattr(drift._known("shop.orders"), name) for name in ("types", "always")}
    for _ in range(2):
        known = drift.Known(**knows)
        sample = drift.sample_of([ROW | {"colour": "red"}])
        assert known.differs(sample)
        drift._look("shop.orders", known, sample)
        assert not known.differs(sample)
    assert len(told(fleet)) == 1


def test_objects_with_no_end_of_fields(fleet, collect, collect_later, monkeypatch):
    """So many are kept, and then a page costs no SQL any more."""
    monkeypatch.setattr(drift, "MOST", 10)
    collect({"id": 1, **{str(n): n for n in range(50)}})
    assert len(fleet.installation.rows(fields)) == 10
    monkeypatch.setattr(drift, "_look", lambda *args: pytest.fail("it looked"))
    collect({"id": 1, **{str(n): n for n in range(60)}})


def test_the_command_shows_and_accepts(fleet, collect, collect_later):
    """What is accepted is the new normal; a field that is gone is forgotten."""
    assert penstock("drift") == "Rows look as they always did.\n"
    collect(ROW)
    collect_later(*[{"id": "1", "owner": {"id": "a"}, "colour": "red"}] * 20)
    assert shown() == {"colour": "new", "id": "retyped", "note": "missing"}
    text = penstock("drift", "shop")
    assert [line.split()[:3] for line in text.splitlines()[1:]] == [
        ["shop.orders", "colour", "new"],
        ["shop.orders", "id", "retyped"],
        ["shop.orders", "note", "missing"],
    ]
    rows = json.loads(penstock("drift", "shop.orders", "--json"))
    assert [(row["field"], row["types"], row["normal_types"]) for row in rows] == [
        ("colour", "string", None),
        ("id", "number|string", "number"),
        ("note", "string", "string"),
    ]
    assert rows[2]["missing_at"].endswith("Z")
    assert (
        penstock("drift", "--accept", "shop.orders") == "shop.orders: 3 fields that differed are normal now\n"
    )
    assert penstock("drift") == "Rows look as they always did.\n"
    collect(*[{"id": "1", "owner": {"id": "a"}, "colour": "red"}] * 20)
    assert (len(told(fleet)), shown()) == (1, {})
    drift._known.cache_clear()
    collect(ROW)
    assert shown() == {"note": "new"}
    result = CliRunner().invoke(cli.main, ["drift", "--accept", "shop"])
    assert (result.exit_code, "name one of its endpoints" in result.stderr) == (2, True)
