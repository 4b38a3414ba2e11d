"""What grows with the size of a run: one run of each size, smallest first, in the same fleet."""

import tempfile
from pathlib import Path

from tests.benchmarks.bench_size import MEMORY, WAVE, sized, waves_of
from tests.benchmarks.bench_units import CONCURRENCY, collected, fleet, until_alive
from tests.benchmarks.measure import Chart, Result, progress

SIZES = (100, 1000, 10_000, 100_000)
MOST = 1.1  # of what must not grow
SHOWS = (
    "Three panels against the number of units: the time of a run beside the line of ten times the units in ten "
    "times the time, the memory of planner, worker and Redis, and the size of the database"
)
HOW = (
    f"One run of each size, one after the other in the same fleet (threads {CONCURRENCY}, SQLite). Memory is that "
    "of the largest process of its kind, at its most during the run; the planner is the ctl worker. The database "
    "holds the smaller runs too."
)


def measure(quick):
    points = {}
    sizes, wave = ((20, 100, 1000), 50) if quick else (SIZES, WAVE)
    with (
        tempfile.TemporaryDirectory() as folder,
        fleet(folder, max(sizes), settings=waves_of(wave)) as running,
    ):
        until_alive(running)
        collected(running, tuple(f"SYM{n:05d}" for n in range(CONCURRENCY)))
        for count in sizes:
            found = sized(running, count)
            files = Path(folder).glob("penstock.db*")
            points[count] = found | {"database": sum(file.stat().st_size for file in files) / 1e6}
            progress(f"{count:,} units in {found['seconds']:.0f} s")
    return [*results(points), Chart("growth.svg", SHOWS, "growth", points), table(points)]


def results(points):
    """The largest run against the one before: both have as many waves under way as there may be."""
    small, large = sorted(points)[-2:]
    per_unit = {count: {"time": 1000 * points[count]["seconds"] / count} for count in (small, large)}

    def row(what, name, unit):
        ours, peer = ((points[count] | per_unit[count])[name] for count in (large, small))
        what = f"growth: {what}, {large:,} units"
        return Result("P8", what, [ours], [peer], f"{small:,} units", unit, at_most=MOST)

    return [row("time per unit", "time", "ms"), *(row(what, name, "MB") for name, what in MEMORY.items())]


def table(points):
    """The figures behind the chart."""
    lines = [
        HOW,
        "",
        "| units | s | ms per unit | planner MB | worker MB | Redis MB | database MB |",
        "|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for count, found in points.items():
        lines.append(
            f"| {count:,} | {found['seconds']:.1f} | {1000 * found['seconds'] / count:.1f} "
            f"| {found['planner']:.0f} | {found['worker']:.0f} | {found['redis']:.1f} | {found['database']:.1f} |"
        )
    return "\n".join(lines)
