"""Measure the targets, each beside its peer or floor in the same run, and print a Markdown table.

    python -m tests.benchmarks [names…] [--quick] [--write [DIRECTORY]]

Every benchmark runs in a process of its own, one after the other, with servers that it starts itself.
--quick takes sizes that only show that it works; --write writes the note, performance.md with its charts,
to docs, where only all benchmarks at full size may go, or to a directory.
"""

import argparse
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import sqlalchemy

from tests.benchmarks import charts
from tests.benchmarks.measure import HEAD, Chart, Result, measured, postgres
from workers.embedded import EmbeddedRedis

NAMES = ("guard", "launch", "units", "size", "rows", "plan", "help", "profile")
LONG = ("memory", "growth")  # a quarter of an hour; only when they are named, or for the note
DOCS = Path(__file__).resolve().parents[2] / "docs"
PACKAGES = ("celery", "kombu", "redis", "requests", "sqlalchemy", "psycopg", "pybreaker", "limits")
HEADINGS = {"units": "CPU of a unit", "profile": "Where the time of a unit goes", "growth": "Growth"}
PEERS = {
    "limits + pybreaker, Redis": "a sliding window of `limits` and a circuit of pybreaker, both in Redis",
    "Celery + requests": "a Celery task that makes the same call with a session for each thread; stores nothing",
    "Celery + pybreaker Redis + limits": "the same behind such a window and circuit; stores nothing either",
    "group().apply_async, chord()": "Celery's own ways to send the same signatures",
    "its two scripts over bare sockets": (
        "the same prepared commands, sent one after the other by as many processes, without the guard's Python"
    ),
    "driver's executemany, COPY": "the fastest that the database's driver does with ready statements",
    "no breaker, python -c pass": "the same without what is measured",
}
HOW = (
    "Each row was measured beside its peer or floor in the same run, one after the other in every repetition, "
    "every other one backwards. Figures are medians; the comparison is the median over the repetitions, n of "
    "them, and the spread is its smallest and largest. A difference is there where a ratio would say nothing."
)
NOT_HERE = (
    "P5, that no limit is ever exceeded, is not a matter of speed: `tests/integration/test_limit_exactness.py` "
    "and `tests/chaos/test_limits.py` hold it."
)
NEXT = """\
Of the CPU of a unit in its own thread a third is SQL (claim and store), a fifth the call, a fifth Celery's; a worker
spends a fifth more on messages, acknowledgements and events. A third of what
the guard costs on a quiet machine is the round trips, a third its scripts, the rest the Python around them. The
ideas that follow from this, none of them built:

- connections to the database that are held by their threads: to take and return one costs as much as a statement;
- checks of a row's values by column: a ninth of a unit goes into them, value by value;
- fewer commands for each unit of a chord, whose result is stored and counted on its own."""
SHOWS = "A bar for each target: how many times as good as asked for"


def machine() -> str:
    """What the figures depend on."""
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), {memory_gb:.0f} GB; Python {platform.python_version()}, "
        f"Redis {EmbeddedRedis(Path()).version}, {postgres_version()}; "
        f"{', '.join(f'{name} {version(name)}' for name in PACKAGES)}; "
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, load at the start {os.getloadavg()[0]:.1f}"
    )


def postgres_version() -> str:
    """Of the server that the benchmarks use."""
    with postgres() as url:
        if url is None:
            return "no PostgreSQL (its rows are missing)"
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            said: str = connection.exec_driver_sql("SHOW server_version").scalar_one()
        return f"PostgreSQL {said.partition(' ')[0]}"


def command() -> str:
    """What was typed, so that it does the same again."""
    return shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])


def page(typed: str, where: str, results: Sequence[Result], texts: Sequence[str]) -> str:
    """The note as it is printed and written."""
    peers = "\n".join(f"| {name} | {what} |" for name, what in PEERS.items())
    parts = [
        "# Performance",
        f"Measured by `{typed}` on {where}.",
        HOW,
        *texts[:1],
        "\n".join([HEAD, *(result.line() for result in results)]),
        NOT_HERE,
        "## Peers and floors",
        f"| | |\n|---|---|\n{peers}",
        "The peers' code is `tests/benchmarks/peers.py`.",
        *texts[1:],
        "## What would come next",
        NEXT,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def picture(chart: Chart, directory: Path | None) -> str:
    """Draw it, and say in the page where it is; nothing where nothing is written."""
    if directory is None:
        return ""
    drawn: str = getattr(charts, chart.kind)(chart.data)
    (directory / chart.file).write_text(drawn)
    return f"![{chart.shows}]({chart.file})"


def one(name: str, *, quick: bool) -> list[Result | Chart | str]:
    """What a benchmark found; if it breaks, that, so that the others are not lost."""
    print(f"{name} …", file=sys.stderr, flush=True)
    began = time.monotonic()
    # Settings, apps and collectors are made once in a process.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measured, name, quick).result()
        except Exception as error:  # it is told, and the exit status says so
            traceback.print_exc()
            return [f"The benchmark `{name}` did not finish: {type(error).__name__}."]
        finally:
            print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)


def options() -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(NAMES + LONG)}")
    parser.add_argument("--quick", action="store_true", help="sizes that only show that it works")
    parser.add_argument(
        "--write",
        nargs="?",
        const=DOCS,
        type=Path,
        metavar="DIRECTORY",
        help="write the note to docs, or there",
    )
    chosen = parser.parse_args()
    if unknown := set(chosen.names) - {*NAMES, *LONG}:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}")
    if chosen.write == DOCS and (chosen.names or chosen.quick):
        parser.error("what is written to docs takes all benchmarks at full size")
    if chosen.write and not charts.available():
        parser.error("the charts need tests/benchmarks/requirements.txt, which `make bench` installs")
    return chosen


def main() -> int:
    chosen = options()
    where = machine()
    results: list[Result] = []
    texts: list[str] = []
    broken = False
    for name in chosen.names or (NAMES + LONG if chosen.write else NAMES):
        found = one(name, quick=chosen.quick)
        results += [each for each in found if isinstance(each, Result)]
        said = [
            picture(each, chosen.write) if isinstance(each, Chart) else each
            for each in found
            if not isinstance(each, Result)
        ]
        broken |= any("did not finish" in each for each in said)
        texts += [f"## {HEADINGS[name]}", *said] if said and name in HEADINGS else said
    results.sort(key=lambda result: int(result.target.removeprefix("P")))
    overview = picture(Chart("targets.svg", SHOWS, "targets", results), chosen.write)
    text = page(command(), where, results, [overview, *texts])
    print(text)
    if chosen.write:
        (chosen.write / "performance.md").write_text(text)
    return broken


if __name__ == "__main__":
    sys.exit(main())
