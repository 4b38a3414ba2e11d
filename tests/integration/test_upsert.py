"""Many rows at once: whatever they hold comes back as it was, on SQLite and on PostgreSQL."""

import uuid
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    Enum,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    Uuid,
    delete,
    event,
    select,
)
from sqlalchemy.exc import DBAPIError

from resilience.errors import IntegrityError
from tasks import store
from tasks.models import ExactDecimal, Json, UtcDateTime
from tasks.store import reading, writing
from tasks.upsert import insert, upsert

ANY_CASE = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

own = MetaData()
things = Table(
    "things",
    own,
    Column("id", Integer, primary_key=True),
    Column("text", Text),
    Column("whole", BigInteger),
    Column("half", Float),
    Column("flag", Boolean),
    Column("exact", ExactDecimal),
    Column("at", UtcDateTime),
    Column("day", Date),
    Column("data", Json, nullable=False),
    Column("short", String(3)),
)
odd = Table(
    "odd",
    own,
    Column("id", Uuid, primary_key=True),
    Column("blob", LargeBinary),
    Column("kind", Enum("a", "b", name="odd_kind")),
    Column("maybe", JSON),
    Column("list", ARRAY(Integer).with_variant(JSON(), "sqlite")),
    Column("stamp", String(20), default=lambda: "by python"),
)

# Both databases refuse NUL and halves of surrogate pairs; a declared endpoint's rows never hold them.
texts = st.text(
    st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=8
) | st.sampled_from(
    [
        "NULL",
        "null",
        "",
        '"',
        "\\",
        '\\"',
        "{a,b}",
        "{",
        "},{",
        " , ",
        "a\nb\r\t",
        "'; --",
        "%s",
        "%(a)s",
        ":a",
        "?",
    ]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
rows_of_things = st.fixed_dictionaries(
    {
        "id": st.integers(0, 5),
        "text": st.none() | texts,
        "whole": st.none() | st.integers(-(2**63), 2**63 - 1),
        "half": st.none() | st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False),
        "flag": st.none() | st.booleans(),
        "exact": st.none() | st.decimals(-(10**30), 10**30, places=20),
        "at": st.none()
        | st.datetimes(
            datetime(1900, 1, 2),
            datetime(2999, 12, 30),
            timezones=st.integers(-840, 840).map(lambda m: timezone(timedelta(minutes=m))),
        ),
        "day": st.none() | st.dates(date(1900, 1, 1), date(2999, 1, 1)),
        "data": st.dictionaries(texts, json_values, max_size=3),
        "short": st.none() | st.just("abc"),
    }
)


@pytest.fixture
def tables(installation):
    """Two tables that a user could have: types that we know, and types and defaults that we do not."""
    own.create_all(store.engine())
    yield installation
    own.drop_all(store.engine())


@ANY_CASE
@given(pages=st.lists(st.lists(rows_of_things, min_size=1, max_size=6), min_size=1, max_size=3))
@pytest.mark.usefixtures("tables")
def test_rows_come_back_as_they_were(pages):
    """Whatever the values, of one object in all rows or not, new or changed: the last row of a key is there."""
    with writing() as connection:
        connection.execute(delete(things))
        for page in pages:
            upsert(connection, things, page)
        found = connection.execute(select(things).order_by(things.c.id)).mappings().all()
    expected = {row["id"]: row for page in pages for row in page}
    assert [dict(row) for row in found] == [expected[key] for key in sorted(expected)]


def test_equal_decimals_keep_their_own_digits(tables):
    """Equal is not the same: 1.10 does not become 1.1 because another row says so."""
    rows = [thing(0, exact=Decimal("1.10")), thing(1, exact=Decimal("1.1"))]
    with writing() as connection:
        upsert(connection, things, rows)
    assert [str(row["exact"]) for row in tables.rows(things)] == ["1.10", "1.1"]


def test_columns_that_are_not_given_stay(tables):
    """Rows name some of the columns, in an order of their own."""
    with writing() as connection:
        upsert(connection, things, [thing(0, text="first", whole=1), thing(1, text="second", whole=2)])
        upsert(connection, things, [{"data": {"b": n}, "text": None, "id": n} for n in range(2)])
    found = tables.rows(things)
    assert [(row["text"], row["whole"], row["data"]) for row in found] == [
        (None, 1, {"b": 0}),
        (None, 2, {"b": 1}),
    ]


def test_types_and_defaults_of_all_kinds(tables):
    """What this module does not know goes through SQLAlchemy: bytes, arrays, enums, Python's defaults."""
    rows = [
        {"id": uuid.uuid4(), "blob": b'\0"\\', "kind": kind, "maybe": maybe, "list": [1, 2]}
        for kind, maybe in (("a", None), ("b", {"x": 1}))
    ]
    with writing() as connection:
        upsert(connection, odd, rows)
        upsert(connection, odd, rows)
    by_id = {row["id"]: row for row in tables.rows(odd)}
    assert [by_id[row["id"]] for row in rows] == [{**row, "stamp": "by python"} for row in rows]


@pytest.mark.parametrize("size", [1, 3])
def test_a_new_row_that_is_there(tables, size):
    """Inserting is not upserting: the conflict is an error, and nothing is kept."""
    columns = {"data": [{}] * size, "id": range(size)}
    with writing() as connection:
        insert(connection, things, columns)
    with pytest.raises(IntegrityError), writing() as connection:
        insert(connection, things, columns | {"id": range(size - 1, 2 * size - 1)})
    assert len(tables.rows(things)) == size


def test_a_text_that_is_too_long(tables):
    """It is refused and not cut off."""
    with pytest.raises(DBAPIError, match="too long"), writing() as connection:
        upsert(connection, things, [thing(0, short="abc"), thing(1, short="abcd")])
    assert tables.rows(things) == []


test_a_text_that_is_too_long.databases = ("postgres",)  # SQLite knows no lengths


@pytest.mark.parametrize("numbers", [range(5000, 5002), range(5000, 8000)], ids=["two", "many"])
def test_numbers_made_as_they_are_asked_for(tables, numbers):
    """A range's numbers may stand at one address, one after the other, and are still not one number."""
    with writing() as connection:
        insert(connection, things, {"id": numbers, "whole": numbers, "data": [{}] * len(numbers)})
    found = tables.rows(things)
    assert [(row["id"], row["whole"]) for row in found] == [(n, n) for n in numbers]


@pytest.mark.usefixtures("tables")
def test_few_statements_for_all_rows():
    """However they differ: one for a page in PostgreSQL, one for 32, 8 or 1 of its rows in SQLite."""
    is_sqlite = store.engine().dialect.name == "sqlite"
    said = []
    event.listen(store.engine(), "before_cursor_execute", lambda *given: said.append(given[2]))
    for size, executed in ((1, 1), (10, 3), (3000, 96)):
        said.clear()
        with writing() as connection:
            if is_sqlite:
                connection.connection.driver_connection.set_trace_callback(said.append)
            upsert(connection, things, [thing(n, text=f"{size} {n}") for n in range(size)])
            if is_sqlite:
                connection.connection.driver_connection.set_trace_callback(None)
        assert len(said) == (executed if is_sqlite else 1)
    with reading() as connection:
        assert len(connection.execute(select(things.c.id)).all()) == 3000


@pytest.mark.parametrize("size", [7, 8, 9, 31, 32, 33, 41, 73])
def test_any_number_of_rows(tables, size):
    """Each is written once, whichever statement it goes with; a second time it is changed."""
    for text_ in ("first", "second"):
        with writing() as connection:
            upsert(connection, things, [thing(n, text=f"{text_} {n}") for n in range(size)])
        found = {row["id"]: row["text"] for row in tables.rows(things)}
        assert found == {n: f"{text_} {n}" for n in range(size)}


def thing(number, **changes):
    return {"id": number, "text": "t", "data": {"at": str(datetime(2026, 1, 5, tzinfo=UTC))}} | changes
