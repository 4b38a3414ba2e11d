"""Writing many rows at once: few statements, values converted column by column.

SQLite gets statements of up to 32 rows each: at every execution the driver lets other threads run, several
times, and to come back costs more than the row. PostgreSQL gets one array for each column, which the server
unnests: as fast as COPY into a temporary table and an upsert from there, without the table and in one round
trip, which makes it good for a page of few rows too. SQLAlchemy builds the statements; only its work for each
single row is left out. Tables with types or defaults that this module does not know go through it entirely.
"""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Date,
    DateTime,
    Dialect,
    Double,
    Enum,
    Float,
    Integer,
    Numeric,
    String,
    Table,
    Text,
    TypeDecorator,
    bindparam,
    cast,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.types import TypeEngine

from tasks.prepared import Convert, bind_processor, execute_each

Values = list[Any]

_AT_ONCE = (32, 8, 1)  # rows of a statement; of few sizes, for each is prepared once for a connection
_MARKS_MAX = 999  # what the oldest SQLite allows in a statement


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, or update those whose primary key is there; of rows with one key the last one counts.

    The first row says which columns are written.
    """
    if not rows:
        return
    names = [column.key for column in table.c if column.key in rows[0]]
    key = [column.key for column in table.primary_key.columns]
    last = {tuple([row[name] for name in key]): row for row in rows}.values()
    _write(connection, table, {name: [row[name] for row in last] for name in names}, changing=True)


def insert(connection: Connection, table: Table, columns: Mapping[str, Sequence[Any]]) -> None:
    """Insert new rows, given as equally long columns. Raises IntegrityError for one that is there."""
    # As lists, which keep their objects: a range makes its numbers as they are asked for, often in one place.
    in_order = {column.key: list(columns[column.key]) for column in table.c if column.key in columns}
    _write(connection, table, in_order, changing=False)


def _write(connection: Connection, table: Table, columns: Mapping[str, Values], *, changing: bool) -> None:
    """Every branch writes the same; see the top of the module for why there are three."""
    names, dialect = tuple(columns), connection.dialect
    if not _is_plain(dialect, table, names):
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        connection.execute(_values_statement(dialect, table, names, changing=changing), rows)
    elif dialect.name == "sqlite":
        forms, converts = _marks_forms(dialect, table, names, changing=changing)
        bound = list(zip(*map(_converted, columns.values(), converts), strict=True))
        for size, sql in forms:
            whole = len(bound) - len(bound) % size
            parts = [tuple(chain.from_iterable(bound[n : n + size])) for n in range(0, whole, size)]
            bound = bound[whole:]
            if parts:
                execute_each(connection, sql, parts)
    else:
        same = frozenset(name for name, values in columns.items() if _is_same(values))
        statement, elements = _arrays_form(dialect, table, names, same, changing=changing)
        given = {
            name: values[0] if name in same else _array(values, element)
            for (name, values), element in zip(columns.items(), elements, strict=True)
        }
        connection.execute(statement, given)


@lru_cache(maxsize=256)
def _is_plain(dialect: Dialect, table: Table, names: tuple[str, ...]) -> bool:
    """Whether our own way knows all types, and no other column has a default that is made in Python."""
    if any(column.default is not None and column.key not in names for column in table.c):
        return False
    return dialect.name == "sqlite" or all(_kind(table.c[name]) for name in names)


def _is_same(values: Values) -> bool:
    """Whether it is one object in all rows. Equal is not enough: Decimals keep their zeros."""
    return len(set(map(id, values))) == 1


def _converted(values: Values, convert: Convert | None) -> Values:
    """What the driver takes; one object in all rows is converted once."""
    if convert is None:
        return values
    return [convert(values[0])] * len(values) if _is_same(values) else list(map(convert, values))


@lru_cache(maxsize=256)
def _marks_forms(
    dialect: Dialect, table: Table, names: tuple[str, ...], *, changing: bool
) -> tuple[list[tuple[int, str]], list[Convert | None]]:
    """SQL for so many rows at once, most first, with a mark for each value, columns in their order.

    Also, for each column, what turns its values into the driver's.
    """
    compiled = _values_statement(dialect, table, names, changing=changing).compile(dialect=dialect)
    assert compiled.positiontup == list(names), "columns have to come in the table's order"
    marks = f"({', '.join('?' * len(names))})"
    before, found, after = str(compiled).partition(f"VALUES {marks}")
    assert found, "a mark for each column"
    forms = [
        (size, f"{before}VALUES {', '.join([marks] * size)}{after}")
        for size in _AT_ONCE
        if size == 1 or size * len(names) <= _MARKS_MAX
    ]
    return forms, [bind_processor(table.c[name].type, dialect) for name in names]


@lru_cache(maxsize=256)
def _values_statement(dialect: Dialect, table: Table, names: tuple[str, ...], *, changing: bool) -> Any:
    statement = (sqlite if dialect.name == "sqlite" else postgresql).insert(table)
    statement = statement.values({table.c[name]: bindparam(name, type_=table.c[name].type) for name in names})
    return _with_update(statement, table, names) if changing else statement


@lru_cache(maxsize=256)
def _arrays_form(
    dialect: Dialect, table: Table, names: tuple[str, ...], same: frozenset[str], *, changing: bool
) -> tuple[Any, list[Convert]]:
    """INSERT … SELECT from an array for each column, and what writes its elements; one value for `same`."""
    values = {name: bindparam(name, type_=table.c[name].type) for name in names}
    arrays = {name: cast(bindparam(name, type_=Text), ARRAY(_kind(table.c[name]))) for name in names}
    selected = select(*(values[name] if name in same else func.unnest(arrays[name]) for name in names))
    statement = postgresql.insert(table).from_select(names, selected, include_defaults=False)
    elements = [_element(table.c[name], dialect) for name in names]
    return _with_update(statement, table, names) if changing else statement, elements


def _with_update(statement: Any, table: Table, names: tuple[str, ...]) -> Any:
    key = table.primary_key.columns.keys()
    changed = {name: statement.excluded[name] for name in names if name not in key}
    if not changed:
        return statement.on_conflict_do_nothing(index_elements=key)
    return statement.on_conflict_do_update(index_elements=key, set_=changed)


def _kind(column: Column[Any]) -> Any:
    """The type of the array for a column, wide enough to leave the checks to the column; None for others."""
    found = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    if isinstance(found, Enum) or (isinstance(found, JSON) and column.nullable):
        return None  # of these SQLAlchemy knows more than we
    return next((kind for base, kind in _KINDS.items() if isinstance(found, base)), None)


_KINDS: Mapping[type[TypeEngine[Any]], TypeEngine[Any]] = {
    String: Text(),
    Integer: BigInteger(),
    Boolean: Boolean(),
    Float: Double(),
    Numeric: Numeric(),
    DateTime: DateTime(timezone=True),
    Date: Date(),
    JSON: postgresql.JSONB(),
}


def _element(column: Column[Any], dialect: Dialect) -> Convert:
    """What writes a value of a column as the element of an array literal."""
    kind = _kind(column)
    if isinstance(kind, JSON):
        return lambda value: _quoted(json.dumps(value))
    bind = bind_processor(column.type, dialect)
    write = str if isinstance(kind, BigInteger | Boolean | Double | Numeric) else _quoted
    return write if bind is None else lambda value: write(bind(value))


def _quoted(value: Any) -> str:
    text = str(value)
    if "\\" in text or '"' in text:
        text = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _array(values: Values, element: Convert) -> str:
    return "{" + ",".join(["NULL" if value is None else element(value) for value in values]) + "}"
