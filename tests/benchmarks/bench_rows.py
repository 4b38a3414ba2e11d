"""P9: storing rows, against the driver's executemany (SQLite) and COPY with an upsert (PostgreSQL)."""

import contextlib
import sqlite3
import tempfile
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from tests.benchmarks.measure import Result, configure, interleaved, postgres, seconds

BATCH = 1000
COLUMNS = ("source", "symbol", "interval", "open_time", "open", "high", "low", "close", "volume", "trades")
KEY = COLUMNS[:4]
START = datetime(2026, 1, 5, tzinfo=UTC)
NAMES = ", ".join(f'"{name}"' for name in COLUMNS)
CHANGES = ", ".join(f'"{name}" = excluded."{name}"' for name in COLUMNS if name not in KEY)
UPSERT = f"ON CONFLICT ({', '.join(KEY)}) DO UPDATE SET {CHANGES}"


def rows_of(owner, count):
    """Bars as a collector's row function makes them; `owner` keeps ours and the floor's apart."""
    return [
        {
            "source": owner,
            "symbol": "SYM00001",
            "interval": "1m",
            "open_time": START + timedelta(minutes=n),
            **{name: Decimal(f"{n % 977}.12345678") for name in ("open", "high", "low", "close", "volume")},
            "trades": n,
        }
        for n in range(count)
    ]


def batches(rows):
    return (rows[at : at + BATCH] for at in range(0, len(rows), BATCH))


def stored_by_us(rows):
    from tasks import store
    from tasks.data import ohlcv
    from tasks.upsert import upsert

    for batch in batches(rows):
        with store.writing() as connection:
            upsert(connection, ohlcv, batch)


def sqlite_floor(path):
    """One statement and the driver, which knows neither Decimal nor aware times: `converted` does that for it."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=15)
    connection.execute("PRAGMA synchronous=NORMAL")
    marks = ", ".join("?" * len(COLUMNS))
    statement = f"INSERT INTO ohlcv ({NAMES}) VALUES ({marks}) {UPSERT}"

    def run(rows, converted):
        for batch in batches(rows):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(statement, map(converted, batch))
            connection.execute("COMMIT")

    return connection, run


def postgres_floor(url):
    """COPY to a temporary table, then one statement that inserts or updates."""
    import psycopg

    connection = psycopg.connect(url.replace("postgresql+psycopg", "postgresql"))
    connection.execute(
        "CREATE TEMPORARY TABLE incoming (LIKE ohlcv INCLUDING DEFAULTS) ON COMMIT DELETE ROWS"
    )
    connection.commit()

    def run(rows):
        for batch in batches(rows):
            with connection.cursor() as cursor:
                with cursor.copy(f"COPY incoming ({NAMES}) FROM STDIN") as copy:
                    for row in batch:
                        copy.write_row([row[name] for name in COLUMNS])
                cursor.execute(f"INSERT INTO ohlcv ({NAMES}) SELECT {NAMES} FROM incoming {UPSERT}")
            connection.commit()

    return connection, run


def native(row):
    """What the SQLite driver binds as it is, in the form in which ours is stored."""
    return (
        row["source"],
        row["symbol"],
        row["interval"],
        row["open_time"].strftime("%Y-%m-%d %H:%M:%S.%f"),
        format(row["open"], "f"),
        format(row["high"], "f"),
        format(row["low"], "f"),
        format(row["close"], "f"),
        format(row["volume"], "f"),
        row["trades"],
    )


def compared(name, floors, bound, count, repetitions):
    """New rows, then the same rows again, in every repetition; only the first floor is a target."""
    mine = rows_of("ours", count)
    actions = {"ours": lambda: stored_by_us(mine), **floors}
    found = {"insert": [], "update": []}
    for _ in range(repetitions):
        emptied()
        for speeds in found.values():
            speeds.append(
                interleaved({each: lambda do=do: count / seconds(do) for each, do in actions.items()}, 1)
            )
    return [
        Result(
            "P9",
            f"{name}: {kind} {count:,} rows",
            [each["ours"][0] for each in speeds],
            [each[floor][0] for each in speeds],
            floor,
            "rows/s",
            at_least=bound if floor == next(iter(floors)) else None,
        )
        for kind, speeds in found.items()
        for floor in floors
    ]


def emptied():
    from sqlalchemy import delete

    from tasks import store
    from tasks.data import ohlcv

    with store.writing() as connection:
        connection.execute(delete(ohlcv))


def measure(quick):
    count, repetitions = (5000, 2) if quick else (50_000, 7)
    from tasks import store
    from tasks.settings import get_settings

    found = []
    with tempfile.TemporaryDirectory() as folder:
        configure(Path(folder), "redis://127.0.0.1:9/0")
        connection, floor = sqlite_floor(Path(folder) / "penstock.db")
        rows = rows_of("floor", count)
        ready = [native(row) for row in rows_of("ready", count)]
        floors = {
            "driver's executemany, conversion included": lambda: floor(rows, native),
            "driver's executemany, values converted before": lambda: floor(ready, tuple),
        }
        with contextlib.closing(connection):
            found += compared("SQLite", floors, 0.5, count, repetitions)
        store.engine().dispose()
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        if url is None:
            return [*found, "No PostgreSQL answered; its rows are missing."]
        configure(Path(folder), "redis://127.0.0.1:9/0", database=url)
        get_settings.cache_clear()
        connection, floor = postgres_floor(url)
        rows = rows_of("floor", count)
        with contextlib.closing(connection):
            found += compared("PostgreSQL", {"COPY + upsert": lambda: floor(rows)}, 0.9, count, repetitions)
        store.engine().dispose()
    return found
