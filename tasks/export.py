"""The rows of an endpoint as a file: CSV, JSON Lines or Parquet, streamed from one statement.

Nothing is rounded: decimals are written with all their digits, as text where a format has no exact number.
Times are ISO 8601 in UTC. A file stands under its name once it is complete.
"""

import base64
import importlib
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from sqlalchemy import JSON, Column, DateTime, Numeric, Select, Table, inspect, select

from resilience.errors import ConfigurationError, PenstockError
from tasks.collectors.fields import iso, to_iso
from tasks.collectors.rows import FILLED_BY_STORE, kind_of
from tasks.collectors.spec import Endpoint
from tasks.models import ExactDecimal, UtcDateTime, records
from tasks.store import reading

FORMATS = ("csv", "jsonl", "parquet")
SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
BATCH = 5_000  # rows in memory at a time
GROUP = 50_000  # rows of a row group in Parquet

Row = Sequence[Any]
Keep = Callable[[Row], bool]


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of which table, and what SQL cannot say about them."""

    table: Table
    statement: Select[Any]
    keep: Keep | None


def select_rows(
    endpoint: Endpoint,
    *,
    symbols: Sequence[str] | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Selection:
    """The rows of an endpoint: those of its collector in its table, in the order of the key.

    Raises ConfigurationError where the table does not say to which symbol or time its rows belong.
    """
    table = endpoint.table
    statement = select(table).order_by(*table.primary_key.columns)
    if FILLED_BY_STORE in table.columns:
        statement = statement.where(table.columns[FILLED_BY_STORE] == endpoint.api.name)
    if endpoint.generic:
        statement = statement.where(records.c.endpoint == endpoint.name)
    if symbols:
        if "symbol" not in table.columns:
            raise ConfigurationError(
                f"{endpoint.full_name}: table {table.name} has no column 'symbol' to choose by; "
                "export it without --symbols"
            )
        statement = statement.where(table.columns["symbol"].in_(symbols))
    if since is None and until is None:
        return Selection(table, statement, None)
    if endpoint.cursor is None or not endpoint.timed:
        raise ConfigurationError(
            f"{endpoint.full_name} has no cursor that holds times; export it without --since and --until"
        )
    if endpoint.generic:
        return Selection(table, statement, _between(endpoint.cursor.field, since, until))
    at = table.columns[endpoint.cursor.field]
    if since is not None:
        statement = statement.where(at >= since)
    if until is not None:
        statement = statement.where(at < until)
    return Selection(table, statement, None)


def _between(field: str, since: datetime | None, until: datetime | None) -> Keep:
    """Of JSON rows the time is a text that sorts otherwise: with and without fractions."""
    place = list(records.columns.keys()).index("data")

    def keep(row: Row) -> bool:
        try:
            at = iso(row[place][field])
        except (KeyError, TypeError, ValueError):
            return False
        return (since is None or at >= since) and (until is None or at < until)

    return keep


def export(selection: Selection, form: str, out: BinaryIO, told: Callable[[int], None]) -> int:
    """Write the rows and return how many there were; `told` hears the number so far, batch by batch.

    Raises ConfigurationError where the table or the library for the format is missing, and DatabaseError.
    """
    count = 0
    writer = WRITERS[form](out, selection.table)
    for batch in _batches(selection):
        writer.write(batch)
        count += len(batch)
        told(count)
    writer.close()
    return count


def _batches(selection: Selection) -> Iterator[Sequence[Row]]:
    with reading() as connection:
        if not inspect(connection).has_table(selection.table.name, selection.table.schema):
            raise ConfigurationError(f"there is no table {selection.table.name} in the database yet")
        options = {"stream_results": True, "yield_per": BATCH}
        result = connection.execution_options(**options).execute(selection.statement)
        for rows in result.partitions():
            yield rows if selection.keep is None else list(filter(selection.keep, rows))


class Writer(Protocol):
    """What writes rows in some format."""

    def write(self, rows: Sequence[Row]) -> None:
        """Some rows more."""

    def close(self) -> None:
        """There are no more."""


class CsvWriter:
    """CSV in UTF-8 with a heading. A field that is null is empty, an empty text is `""`."""

    def __init__(self, out: BinaryIO, table: Table) -> None:
        self._out = out
        self._put([table.columns.keys()])

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        self._put(rows)

    def close(self) -> None:
        """See `Writer`."""

    def _put(self, rows: Sequence[Row]) -> None:
        lines = [",".join([_field(value) for value in row]) for row in rows]
        self._out.write("".join([f"{line}\n" for line in lines]).encode())


_SPECIAL = re.compile(r'[",\r\n]|^$')


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = _plain(value)
    if not isinstance(text, str):
        text = json.dumps(text, ensure_ascii=False)
    return '"' + text.replace('"', '""') + '"' if _SPECIAL.search(text) else text


class JsonLinesWriter:
    """A JSON object for each row. Decimals are texts: a reader would round a number."""

    def __init__(self, out: BinaryIO, table: Table) -> None:
        self._out = out
        self._names = table.columns.keys()

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        named = (zip(self._names, map(_plain, row), strict=True) for row in rows)
        self._out.write("".join([f"{json.dumps(dict(row), ensure_ascii=False)}\n" for row in named]).encode())

    def close(self) -> None:
        """See `Writer`."""


def _plain(value: Any) -> Any:
    """A value as JSON has it, without any loss; of what is not known here its text."""
    kind = type(value)
    return value if kind in _JSON else _TEXTS.get(kind, str)(value)


def _time(at: datetime) -> str:
    return at.isoformat() if at.tzinfo is None else to_iso(at)


_JSON = frozenset({type(None), bool, int, str, dict, list})
_TEXTS: Mapping[type, Callable[[Any], Any]] = {
    float: lambda value: value if math.isfinite(value) else str(value),
    Decimal: lambda value: format(value, "f"),
    datetime: _time,
    date: date.isoformat,
    bytes: lambda value: base64.b64encode(value).decode(),
}


class ParquetWriter:
    """Parquet, compressed with zstd. See `_arrow_type` for what becomes of which column."""

    def __init__(self, out: BinaryIO, table: Table) -> None:
        try:
            pyarrow = importlib.import_module("pyarrow")
            parquet = importlib.import_module("pyarrow.parquet")
        except ImportError as error:
            raise ConfigurationError(
                "Parquet needs pyarrow, which is not installed: pip install 'penstock[parquet]'"
            ) from error
        self._arrow = pyarrow
        fields = [(column.name, *_arrow_type(pyarrow, column)) for column in table.columns]
        self._schema = pyarrow.schema([(name, kind) for name, kind, _ in fields])
        self._converts = [convert for _, _, convert in fields]
        self._writer = parquet.ParquetWriter(out, self._schema, compression="zstd")
        self._waiting: list[Any] = []

    def write(self, rows: Sequence[Row]) -> None:
        """See `Writer`."""
        if not rows:
            return
        arrays = []
        for field, convert, values in zip(self._schema, self._converts, zip(*rows, strict=True), strict=True):
            given = values if convert is None else [v if v is None else convert(v) for v in values]
            try:
                arrays.append(self._arrow.array(given, field.type))
            except (self._arrow.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"column {field.name} holds what is no {field.type} of Parquet: {error}"
                ) from error
        self._waiting.append(self._arrow.RecordBatch.from_arrays(arrays, schema=self._schema))
        if sum(map(len, self._waiting)) >= GROUP:
            self._flush()

    def close(self) -> None:
        """See `Writer`."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(self._arrow.Table.from_batches(self._waiting))
            self._waiting = []


def _arrow_type(arrow: Any, column: Column[Any]) -> tuple[Any, Callable[[Any], Any] | None]:
    """The type of a column in Parquet, and what its values go through.

    Decimals are decimals where the column says how many digits they have. Ours keep any number of digits,
    which Parquet has no type for: they are texts.
    """
    kind, found = kind_of(column), column.type
    if isinstance(found, JSON):
        return arrow.string(), lambda value: json.dumps(value, ensure_ascii=False)
    if kind is Decimal:
        return _decimal_type(arrow, found)
    if kind is datetime:
        zoned = isinstance(found, UtcDateTime) or (isinstance(found, DateTime) and found.timezone)
        return arrow.timestamp("us", "UTC" if zoned else None), None
    types: Mapping[type, Any] = {
        str: arrow.string(),
        int: arrow.int64(),
        bool: arrow.bool_(),
        float: arrow.float64(),
        date: arrow.date32(),
        bytes: arrow.binary(),
    }
    return (types[kind], None) if kind in types else (arrow.string(), lambda value: str(_plain(value)))


def _decimal_type(arrow: Any, found: Any) -> tuple[Any, Callable[[Any], Any] | None]:
    numeric = found if isinstance(found, Numeric) and not isinstance(found, ExactDecimal) else None
    if numeric is None or not numeric.precision or numeric.precision > 76:
        return arrow.string(), _plain
    make = arrow.decimal128 if numeric.precision <= 38 else arrow.decimal256
    return make(numeric.precision, numeric.scale or 0), None


WRITERS: Mapping[str, Callable[[BinaryIO, Table], Writer]] = {
    "csv": CsvWriter,
    "jsonl": JsonLinesWriter,
    "parquet": ParquetWriter,
}


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which takes its name when the block is through, and is gone when it fails.

    Whoever is killed leaves a hidden file beside it, and what stood there before. Raises ConfigurationError
    where it cannot be written.
    """
    target = path.resolve()
    try:
        if target.exists() and not target.is_file():  # a pipe, a terminal; a folder raises
            with target.open("wb") as out:
                yield out
            return
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with part.open("wb") as out:
                yield out
                out.flush()
                os.fsync(out.fileno())
            part.replace(target)
        except BaseException:
            with suppress(OSError):
                part.unlink()
            raise
    except PenstockError:
        raise
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {error.strerror or error}") from error
