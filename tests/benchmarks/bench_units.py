"""How fast a whole unit is: claim, guard, HTTP, upsert, outcome, chord; first reading, no target yet.

    python -m tests.benchmarks.bench_units [--units 10000] [--pool threads] [--concurrency 32] [--latency-ms 50]

Prints units per second over the whole run and the CPU time that workers, ctl, Redis and the fake API spent
per unit. The machine is shared by all of them, the fake API included.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

from tasks.outcomes import RunKind
from tasks.runs import Order, request, start
from tests.chaos.fleet import Fleet

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_s(pids):
    """User and system time of these processes and of the children they waited for."""
    total = 0
    for pid in pids:
        try:
            fields = (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def main():
    """Run once and print the figures as JSON."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--units", type=int, default=10_000)
    options.add_argument("--pool", default="threads")
    options.add_argument("--concurrency", type=int, default=32)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--latency-ms", type=int, default=50)
    options.add_argument("--database")
    chosen = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Fleet(
            Path(folder),
            symbols=chosen.units,
            pool=chosen.pool,
            workers=chosen.workers,
            concurrency=chosen.concurrency,
            latency_ms=chosen.latency_ms,
            database=chosen.database,
        ) as fleet,
    ):
        time.sleep(5)
        groups = {
            "workers": [pid for each in fleet.units for pid in (each.process.pid, *each.descendants())],
            "ctl": [fleet.members["ctl"].process.pid, *fleet.members["ctl"].descendants()],
            "redis": [fleet.redis.pid],
            "api": [fleet.upstream.process.pid],
        }
        before = {name: cpu_s(pids) for name, pids in groups.items()}
        run = request(Order("pond", ("pond.klines",), RunKind.ADHOC, deadline_s=3600))
        start(run)
        result, _ = fleet.wait_for_close(run, timeout_s=1800)
        after = {name: cpu_s(pids) for name, pids in groups.items()}
    seconds = (result["finished_at"] - result["started_at"]).total_seconds()
    print(
        json.dumps(
            {
                "units": chosen.units,
                "pool": chosen.pool,
                "concurrency": chosen.concurrency,
                "latency_ms": chosen.latency_ms,
                "seconds": round(seconds, 1),
                "units_per_second": round(chosen.units / seconds, 1),
                "cpu_ms_per_unit": {
                    name: round(1000 * (after[name] - before[name]) / chosen.units, 2) for name in groups
                },
                "resent": result["resent"],
                "calls": result["calls"],
            }
        )
    )


if __name__ == "__main__":
    main()
