"""From a body to rows that the store can take as they are, beside those that it cannot, each with its reason.

A body that is not what was agreed on is a BadPayloadError as a whole.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

from sqlalchemy import JSON, BigInteger, Column, Integer, String, Table, TypeDecorator

from resilience.errors import BadPayloadError
from tasks.collectors.fields import clean, is_storable, plain
from tasks.collectors.paging import lookup
from tasks.collectors.rules import excerpt
from tasks.collectors.values import BadRow

Check = Callable[[Any], Any]
Where = str | Callable[[Any], Sequence[Any]] | None
"""Where the rows stand in a body: at a dotted path, where a function finds them, or all of it."""

FILLED_BY_STORE = "source"
BAD_KEPT = 100  # bad rows of a page, and of a unit, that are kept; all are counted
RAW_MAX = 16_384  # bytes of each
SAMPLE = 20  # rows of a page that are looked at for new fields

# What a row raises that is not as agreed. Anything else has nothing to do with the row.
_OF_A_ROW = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def decode(body: bytes) -> Any:
    """The JSON value, its fractions as exact Decimals. Raises ValueError or RecursionError otherwise."""
    return json.loads(body, parse_float=Decimal, parse_constant=_refuse)


def items(body: Any, where: Where) -> list[Any]:
    """The list that holds the rows: the body, what stands at its dotted path, what a function finds."""
    if callable(where):
        found, place = where(body), "of the function in `rows`"
    else:
        found = body if where is None else lookup(body, where)
        place = "there" if where is None else f"at {where}"
    if not isinstance(found, list):
        raise TypeError(f"a list of rows was expected {place}, not {_named(found)}")
    return found


def bad_payload(endpoint: str, why: str, body: bytes, status: int) -> BadPayloadError:
    """The error for a body that is not what was agreed on; it shows the first 200 characters."""
    return BadPayloadError(f"{endpoint}: {why}. The body begins: {excerpt(body)}", status=status)


def why(broken: Exception) -> str:
    """What is said of a row or body that is broken."""
    return clean(f"{type(broken).__name__}: {broken}"[:300])


def as_text(raw: Any) -> str:
    """A row as it came, as JSON; of what is no JSON the type, and of what is too long the beginning."""
    try:
        text = json.dumps(plain(raw), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = json.dumps(f"<{type(raw).__name__}>")
    data = text.encode()
    return text if len(data) <= RAW_MAX else data[:RAW_MAX].decode(errors="ignore")


@dataclass(slots=True)
class Sorted:
    """The rows of a page, each with what is stored of it, and those that could not be taken."""

    good: list[tuple[dict[str, Any], dict[str, Any]]]
    bad: list[BadRow]
    bad_rows: int


@dataclass(frozen=True, slots=True)
class Field:
    """What a table demands of one column's values."""

    name: str
    nullable: bool
    optional: bool
    check: Check


@dataclass(frozen=True, slots=True)
class Shape:
    """What the rows of an endpoint look like. Without a table only the key is demanded."""

    key: tuple[str, ...]
    fields: tuple[Field, ...]
    names: frozenset[str]
    free: bool

    def sort_out(
        self, found: Iterable[Any], read: Callable[[Any], tuple[dict[str, Any], dict[str, Any]]]
    ) -> Sorted:
        """Read every row by itself; of rows with the same key the last one counts.

        `read` gives the checked row and what is stored of it.
        """
        good: dict[tuple[Any, ...], tuple[dict[str, Any], dict[str, Any]]] = {}
        bad: list[BadRow] = []
        bad_rows, names = 0, None
        for raw in found:
            try:
                both = read(raw)
                row = both[0]
                names = names or row.keys()
                if row.keys() != names and not self.free:
                    raise ValueError(f"rows differ: some have {', '.join(row.keys() ^ names)}, others do not")
                good[tuple([row[name] for name in self.key])] = both
            except _OF_A_ROW as broken:
                bad_rows += 1
                if bad_rows <= BAD_KEPT:
                    bad.append(BadRow(why(broken), as_text(raw)))
        return Sorted(list(good.values()), bad, bad_rows)

    def checked(self, row: Any) -> dict[str, Any]:
        """The row, its values safe to store. Raises ValueError or TypeError naming the field."""
        if not isinstance(row, dict):
            raise TypeError(f"the parse function gave {_named(row)} instead of a row")
        checked = dict(row)
        for field in self.fields:
            value = row.get(field.name)
            if value is not None:
                try:
                    checked[field.name] = field.check(value)
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{field.name} {error}") from error
            elif not (field.nullable if field.name in row else field.optional):
                raise ValueError(f"{field.name} is missing")
        if not self.free and not checked.keys() <= self.names:
            raise ValueError(f"the table has no column {', '.join(checked.keys() - self.names)}")
        return checked


def shape_of(table: Table | None, key: tuple[str, ...]) -> Shape:
    """What the table (or, without one, the key) demands of every row."""
    if table is None:
        fields = [Field(name, nullable=False, optional=False, check=_key_value) for name in key]
    else:
        columns = [column for column in table.columns if column.name != FILLED_BY_STORE]
        fields = [_field(column, in_key=column.name in key) for column in columns]
    return Shape(key, tuple(fields), frozenset(each.name for each in fields), free=table is None)


def kind_of(column: Column[Any]) -> type:
    """The Python type of a column's values, `object` where its type does not say."""
    kind = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    try:
        return kind.python_type
    except NotImplementedError:
        return object


def _field(column: Column[Any], *, in_key: bool) -> Field:
    filled = column.default is not None or column.server_default is not None or column.autoincrement is True
    nullable = bool(column.nullable) and not in_key
    return Field(
        column.name, nullable=nullable, optional=filled or nullable, check=_check_of(column, in_key=in_key)
    )


def _check_of(column: Column[Any], *, in_key: bool) -> Check:
    if isinstance(column.type, JSON):
        return plain
    kind = kind_of(column)
    if kind is str:
        return _text_check(column.type.length if isinstance(column.type, String) else None, in_key=in_key)
    if kind is int:
        bits = 31 if isinstance(column.type, Integer) and not isinstance(column.type, BigInteger) else 63
        return _int_check(2**bits)
    return _CHECKS.get(kind, lambda value: value)


def _exactly(kind: type, value: Any) -> Any:
    # Not isinstance: True is an int and a datetime is a date, and both would be stored as something else.
    if type(value) is not kind:
        raise TypeError(f"is {_named(value)} instead of {kind.__name__}")
    return value


def _text_check(length: int | None, *, in_key: bool) -> Check:
    def check(value: Any) -> str:
        text = clean(_exactly(str, value))
        if in_key and text != value:
            raise ValueError("holds characters that cannot be stored")
        if length is not None and len(text) > length:
            raise ValueError(f"is longer than {length} characters")
        return text

    return check


def _int_check(limit: int) -> Check:
    def check(value: Any) -> int:
        if not -limit <= _exactly(int, value) < limit:
            raise ValueError("is too large to be stored")
        return int(value)

    return check


def _decimal(value: Any) -> Any:
    if not is_storable(_exactly(Decimal, value)):
        raise ValueError("is no number that can be stored")
    return value


def _aware(value: Any) -> Any:
    if _exactly(datetime, value).tzinfo is None:
        raise ValueError("has no time zone")
    return value


def _key_value(value: Any) -> Any:
    if type(value) in {int, str}:
        return value
    return _CHECKS[type(value)](value) if type(value) in {Decimal, datetime, date} else _exactly(str, value)


_CHECKS: Mapping[type, Check] = {
    Decimal: _decimal,
    datetime: _aware,
    date: lambda value: _exactly(date, value),
    bool: lambda value: _exactly(bool, value),
}


def _named(value: Any) -> str:
    return (
        "null"
        if value is None
        else {"dict": "an object", "list": "a list"}.get(type(value).__name__, type(value).__name__)
    )
