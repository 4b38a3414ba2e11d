"""P8: a run of ten times the units, against ten times the time; memory of planner, worker and Redis.

Runs of all sizes take turns in the same fleet; what a process holds at its largest is looked at twice a
second during each run. Redis holds what is under way, two waves at most, and the small run is one: its
memory is compared with that of the smallest run that fills both.
"""

import tempfile
import threading

import redis

from tests.benchmarks.bench_units import collected, fleet, groups_of, until_alive
from tests.benchmarks.measure import Result, progress, rss_mb

WAVE = 1000  # the setting wave_max
MEMORY = {
    "planner": "memory of the planner",
    "worker": "memory of the worker",
    "redis": "memory of Redis at its most",
}


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


def waves_of(size):
    """The setting for waves of at most so many units."""
    return {"PENSTOCK_WAVE_MAX": str(size)}


def sized(running, count):
    """Seconds and megabytes of one run."""
    with Watch(running) as watch:
        taken = collected(running, tuple(f"SYM{n:05d}" for n in range(count)))
    return {"seconds": taken, **watch.most}


def measure(quick):
    from tasks.waves import WAVES_AT_ONCE

    small, repetitions = (50, 1) if quick else (WAVE, 3)
    full, large = WAVES_AT_ONCE * small, 10 * small
    found = {small: [], full: [], large: []}
    with tempfile.TemporaryDirectory() as folder, fleet(folder, large, settings=waves_of(small)) as running:
        until_alive(running)
        # The first runs fill caches and pools, which is no growth.
        sized(running, small if quick else large)
        for repetition in range(repetitions):
            for count in sorted(found, reverse=bool(repetition % 2)):
                found[count].append(sized(running, count))
                progress(f"{count:,} units in {found[count][-1]['seconds']:.0f} s")

    def row(what, name, unit, bound, peer=small, peer_name=f"{small:,} units"):
        ours, theirs = ([each[name] for each in found[count]] for count in (large, peer))
        return Result("P8", f"{what}, {large:,} units", ours, theirs, peer_name, unit, at_most=bound)

    both = f"{full:,} units, which are the {WAVES_AT_ONCE} waves that may be under way"
    return [
        row("time of a run", "seconds", "s", 10.5),
        row(MEMORY["planner"], "planner", "MB", 1.1),
        row(MEMORY["worker"], "worker", "MB", 1.1),
        row(MEMORY["redis"], "redis", "MB", 1.1, full, both),
    ]
