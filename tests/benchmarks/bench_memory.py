"""What a process that runs units holds after many of them, against what it held after fewer.

The same process, its garbage collected and its free memory given back before each look. Until the first of
the two looks it fills what has an end: SQLAlchemy's compiled statements, connection pools, and the up to
0.2 MB that glibc keeps at hand for each thread.
"""

import json
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tests.benchmarks.bench_units import collected, fleet, until_alive
from tests.benchmarks.measure import Result, progress

POOLS = {"prefork": 1, "threads": 32}
MOST_MB = 1.0  # an object of fifty bytes that each unit left behind would be as much


def held(pool, concurrency, counts):
    """Megabytes of the process that runs the units when it has run each of the counts."""
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as looks:
        environment = {"INSIDER_FOLDER": looks, "INSIDER_EVERY": str(counts[0])}
        changes = {"pool": pool, "concurrency": concurrency, "latency_ms": 0}
        with fleet(
            folder, counts[-1], app="tests.benchmarks.insider", environment=environment, **changes
        ) as running:
            until_alive(running)
            collected(running, tuple(f"SYM{n:05d}" for n in range(counts[-1])))
        # The ctl worker and the one for suspects run tasks too, but not as many.
        lines = max((path.read_text().splitlines() for path in Path(looks).iterdir()), key=len)
    found = {line["units"]: line["resident_mb"] for line in map(json.loads, lines)}
    return [found[count] for count in counts]


def measure(quick):
    counts = (100, 300) if quick else (10_000, 30_000)
    results = []
    for pool, concurrency in POOLS.items():
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as apart:  # an app keeps its broker
            early, late = apart.submit(held, pool, concurrency, counts).result()
        progress(f"{pool}: {early:.1f} MB after {counts[0]:,} units, {late:.1f} MB after {counts[-1]:,}")
        what = f"memory of the process that runs units ({pool} {concurrency}), after {counts[-1]:,} of them"
        results.append(
            Result(
                "P8",
                what,
                [late],
                [early],
                f"after {counts[0]:,}",
                "MB",
                at_most=MOST_MB,
                compared="difference",
            )
        )
    return results
