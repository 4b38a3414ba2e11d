"""What grows with the size of a run: one run of each size, smallest first, in the same fleet."""

import tempfile
from pathlib import Path

from tests.benchmarks.bench_size import sized
from tests.benchmarks.bench_units import CONCURRENCY, collected, fleet, until_alive

SIZES = (100, 1000, 10_000, 100_000)


def measure(quick):
    sizes = (20, 100) if quick else SIZES
    lines = [
        f"A run of each size, threads {CONCURRENCY}; memory is the most during the run:",
        "",
        "| units | s | ms per unit | planner MB | worker MB | Redis MB | database MB |",
        "|---|---|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder, fleet(folder, max(sizes)) as running:
        until_alive(running)
        collected(running, tuple(f"SYM{n:05d}" for n in range(CONCURRENCY)))
        for count in sizes:
            found = sized(running, count)
            files = Path(folder).glob("penstock.db*")
            database = sum(file.stat().st_size for file in files) / 1e6
            lines.append(
                f"| {count:,} | {found['seconds']:.1f} | {1000 * found['seconds'] / count:.1f} "
                f"| {found['planner']:.0f} | {found['worker']:.0f} | {found['redis']:.1f} | {database:.1f} |"
            )
    return ["\n".join(lines)]
