"""A fleet of real processes to break things in: workers, ctl, beat, Redis, database, fake API."""

import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import sqlalchemy
from sqlalchemy import func, select

from tasks import schema, store
from tasks.data import ohlcv
from tasks.models import results, runs, units
from tasks.settings import get_settings
from tests.upstream import data
from tests.upstream.client import Upstream
from workers.embedded import EmbeddedRedis

ROOT = Path(__file__).resolve().parents[2]


class Member:
    """One process of the fleet, started again whenever it has died, as any supervisor would."""

    def __init__(self, name, argv, env, logs):
        self.name, self.argv, self.env = name, argv, env
        self.log = logs / f"{name}.log"
        self.starts = 0
        self.process = None

    def start(self):
        """Start it in a process group of its own."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv, env=self.env, cwd=ROOT, stdout=log, stderr=log, start_new_session=True
            )

    def descendants(self):
        """The pids below it, from /proc."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    stat = (entry / "stat").read_text().rpartition(")")[2].split()
                    parents[int(entry.name)] = int(stat[1])
        found, grew = {self.process.pid}, True
        while grew:
            more = {pid for pid, parent in parents.items() if parent in found} - found
            found |= more
            grew = bool(more)
        return found - {self.process.pid}

    def end(self, grace_s=30):
        """SIGTERM, then SIGKILL for whatever is left of its group."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(grace_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Fleet:
    """Workers for `symbols` units of the pond collector; use as a context manager."""

    def __init__(
        self,
        folder,
        *,
        symbols,
        database=None,
        rabbitmq=None,
        pool="prefork",
        workers=2,
        concurrency=4,
        app="workers",
        environment=None,
        latency_ms=50,
        settings=None,
    ):
        self.folder, self.symbols = folder, symbols
        self.redis = EmbeddedRedis(folder / "redis")
        self.redis.start()
        self.rabbitmq = rabbitmq
        self.upstream = Upstream()
        self.upstream.control("binance", limits={"amount": 600_000, "window_s": 60}, latency_ms=latency_ms)
        self.settings = {
            "PENSTOCK_STATE_DIR": str(folder),
            "PENSTOCK_REDIS_URL": self.redis.url,
            "PENSTOCK_BROKER_URL": rabbitmq.url if rabbitmq else self.redis.url,
            "PENSTOCK_DATABASE_URL": database or f"sqlite:///{folder / 'penstock.db'}",
            "PENSTOCK_COLLECTORS": "tests.chaos.pond:pond",
            "POND_URL": self.upstream.base("binance"),
            "POND_SYMBOLS": str(symbols),
            **(settings or {}),
        }
        os.environ.update(self.settings)
        get_settings.cache_clear()
        schema.upgrade(get_settings().database)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(environment or {})}
        worker = [sys.executable, "-m", "celery", "-A", app, "worker", "--without-gossip", "--without-mingle"]
        queues = "collect.pond,collect.pond.backfill"
        self.members = {
            f"units{n}": Member(
                f"units{n}",
                [
                    *worker,
                    "-n",
                    f"units{n}@%h",
                    "-Q",
                    queues,
                    "-P",
                    pool,
                    "-c",
                    str(concurrency),
                    "-l",
                    "INFO",
                ],
                env | {"_PENSTOCK_WORKER_KIND": "units"},
                folder,
            )
            for n in range(workers)
        }
        self.units = list(self.members.values())
        for name, concurrency_ in (("ctl", 2), ("alone", 1)):
            self.members[name] = Member(
                name,
                [*worker, "-n", f"{name}@%h", "-Q", name, "-c", str(concurrency_), "-l", "INFO"],
                env | {"_PENSTOCK_WORKER_KIND": name},
                folder,
            )
        beat = [sys.executable, "-m", "celery", "-A", "workers", "beat", "-l", "INFO"]
        self.members["beat"] = Member("beat", beat, env, folder)
        self.watching = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.faults = {}
        self.last_fault = None

    def __enter__(self):
        for member in self.members.values():
            member.start()
        self.watcher.start()
        return self

    def __exit__(self, *_):
        self.watching.set()
        self.watcher.join()
        for member in self.members.values():
            member.process.terminate()
        for member in self.members.values():
            member.end()
        store.engine().dispose()
        self.upstream.stop()
        self.redis.stop()
        if keep := os.environ.get("PENSTOCK_TEST_KEEP"):
            shutil.copytree(self.folder, Path(keep) / self.folder.name, dirs_exist_ok=True)

    def _watch(self):
        while not self.watching.wait(0.3):
            for member in self.members.values():
                if member.process.poll() is not None:
                    member.start()

    def fault(self, kind):
        """Count a fault, and remember when the last one was."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.last_fault = datetime.now(UTC)

    def kill_child(self):
        """SIGKILL one pool child of one worker; while there is none, nothing happens and nothing counts."""
        member = random.choice(self.units)
        children = sorted(member.descendants())
        with contextlib.suppress(ProcessLookupError, IndexError):
            os.kill(random.choice(children), signal.SIGKILL)
            self.fault("child")

    def kill_worker(self, name=None):
        """SIGKILL a whole worker; its children die with it. One that is dead already does not count."""
        member = self.members[name] if name else random.choice(self.units)
        if member.process.poll() is None:
            member.process.kill()
            self.fault("worker" if name is None else name)

    def flush(self):
        """Redis forgets everything."""
        self._client().flushall()
        self.fault("flush")

    def _client(self):
        import redis

        return redis.Redis.from_url(self.redis.url)

    def kill_redis(self, *, empty, away_s):
        """SIGKILL Redis; it comes back after a while, perhaps with nothing."""
        os.kill(self.redis.pid, signal.SIGKILL)
        time.sleep(away_s)
        if empty:
            shutil.rmtree(self.redis.directory / "data", ignore_errors=True)
        self.redis.revive()
        self.fault("redis")

    def freeze_redis(self, seconds):
        """Redis stops answering, but its connections stay open."""
        os.kill(self.redis.pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(self.redis.pid, signal.SIGCONT)
        self.fault("freeze")

    def restart_rabbitmq(self, *, empty, away_s):
        """SIGKILL the broker; it comes back after a while, perhaps with nothing."""
        self.rabbitmq.restart(empty=empty, away_s=away_s)
        self.fault("rabbitmq")

    def freeze_rabbitmq(self, seconds):
        """The broker stops answering, but its connections stay open."""
        self.rabbitmq.freeze(seconds)
        self.fault("freeze")

    def close_connections(self):
        """The broker throws everybody out."""
        self.rabbitmq.close_connections()
        self.fault("closed")

    def purge(self):
        """The broker forgets the units that wait."""
        self.rabbitmq.purge("collect.pond")
        self.fault("purge")

    def take_database_away(self, seconds):
        """Nobody can write to the SQLite file, or nobody can connect to the PostgreSQL database, for a while."""
        url = sqlalchemy.make_url(get_settings().database)
        with _locked(url) if url.drivername == "sqlite" else _closed(url):
            time.sleep(seconds)
        self.fault("database")

    def roll(self):
        """SIGTERM every worker, one after the other, and wait until each is gone; returns the seconds each took."""
        took = []
        for member in self.units:
            process, started = member.process, time.monotonic()
            process.terminate()
            process.wait(60)
            took.append(time.monotonic() - started)
            self.fault("sigterm")
            time.sleep(3)
        return took

    def done(self, run):
        """How many units of the run are done."""
        with store.reading() as connection:
            return connection.execute(
                select(func.count()).where(units.c.run == run, units.c.state == "done")
            ).scalar_one()

    def wait_for(self, run, count, timeout_s=120):
        """Wait until that many units are done."""
        deadline = time.monotonic() + timeout_s
        while self.done(run) < count:
            assert time.monotonic() < deadline, f"{self.done(run)} of {count} units after {timeout_s} s"
            time.sleep(0.2)

    def wait_for_close(self, run, timeout_s=180):
        """Wait for the run's result; returns it and when it was there."""
        deadline = time.monotonic() + timeout_s
        while True:
            with contextlib.suppress(store.DatabaseError), store.reading() as connection:
                row = connection.execute(select(results).where(results.c.run == run)).mappings().first()
                if row is not None:
                    return dict(row), datetime.now(UTC)
            assert time.monotonic() < deadline, self.state(run)
            time.sleep(0.2)

    def state(self, run):
        """Units by state and outcome, for a message."""
        with store.reading() as connection:
            return connection.execute(
                select(units.c.state, units.c.outcome, units.c.reason, func.count())
                .where(units.c.run == run)
                .group_by(units.c.state, units.c.outcome, units.c.reason)
            ).all()

    def finished(self, run):
        """When each unit was done, in order."""
        with store.reading() as connection:
            chosen = select(units.c.finished_at).where(units.c.run == run)
            return list(connection.execute(chosen.order_by(units.c.finished_at)).scalars())

    def closes(self, run):
        """How often any process said that it closed the run."""
        return self.logged(f"run {run} of pond: ")

    def duplicates(self):
        """How many deliveries ended because another one had the unit."""
        return self.logged("'outcome': 'duplicate'")

    def logged(self, text):
        """How often this stands in the logs."""
        return sum(member.log.read_bytes().count(text.encode()) for member in self.members.values())

    def check_rows(self, run, but=()):
        """Compare what is stored with what the API has: returns rows missing, rows too many."""
        with store.reading() as connection:
            wanted = set()
            for symbol, start, end in connection.execute(
                select(units.c.symbol, units.c.start_at, units.c.end_at).where(units.c.run == run)
            ):
                if symbol in but:
                    continue
                for row in data.klines(symbol, _ms(start), _ms(end), 60_000):
                    wanted.add((symbol, row[0], Decimal(row[4]), Decimal(row[5])))
            columns = (ohlcv.c.symbol, ohlcv.c.open_time, ohlcv.c.close, ohlcv.c.volume)
            found = [
                (symbol, _ms(at), close, volume)
                for symbol, at, close, volume in connection.execute(
                    select(*columns).where(ohlcv.c.source == "pond")
                )
            ]
        assert len(found) == len(set(found))
        return len(wanted - set(found)), len(set(found) - wanted)


@contextlib.contextmanager
def _locked(url):
    connection = sqlite3.connect(url.database, isolation_level=None, timeout=60)
    with contextlib.closing(connection):
        connection.execute("BEGIN EXCLUSIVE")
        yield
        connection.execute("ROLLBACK")


@contextlib.contextmanager
def _closed(url):
    """Neither a connection there is nor a new one works; said through the maintenance database."""
    engine = sqlalchemy.create_engine(
        url.set(database="postgres"), isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool
    )
    with engine.connect() as connection:
        try:
            connection.exec_driver_sql(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS false")
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (url.database,)
            )
            yield
        finally:
            connection.exec_driver_sql(f"ALTER DATABASE {url.database} ALLOW_CONNECTIONS true")


def _ms(at: datetime) -> int:
    return int(at.astimezone(UTC).timestamp() * 1000)


def report(name, **figures):
    """Print the figures of a scenario in one line, also as JSON where a file is named."""
    line = json.dumps({"scenario": name, **figures})
    print(f"\n{line}")
    if path := os.environ.get("PENSTOCK_TEST_FIGURES"):
        with Path(path).open("a") as file:
            file.write(line + "\n")


__all__ = ["Fleet", "Member", "report", "runs"]
