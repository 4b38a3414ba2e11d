"""Measure the targets, each beside its peer or floor in the same run, and print a Markdown table.

    python -m tests.benchmarks [names…] [--quick] [--write]

Every benchmark runs in a process of its own, one after the other, with servers that it starts itself.
--quick takes sizes that only show that it works; --write writes docs/performance.md.
"""

import argparse
import os
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from tests.benchmarks.measure import HEAD, Result, measured
from workers.embedded import EmbeddedRedis

NAMES = ("guard", "launch", "units", "size", "rows", "plan", "help", "profile")
LONG = ("growth",)  # a quarter of an hour; only when it is named, or for the note
PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"


def machine():
    """What the figures depend on."""
    version = EmbeddedRedis(Path()).version
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, "
        f"Redis {version}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load at the start {os.getloadavg()[0]:.1f}"
    )


def page(command, where, results, texts):
    """The note as it is printed and written."""
    table = "\n".join([HEAD, *(result.line() for result in results)])
    intro = (
        f"Measured by `{command}` on {where}. Each row was measured beside its peer or floor in the same run, "
        "one after the other in every repetition; figures are medians, the comparison is the median over "
        "repetitions, and the spread is its smallest and largest."
    )
    return "\n\n".join(["# Performance", intro, table, *texts]) + "\n"


def main():
    options = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    options.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES + LONG)}")
    options.add_argument("--quick", action="store_true", help="sizes that only show that it works")
    options.add_argument("--write", action="store_true", help="write docs/performance.md")
    chosen = options.parse_args()
    if unknown := set(chosen.names) - {*NAMES, *LONG}:
        options.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    if chosen.write and (chosen.names or chosen.quick):
        options.error("--write takes all benchmarks at full size")
    where = machine()
    results, texts = [], []
    for name in chosen.names or (NAMES + LONG if chosen.write else NAMES):
        print(f"{name} …", file=sys.stderr, flush=True)
        # Settings, apps and collectors are made once in a process.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for found in pool.submit(measured, name, chosen.quick).result():
                (results if isinstance(found, Result) else texts).append(found)
    command = " ".join(["python -m tests.benchmarks", *sys.argv[1:]]).replace(" --write", "")
    text = page(command, where, results, texts)
    print(text)
    if chosen.write:
        PAGE.write_text(text)


if __name__ == "__main__":
    main()
