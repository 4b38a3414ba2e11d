"""Run a whole installation for a while, with faults, and say whether anything grows.

    python -m tests.soak [--minutes 20] [--database sqlite|postgres]

Workers of both pools, ctl worker, beat and Flower are processes of their own, with a private Redis and a database
of their own. The three shipped collectors run every ten seconds against the fake APIs, of which one or the
other fails now and then; so does a worker. At the end stands a table; the exit status is 1 when something
in it is not as it has to be.
"""

import argparse
import contextlib
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from sqlalchemy import func, select, update

from tasks.models import results, runs, schedules, units
from tasks.outcomes import UnitState
from tests.acceptance.fleet import Fleet
from tests.benchmarks.measure import postgres
from tests.deployments import Deployment
from tests.soak import rows
from tests.soak.faults import CALM, VICTIM, Faults
from tests.soak.flower import Onlooker
from tests.soak.samples import MARK_S, Sampler
from tests.soak.verdict import HEAD, Allowance, Verdict, flat
from tests.upstream import data
from tests.upstream.client import APIS, Upstream
from workers.children import spawn
from workers.embedded import EmbeddedRedis

EVERY_S, SAMPLE_S, SAY_S, FAULT_S = 10, 5.0, 30.0, 25.0
ENDPOINTS = {"binance": "klines", "coinbase": "candles", "asana": "tasks"}
SYMBOLS = {
    "binance": [f"C{n:02d}USDT" for n in range(60)],
    "coinbase": [f"C{n:02d}-USD" for n in range(30)],
    "asana": data.PROJECTS[:10],
}
MEMBERS = {
    "threads worker": ("worker", "--pool", "threads", "--concurrency", "8"),
    "prefork worker": ("worker", "--pool", "prefork", "--concurrency", "2"),
    VICTIM: ("worker", "--pool", "prefork", "--concurrency", "2"),
    "ctl": ("worker", "--ctl"),
    "beat": ("beat",),
}
FLOWER = "Flower"
DRAIN_S = 180.0
YOUNG_S = 60.0  # imports, pools and caches of a process that was started again
# What is killed every few minutes is always young, and says nothing about growth.
UNJUDGED = {VICTIM, f"{VICTIM}, child"}

# What a steady installation may show: allocators do not give everything back, and counts breathe.
MEMORY_MB = Allowance(an_hour=6.0, noise=2.0)
# Its tasks are in cycles, so that it settles only after some rounds of the collector; if it kept those that it
# should forget, they would be 200 MB an hour.
FLOWER_MB = Allowance(an_hour=6.0, noise=4.0)
COUNT = Allowance(an_hour=4.0, noise=2.0)
KEYS = Allowance(an_hour=20.0, noise=10.0)
# There are as many marks as waves ended in five minutes, and a fault costs some; a thousand waves go by in an hour.
ALL_KEYS = Allowance(an_hour=60.0, noise=30.0)
USED_MB = Allowance(an_hour=1.0, noise=0.5)


class Soak:
    """The installation, its faults and its samples."""

    def __init__(self, fleet: Fleet, upstream: Upstream, server: EmbeddedRedis, minutes: float):
        self.fleet, self.upstream, self.minutes = fleet, upstream, minutes
        self.onlooker = Onlooker(fleet, FLOWER)
        self.sampler = Sampler(fleet, server, self.onlooker)
        self.faults = Faults(upstream, fleet, self.sampler.client, every_s=FAULT_S)
        self.died: list[str] = []

    def play(self) -> list[Verdict]:
        """Everything, from the first process to the verdicts."""
        assert self.fleet.command("db", "upgrade").returncode == 0
        for api in APIS:
            self.upstream.control(api, **CALM)
        for name in (*MEMBERS, FLOWER):
            self.start(name)
        self.fleet.wait_for(self.onlooker.url, "Flower to listen")
        began = time.monotonic()
        end = began + 60 * self.minutes
        warm = began + min(300.0, 15 * self.minutes)
        self.run_until(end, began)
        verdicts = self.flat_ones(warm, began + MARK_S + YOUNG_S)
        self.drain()
        return [*verdicts, *self.counts()]

    def start(self, name: str) -> None:
        if name == FLOWER:
            self.start_flower()
        else:
            self.fleet.start(name, *MEMBERS[name])

    def start_flower(self) -> None:
        """As a program of our own: it has to be full soon."""
        words = (sys.executable, "-m", "tests.soak.flower", "flower", "--port=0")
        with self.fleet.log(FLOWER).open("ab") as output:
            self.fleet.processes[FLOWER] = spawn(words, env=self.fleet.env, output=output)

    def run_until(self, end: float, began: float) -> None:
        """Sample, break and restart; the last minute is left in peace, so that circuits close."""
        say = sample = began
        while (now := time.monotonic()) < end:
            self.faults.step(more=now < end - min(60.0, 20 * self.minutes))
            self.restart()
            if now >= sample:
                self.sampler.take(now)
                sample += SAMPLE_S
            if now >= say:
                self.say(now - began)
                say += SAY_S
            time.sleep(0.2)

    def restart(self) -> None:
        """What was killed is started again; what ended by itself too, but that is held against it."""
        due = [name for name, at in self.faults.start_s.items() if time.monotonic() >= at]
        for name in due:
            del self.faults.start_s[name]
            self.start(name)
        for name, process in list(self.fleet.processes.items()):
            if process.poll() is not None:
                self.died.append(name)
                self.start(name)

    def say(self, elapsed_s: float) -> None:
        now = self.sampler.now
        memory = sum(
            points[-1][1]
            for (measure, _), lives in self.sampler.series.items()
            if measure == "memory"
            for points in lives.values()
            if points[-1][0] == self.sampler.prefixes[-1][0]
        )
        done = len(self.fleet.column(results.c.run))
        print(
            f"{elapsed_s / 60:5.1f} of {self.minutes:g} min: {done} runs closed, {now('open', 'runs'):.0f} open; "
            f"{memory:.0f} MB in all, {now('keys', 'redis'):.0f} keys, {now('clients', 'redis'):.0f} clients; "
            f"{self.faults.counts.total()} faults, the last: {self.faults.last or 'none yet'}",
            flush=True,
        )

    def drain(self) -> None:
        """No more schedules, then the end of all runs, then one more run of each collector."""
        for api in APIS:
            self.upstream.control(api, **CALM)
        with self.fleet.engine.begin() as connection:
            connection.execute(update(schedules).values(enabled=False))
        until = time.monotonic() + DRAIN_S
        while (self.fleet.open_runs() or self.faults.start_s) and time.monotonic() < until:
            self.restart()
            time.sleep(0.5)
        self.last = {
            name: self.fleet.collect("run", name) for name in ENDPOINTS if not self.fleet.open_runs()
        }

    def flat_ones(self, warm_s: float, marked_s: float) -> list[Verdict]:
        """What has to be flat after the warm-up; all keys together only after the first marks have expired."""
        kinds = {
            "memory": ("memory of {}", MEMORY_MB, "MB"),
            "used": ("memory that Redis counts", USED_MB, "MB"),
            "keys": ("keys in Redis, Celery's marks of past waves apart", KEYS, ""),
            "all keys": ("keys in Redis, all of them", ALL_KEYS, ""),
            "channels": ("channels in Redis", COUNT, ""),
            "clients": ("connections to Redis", COUNT, ""),
            "connections": ("connections to the database", COUNT, ""),
            "files": ("open files of {}", COUNT, ""),
            "open": ("runs that are open", COUNT, ""),
            "tasks": ("tasks that Flower keeps", COUNT, ""),
        }
        found = []
        for measure, (title, allowance, unit) in kinds.items():
            begin_s = marked_s if measure == "all keys" else warm_s
            for (kind, part), lives in sorted(self.sampler.series.items()):
                if kind == measure and part not in UNJUDGED:
                    allowed = FLOWER_MB if (kind, part) == ("memory", FLOWER) else allowance
                    judged = flat(
                        title.format(part), lives, allowed, begin_s=begin_s, young_s=YOUNG_S, unit=unit
                    )
                    found += [] if judged is None else [judged]
        return found

    def counts(self) -> list[Verdict]:
        """What has to be nothing."""
        open_units = select(func.count()).where(units.c.state != UnitState.DONE)
        (unfinished,) = self.fleet.rows(open_units)
        without = select(runs.c.id).where(runs.c.id.not_in(select(results.c.run)))
        found = {
            "runs still open": self.fleet.open_runs(),
            "units still open": next(iter(unfinished.values())),
            "runs without a result": len(self.fleet.rows(without)),
            "requests over a limit": sum(self.upstream.stats(api)["violations"] for api in APIS),
            "Celery's marks that stay too long": len(self.sampler.lasting),
            "processes that ended by themselves": len(self.died),
            "questions that Flower did not answer": self.onlooker.refused,
            "collectors whose last run failed": sum(
                name not in self.last or self.last[name]["outcome"] != "ok" for name in ENDPOINTS
            ),
        }
        for name in ("binance", "coinbase"):
            numbers = self.fleet.column(runs.c.id, runs.c.collector == name)
            self._rows(found, name, rows.bars(self.fleet, name, numbers))
        if "asana" in self.last:
            self._rows(found, "asana", rows.tasks(self.fleet, SYMBOLS["asana"], self.last["asana"]))
        return [Verdict(what, None, count, None, 0) for what, count in found.items()]

    @staticmethod
    def _rows(found: dict[str, float], name: str, counted: tuple[int, int, int]) -> None:
        missing, extra, wanted = counted
        assert wanted, f"{name} was never asked for anything"
        found[f"rows of {name} missing, of {wanted:,}"] = missing
        found[f"rows of {name} too many"] = extra

    def summary(self) -> str:
        """What went on, in words."""
        outcomes = Counter(self.fleet.column(results.c.outcome))
        done = self.fleet.rows(select(func.count().label("units"), func.sum(units.c.calls).label("calls")))[0]
        first, last = self.sampler.prefixes[len(self.sampler.prefixes) // 4][1], self.sampler.prefixes[-1][1]
        said = {
            "Runs": outcomes,
            "Units and calls": done,
            "Faults": self.faults.counts,
            "Keys in Redis after a quarter of the time": first,
            "Keys in Redis at the end": last,
        }
        lines = (
            f"{what}: {', '.join(f'{n} {name}' for name, n in sorted(each.items()))}."
            for what, each in said.items()
        )
        return "\n\n".join(lines)


def toml(upstream: Upstream):
    """The settings file: where the fake APIs are, who is asked for, and how often."""
    bases = {name: upstream.base(name) for name in APIS}
    bases["asana"] += "/api/1.0"
    tables = {}
    for name, endpoint in ENDPOINTS.items():
        tables[name] = {"base_url": bases[name]}
        tables[f"{name}.breaker"] = {"open_for_s": 10}  # a minute by default; faults come more often
        tables[f"{name}.{endpoint}"] = {"symbols": SYMBOLS[name], "every": f"{EVERY_S}s"}
    return tables


@contextlib.contextmanager
def installation(folder: Path, database: str, minutes: float):
    """A fleet with its servers, all gone afterwards."""
    sqlite = contextlib.nullcontext(f"sqlite:///{folder / 'penstock.db'}")
    with (
        EmbeddedRedis(folder / "redis") as server,
        Upstream() as upstream,
        sqlite if database == "sqlite" else postgres() as url,
    ):
        if url is None:
            sys.exit("no PostgreSQL answers; PENSTOCK_TEST_POSTGRES_URL names one")
        settings = {
            "PENSTOCK_SCHEDULES": "binance,coinbase,asana",
            "PENSTOCK_TICK_S": "5",
            "PENSTOCK_RECONCILE_S": "5",
            "PENSTOCK_CALL_TIMEOUT_S": "3",
            "ASANA_TOKEN": "soak",
            "NO_PROXY": "127.0.0.1",
        }
        fleet = Fleet(folder, Deployment(database, url), redis_url=server.url, **settings)
        fleet.configure(toml(upstream))
        soak = Soak(fleet, upstream, server, minutes)
        try:
            yield soak
        finally:
            soak.sampler.write(folder / "samples.json")
            soak.sampler.close()
            soak.onlooker.close()
            fleet.close()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--keep", type=Path, metavar="DIRECTORY", help="an empty one, for logs and database")
    options = parser.parse_args()
    if options.minutes < 2:
        parser.error("less than two minutes show nothing")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
    temporary = tempfile.TemporaryDirectory(prefix="penstock-soak-")
    with temporary as made:
        folder = options.keep or Path(made)
        folder.mkdir(exist_ok=True)
        with installation(folder, options.database, options.minutes) as soak:
            verdicts = soak.play()
            print("\n".join(["", HEAD, *(verdict.line() for verdict in verdicts), "", soak.summary()]))
    bad = [verdict.measure for verdict in verdicts if not verdict.ok]
    print(f"\nNot as it has to be: {', '.join(bad)}" if bad else "\nEverything is as it has to be.")
    return bool(bad)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
