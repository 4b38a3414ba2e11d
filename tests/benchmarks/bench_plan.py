"""P10: planning units, against the same rows by executemany (SQLite) or COPY (PostgreSQL)."""

import gc
import sqlite3
import tempfile
import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.benchmarks.measure import Result, configure, interleaved, postgres, seconds

COLUMNS = ("run", "n", "endpoint", "symbol", "start_at", "end_at", "cursor", "state", "not_before")
NAMES = ", ".join(COLUMNS)


class Transactions:
    """How long the longest write transaction held its lock."""

    def __init__(self, engine):
        from sqlalchemy import event

        self.longest_s, self.began = 0.0, 0.0
        event.listen(engine, "begin", self._begin)
        event.listen(engine, "commit", self._commit)

    def _begin(self, _connection):
        self.began = time.perf_counter()

    def _commit(self, _connection):
        self.longest_s = max(self.longest_s, time.perf_counter() - self.began)


def accepted(count):
    """A run of so many symbols that nobody plans yet."""
    from tasks.outcomes import RunKind
    from tasks.runs import Order, request

    symbols = tuple(f"SYM{n:06d}" for n in range(count))
    return request(Order("pond", ("pond.klines",), RunKind.ADHOC, symbols=symbols))


def planned_by_us(run):
    """What a planner does until the run is open; the launch is another target."""
    from tasks import runs

    row = runs._take_planning(run)
    assert row is not None
    assert runs._write_units(run, row)


def copied(database, run):
    """The units of a planned run as raw rows, for another run that the floor writes."""
    from tasks import store

    with store.reading() as connection:
        statement = f"SELECT {NAMES} FROM units WHERE run = {run} ORDER BY n"
        return [tuple(row) for row in connection.exec_driver_sql(statement)]


def executemany(database, rows):
    connection = sqlite3.connect(database.removeprefix("sqlite:///"), isolation_level=None, timeout=15)
    connection.execute("PRAGMA synchronous=NORMAL")
    marks = ", ".join("?" * len(COLUMNS))

    def write():
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(f"INSERT INTO units ({NAMES}) VALUES ({marks})", rows)
        connection.execute("COMMIT")

    taken = seconds(write)
    connection.close()
    return taken


def copy(database, rows):
    import psycopg

    with psycopg.connect(database.replace("postgresql+psycopg", "postgresql")) as connection:

        def write():
            with connection.cursor().copy(f"COPY units ({NAMES}) FROM STDIN") as into:
                for row in rows:
                    into.write_row(row)
            connection.commit()

        return seconds(write)


def compared(name, database, floor, peer_name, count, repetitions):
    from tasks import store

    planned_by_us(warm := accepted(100))
    template = copied(database, warm)
    assert len(template) == 100
    longest = Transactions(store.engine())
    locks = []

    def ours():
        run = accepted(count)
        longest.longest_s = 0.0
        taken = seconds(lambda: planned_by_us(run))
        locks.append(longest.longest_s)
        return count / taken

    def theirs():
        # Same values as ours; symbols differ in length at most.
        run = accepted(1)
        rows = [(run, n, *template[n % 100][2:]) for n in range(count)]
        return count / floor(database, rows)

    found = interleaved({"ours": ours, "floor": theirs}, repetitions)
    return [
        Result(
            "P10",
            f"{name}: planning {count:,} units",
            found["ours"],
            found["floor"],
            peer_name,
            "units/s",
            at_least=0.5,
        ),
        Result(
            "P10",
            f"{name}: longest lock held",
            [1000 * each for each in locks],
            [0.0] * len(locks),
            "none",
            "ms",
            at_most=200,
            compared="difference",
        ),
    ]


def memory(name, count, repetitions):
    """How much more memory planning ten times the units takes at its peak: the same symbols, more windows."""
    from tasks.outcomes import RunKind
    from tasks.runs import Order, request

    end = datetime(2026, 1, 5, tzinfo=UTC)

    def peak(size):
        start = end - timedelta(minutes=20 * size // 10)
        symbols = tuple(f"SYM{n:05d}" for n in range(10))
        run = request(Order("pond", ("pond.klines",), RunKind.BACKFILL, symbols, start, end))
        # Freed tuples that Python keeps for reuse are not traced when they are taken again. A full collection
        # drops them, which happens in a long run only: so both begin with one.
        gc.collect()
        tracemalloc.start()
        planned_by_us(run)
        found = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        return found

    peak(count)  # what is made once and kept: statements, caches, the last chunk's numbers
    found = interleaved({"large": lambda: peak(10 * count), "small": lambda: peak(count)}, repetitions)
    return Result(
        "P10",
        f"{name}: memory of planning {10 * count:,} units",
        found["large"],
        found["small"],
        f"{count:,} units",
        "MB",
        at_most=1.1,
    )


def measure(quick):
    count, repetitions = (4000, 2) if quick else (50_000, 5)
    some = min(count, 10_000)  # tracing makes planning slow
    from tasks import store
    from tasks.settings import get_settings

    found = []
    with tempfile.TemporaryDirectory() as folder:
        url = configure(Path(folder), "redis://127.0.0.1:9/0")
        found += compared("SQLite", url, executemany, "driver's executemany", count, repetitions)
        found.append(memory("SQLite", some, repetitions))
        store.engine().dispose()
    with tempfile.TemporaryDirectory() as folder, postgres() as url:
        if url is None:
            return [*found, "No PostgreSQL answered; its units are missing."]
        configure(Path(folder), "redis://127.0.0.1:9/0", database=url)
        get_settings.cache_clear()
        found += compared("PostgreSQL", url, copy, "COPY", count, repetitions)
        found.append(memory("PostgreSQL", some, repetitions))
        store.engine().dispose()
    return found
