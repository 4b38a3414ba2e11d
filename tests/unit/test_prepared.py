"""Statements that go to the driver: the same rows, values and errors as through SQLAlchemy."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Integer,
    MetaData,
    String,
    Table,
    bindparam,
    create_engine,
    exc,
    insert,
    select,
    update,
)

from tasks.models import ExactDecimal, UtcDateTime
from tasks.prepared import Prepared

things = Table(
    "things",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("name", String, nullable=False),
    Column("at", UtcDateTime),
    Column("price", ExactDecimal),
    Column("yes", Boolean),
    Column("data", JSON),
)
AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
EVERYTHING = {"id": 7, "name": "x", "at": AT, "price": Decimal("1.10"), "yes": True, "data": {"a": [1]}}
ADD = Prepared(
    lambda _: insert(things).values(
        {each: bindparam(f"its_{each.name}", type_=each.type) for each in things.c}
    )
)
RENAME = Prepared(
    lambda _: (
        update(things)
        .where(things.c.id == bindparam("its_id"), things.c.yes == True)  # noqa: E712
        .values(name=things.c.name + bindparam("more") + "!")
        .returning(things, (things.c.id + 1).label("next"))
    )
)


@pytest.fixture
def connection():
    engine = create_engine("sqlite://")
    things.metadata.create_all(engine)
    with engine.begin() as connection:
        yield connection
    engine.dispose()


def add(connection, **changes):
    values = EVERYTHING | changes
    return ADD.run(connection, {f"its_{name}": value for name, value in values.items()})


def test_values_are_converted_both_ways(connection):
    assert add(connection, at=AT.astimezone(timezone(timedelta(hours=2)))) == 1
    assert dict(connection.execute(select(things)).mappings().one()) == EVERYTHING
    row = RENAME.row(connection, {"its_id": 7, "more": "y"})
    assert row == EVERYTHING | {"name": "xy!", "next": 8}
    assert row["at"].tzinfo is UTC


def test_nothing_is_kept_between_executions(connection):
    add(connection)
    add(connection, id=8, price=None, at=None, data=None)
    assert RENAME.row(connection, {"its_id": 8, "more": "z"})["price"] is None
    assert RENAME.row(connection, {"its_id": 7, "more": "y"})["price"] == Decimal("1.10")


def test_no_row_and_no_change(connection):
    assert RENAME.row(connection, {"its_id": 1, "more": "y"}) is None
    assert RENAME.run(connection, {"its_id": 1, "more": "y"}) == 0


def test_errors_are_those_of_sqlalchemy(connection):
    add(connection)
    with pytest.raises(exc.IntegrityError) as told:
        add(connection, name="a secret")
    assert "a secret" not in str(told.value)
    with pytest.raises(KeyError, match="more"):
        RENAME.run(connection, {"its_id": 7})
    with pytest.raises(ValueError, match="no time zone"):
        add(connection, id=9, at=AT.replace(tzinfo=None))


def test_a_parameter_that_becomes_several_is_refused(connection):
    several = Prepared(lambda _: select(things.c.id).where(things.c.id.in_([1, 2])))
    with pytest.raises(AssertionError, match="several"):
        several.row(connection, {})
