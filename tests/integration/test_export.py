"""Rows out of the database: every value exactly, whole files only, memory that does not grow."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tracemalloc
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Column, DateTime, LargeBinary, MetaData, Numeric, String, Table, Uuid, insert

from resilience.errors import ConfigurationError, DatabaseError
from tasks import export, store
from tasks.collectors.registry import endpoint_of
from tasks.data import asana_tasks, ohlcv
from tasks.models import records
from tasks.upsert import upsert
from workers import cli
from workers.cli_data import Progress

from .conftest import on_both

DATABASES = ("sqlite",)
T0 = datetime(2026, 1, 5, tzinfo=UTC)
LONG = Decimal("12345678901234567890.123456789012345678901234567890")


def bar(n=0, symbol="BTCUSDT", **changed):
    row = {
        "source": "binance",
        "symbol": symbol,
        "interval": "1m",
        "open_time": T0 + timedelta(minutes=n),
        "open": LONG,
        "high": Decimal("0.00000001"),
        "low": Decimal("-1.50"),
        "close": Decimal(7),
        "volume": Decimal("1e20"),
        "trades": None,
    }
    return row | changed


def keep(table, *rows):
    with store.writing() as connection:
        upsert(connection, table, rows)


def task(gid, **changed):
    row = {
        "gid": gid,
        "project": "1",
        "name": 'a "b", c\nd é',
        "completed": False,
        "assignee": "",
        "created_at": T0,
        "modified_at": T0 + timedelta(microseconds=5),
        "due_on": date(2026, 2, 3),
        "data": {"x": [1, "ü"]},
    }
    return row | changed


def out(endpoint, form="csv", **chosen):
    """What is written."""
    stream = io.BytesIO()
    export.export(export.select_rows(endpoint_of(endpoint), **chosen), form, stream, lambda count: None)
    return stream.getvalue()


def lines(endpoint, **chosen):
    return [json.loads(line) for line in out(endpoint, "jsonl", **chosen).splitlines()]


def penstock(*words):
    return CliRunner().invoke(cli.main, words)


@on_both
def test_csv_has_every_digit(installation):
    """Null is empty, an empty text is not; quotes, commas and lines in texts come back."""
    keep(ohlcv, bar(1), bar(0, trades=42), bar(0, source="coinbase"))
    assert out("binance.klines").decode() == (
        "source,symbol,interval,open_time,open,high,low,close,volume,trades\n"
        f"binance,BTCUSDT,1m,2026-01-05T00:00:00Z,{LONG},0.00000001,-1.50,7,100000000000000000000,42\n"
        f"binance,BTCUSDT,1m,2026-01-05T00:01:00Z,{LONG},0.00000001,-1.50,7,100000000000000000000,\n"
    )
    keep(asana_tasks, task("1"), task("2", assignee=None, due_on=None, completed=True))
    raw = out("asana.tasks").decode()
    first, second = csv.DictReader(io.StringIO(raw, newline=""))
    assert first == {
        "gid": "1",
        "project": "1",
        "name": 'a "b", c\nd é',
        "completed": "false",
        "assignee": "",
        "created_at": "2026-01-05T00:00:00Z",
        "modified_at": "2026-01-05T00:00:00.000005Z",
        "due_on": "2026-02-03",
        "data": '{"x": [1, "ü"]}',
    }
    assert (second["completed"], second["due_on"]) == ("true", "")
    assert ',false,"",2026' in raw
    assert ",true,,2026" in raw


@on_both
def test_json_lines(installation):
    """Decimals are texts, so that no reader rounds them; JSON stays JSON."""
    keep(ohlcv, bar())
    keep(asana_tasks, task("1"))
    [row] = lines("binance.klines")
    assert Decimal(row["open"]) == LONG
    assert (row["open_time"], row["trades"], row["volume"]) == ("2026-01-05T00:00:00Z", None, f"{10**20}")
    [row] = lines("asana.tasks")
    assert (row["data"], row["completed"], row["due_on"]) == ({"x": [1, "ü"]}, False, "2026-02-03")


@on_both
def test_parquet(installation):
    """Times, days and numbers by their types; decimals without a number of digits as texts."""
    keep(ohlcv, *(bar(n, trades=n or None) for n in range(3)))
    keep(asana_tasks, task("1"), task("2", assignee=None, due_on=None))
    table = pq.read_table(pa.BufferReader(out("binance.klines", "parquet")))
    assert table.schema.field("open_time").type == pa.timestamp("us", "UTC")
    assert table.schema.field("open").type == pa.string()
    assert table.schema.field("trades").type == pa.int64()
    assert table["open"].to_pylist() == [str(LONG)] * 3
    assert table["trades"].to_pylist() == [None, 1, 2]
    assert [at.astimezone(UTC) for at in table["open_time"].to_pylist()] == [
        T0 + timedelta(minutes=n) for n in range(3)
    ]
    tasks = pq.read_table(pa.BufferReader(out("asana.tasks", "parquet"))).to_pylist()
    assert [row["due_on"] for row in tasks] == [date(2026, 2, 3), None]
    assert [row["assignee"] for row in tasks] == ["", None]
    assert tasks[0]["data"] == '{"x": [1, "ü"]}'


odd = Table(
    "odd",
    MetaData(),
    Column("id", String, primary_key=True),
    Column("price", Numeric(12, 4)),
    Column("big", Numeric(50, 10)),
    Column("blob", LargeBinary),
    Column("local", DateTime),
    Column("uuid", Uuid),
)


@on_both
def test_types_of_a_table_of_ones_own(installation):
    """Decimals with a known number of digits are decimals in Parquet; the rest is exact too."""
    import uuid

    endpoint = endpoint_of("binance.klines")
    object.__setattr__(endpoint, "table", odd)
    number = uuid.UUID(int=7)
    row = {"id": "a", "price": Decimal("1.5"), "big": Decimal("2.25"), "blob": b"\0\xff", "uuid": number}
    with store.writing() as connection:
        odd.create(connection)
        connection.execute(insert(odd).values(**row, local=datetime(2026, 1, 2, 3)))
    try:
        table = pq.read_table(pa.BufferReader(out("binance.klines", "parquet")))
        assert table.schema.field("price").type == pa.decimal128(12, 4)
        assert table.schema.field("big").type == pa.decimal256(50, 10)
        expected = row | {"local": datetime(2026, 1, 2, 3), "uuid": str(number)}
        assert table.to_pylist() == [expected]
        assert lines("binance.klines") == [
            {"id": "a", "price": "1.5000", "big": "2.2500000000", "blob": "AP8=", "local": "2026-01-02T03:00:00", "uuid": str(number)}
        ]  # fmt: skip
    finally:
        with store.writing() as connection:
            odd.drop(connection)


def test_a_table_that_is_not_there(installation):
    """Is said, and no file is left."""
    object.__setattr__(endpoint_of("binance.klines"), "table", odd)
    with pytest.raises(ConfigurationError, match="no table odd in the database"):
        out("binance.klines")


@on_both
def test_rows_without_a_table(installation):
    """As they are in `records`: key, symbol, and the row as JSON; of this endpoint only."""
    endpoint = endpoint_of("binance.klines")
    object.__setattr__(endpoint, "table", records)
    object.__setattr__(endpoint, "name", "ticks")

    def tick(n, at, **changed):
        data = {"open_time": at, "price": "0.1"}
        row = {"source": "binance", "endpoint": "ticks", "key": str(n), "symbol": "A", "data": data}
        return row | changed

    at = "2026-01-05T00:00:0"
    keep(records, tick(1, f"{at}0Z"), tick(2, f"{at}0.5Z"), tick(3, f"{at}1Z"), tick(4, None))
    keep(records, tick(5, f"{at}0Z", endpoint="others"), tick(6, f"{at}0Z", source="coinbase"))
    assert [row["key"] for row in lines("binance.klines")] == ["1", "2", "3", "4"]
    assert lines("binance.klines")[0]["data"] == {"open_time": f"{at}0Z", "price": "0.1"}
    half = T0 + timedelta(seconds=0.5)
    assert [row["key"] for row in lines("binance.klines", since=half)] == ["2", "3"]
    assert [row["key"] for row in lines("binance.klines", until=half)] == ["1"]
    assert lines("binance.klines", symbols=["B"]) == []


@on_both
def test_rows_of_some_symbols_and_times(installation):
    """From `since` up to, but without, `until`; in the order of the key."""
    keep(ohlcv, *(bar(n, symbol) for n in (3, 1, 2, 0) for symbol in ("B", "A", "C")))
    minutes = {"since": T0 + timedelta(minutes=1), "until": T0 + timedelta(minutes=3)}
    rows = lines("binance.klines", symbols=["A", "B"], **minutes)
    assert [(row["symbol"], row["open_time"][14:16]) for row in rows] == [
        ("A", "01"),
        ("A", "02"),
        ("B", "01"),
        ("B", "02"),
    ]
    with pytest.raises(ConfigurationError, match=r"asana_tasks has no column 'symbol'"):
        export.select_rows(endpoint_of("asana.tasks"), symbols=["1"])
    with pytest.raises(ConfigurationError, match=r"asana\.projects has no cursor that holds times"):
        export.select_rows(endpoint_of("asana.projects"), since=T0)


@pytest.mark.parametrize("form", export.FORMATS)
def test_nothing_to_export(installation, form):
    """A file that says so and can be read."""
    written = out("binance.klines", form)
    assert written.count(b"\n") == {"csv": 1, "jsonl": 0}.get(form, written.count(b"\n"))
    if form == "parquet":
        assert pq.read_table(pa.BufferReader(written)).num_rows == 0


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30)


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(rows=st.lists(st.tuples(st.none() | texts, st.none() | st.decimals(allow_nan=False)), max_size=4))
def test_what_csv_writes_can_be_read(rows):
    """Any text and any number."""
    stream = io.BytesIO()
    table = Table("t", MetaData(), Column("text", String), Column("number", Numeric))
    writer = export.CsvWriter(stream, table)
    writer.write(rows)
    writer.close()
    heading, *found = csv.reader(io.StringIO(stream.getvalue().decode(), newline=""))
    assert heading == ["text", "number"]
    assert [row[0] for row in found] == [text or "" for text, _ in rows]
    for (_, number), row in zip(rows, found, strict=True):
        assert number is None or Decimal(row[1]) == number


@pytest.mark.parametrize(
    ("name", "form"), [("a.csv", "csv"), ("a.jsonl", "jsonl"), ("a.PARQUET", "parquet"), ("a.txt", "csv")]
)
def test_the_command_writes_a_file(installation, tmp_path, name, form):
    """In the format of its name; the number of rows is said beside it."""
    keep(ohlcv, bar())
    result = penstock("export", "binance.klines", "--out", str(tmp_path / name))
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"1 rows of binance.klines as {form} in {tmp_path / name}\n"
    assert (tmp_path / name).read_bytes() == out("binance.klines", form) or form == "parquet"
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".a")] == []


def test_the_command_writes_to_the_output(installation):
    """As CSV unless told otherwise; people are told elsewhere."""
    keep(ohlcv, bar(0), bar(1))
    assert penstock("export", "binance.klines").stdout.encode() == out("binance.klines")
    options = ("--format", "jsonl", "--symbols", "BTCUSDT", "--since", "2026-01-05T00:01")
    said = penstock("export", "binance.klines", *options)
    assert (said.stdout.count("\n"), said.stderr) == (1, "1 rows of binance.klines as jsonl\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["binance"], "is a collector; name one of its endpoints"),
        (["binance.kline"], "did you mean klines?"),
        (["binance.klines", "--out", "/proc/none/x.csv"], "/proc/none/x.csv cannot be written"),
        (["binance.klines", "--out", "/"], "/ cannot be written: Is a directory"),
        (["binance.klines", "--since", "noon"], "no date"),
    ],
)
def test_a_mistake_is_one_sentence(installation, words, said):
    """With exit status 2."""
    result = penstock("export", *words)
    assert (result.exit_code, result.stdout) == (2, "")
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_parquet_without_its_library(installation, monkeypatch, tmp_path):
    """Is one sentence that says what to install; nothing is left behind."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    result = penstock("export", "binance.klines", "--out", str(tmp_path / "x.parquet"))
    assert result.exit_code == 2
    assert "pip install 'penstock[parquet]'" in result.stderr
    assert not list(tmp_path.glob("*x.parquet*"))


def test_what_fails_leaves_the_file_that_was_there(installation, tmp_path, monkeypatch):
    """And no other one."""
    path = tmp_path / "x.csv"
    path.write_text("before")

    def break_off(selection):
        yield [("a",) * 10]
        raise DatabaseError("it went away")

    monkeypatch.setattr(export, "_batches", break_off)
    result = penstock("export", "binance.klines", "--out", str(path))
    assert (result.exit_code, "it went away" in result.stderr) == (2, True)
    assert path.read_text() == "before"
    assert not list(tmp_path.glob(".x.csv*"))


KILLED = """
import sys
from pathlib import Path
from tasks.export import whole
with whole(Path(sys.argv[1])) as out:
    out.write(b"half")
    out.flush()
    print("half", flush=True)
    sys.stdin.read()
"""


def test_a_killed_export_leaves_no_half_file(tmp_path):
    """Under the name there is what was there before."""
    path = tmp_path / "x.csv"
    path.write_text("before")
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert path.read_text() == "before"


def test_a_link_stays_a_link_and_a_pipe_is_written_to(tmp_path):
    """What is renamed is the file behind the link; a pipe is no file to replace."""
    (tmp_path / "real.csv").write_text("before")
    (tmp_path / "link.csv").symlink_to(tmp_path / "real.csv")
    with export.whole(tmp_path / "link.csv") as stream:
        stream.write(b"after")
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "real.csv").read_text() == "after"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with export.whole(tmp_path / "pipe") as stream:
        stream.write(b"through")
    assert os.read(reader, 100) == b"through"
    os.close(reader)


def test_progress_is_told_now_and_then():
    """Every five seconds of the clock, not with every batch."""
    now, told = [0.0], []
    progress = Progress(told.append, clock=lambda: now[0])
    for count in range(20):
        now[0] = count
        progress(count)
    assert told == [5, 10, 15]


class Sink(io.RawIOBase):
    """Where rows go to be forgotten."""

    def __init__(self):
        self.written = 0

    def writable(self):
        return True

    def write(self, data):
        self.written += len(data)
        return len(data)


@on_both
@pytest.mark.parametrize("form", export.FORMATS)
def test_memory_does_not_grow_with_the_rows(installation, form, monkeypatch):
    """Six times the rows take no more of it: batches, not tables."""
    monkeypatch.setattr(export, "BATCH", 500)
    monkeypatch.setattr(export, "GROUP", 1000)
    selection = export.select_rows(endpoint_of("binance.klines"))
    peaks = []
    for count in (4_000, 24_000):
        keep(ohlcv, *(bar(n) for n in range(count)))
        export.export(selection, form, Sink(), lambda count: None)  # what is made once
        tracemalloc.start()
        assert export.export(selection, form, Sink(), lambda count: None) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert all(after < before + 400_000 for before, after in pairwise(peaks)), peaks
