"""P8: a run of ten times the units, against ten times the time; memory of planner, worker and Redis.

Runs of both sizes take turns in the same fleet; what a process holds at its largest is looked at twice a
second during each run.
"""

import tempfile
import threading

import redis

from tests.benchmarks.bench_units import collected, fleet, groups_of, until_alive
from tests.benchmarks.measure import Result, progress, rss_mb

MEMORY = ("planner", "worker", "redis")


class Watch(threading.Thread):
    """The largest each of them was while this ran, in MB."""

    def __init__(self, running):
        super().__init__(daemon=True)
        groups = groups_of(running)
        self.pids = {"planner": groups["ctl"], "worker": groups["units0"]}
        self.client = redis.Redis.from_url(running.redis.url)
        self.most = dict.fromkeys(MEMORY, 0.0)
        self.stopped = threading.Event()

    def run(self):
        while True:
            now = {name: rss_mb(pids) for name, pids in self.pids.items()}
            now["redis"] = self.client.info("memory")["used_memory"] / 1e6
            self.most = {name: max(self.most[name], value) for name, value in now.items()}
            if self.stopped.wait(0.5):
                return

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stopped.set()
        self.join()
        self.client.close()


def sized(running, count):
    """Seconds and megabytes of one run."""
    with Watch(running) as watch:
        taken = collected(running, tuple(f"SYM{n:05d}" for n in range(count)))
    return {"seconds": taken, **watch.most}


def measure(quick):
    small, repetitions = (50, 1) if quick else (1000, 3)
    large = 10 * small
    found = {small: [], large: []}
    with tempfile.TemporaryDirectory() as folder, fleet(folder, large) as running:
        until_alive(running)
        # The first runs fill caches and pools, which is no growth.
        sized(running, small if quick else large)
        for repetition in range(repetitions):
            for count in sorted(found, reverse=bool(repetition % 2)):
                found[count].append(sized(running, count))
                progress(f"{count:,} units in {found[count][-1]['seconds']:.0f} s")

    def row(what, name, unit, bound):
        ours, peer = ([each[name] for each in found[count]] for count in (large, small))
        return Result("P8", f"{what}, {large:,} units", ours, peer, f"{small:,} units", unit, at_most=bound)

    return [
        row("time of a run", "seconds", "s", 10.5),
        row("memory of the planner", "planner", "MB", 1.1),
        row("memory of the worker", "worker", "MB", 1.1),
        row("memory of Redis at its most", "redis", "MB", None),
    ]
