"""What every benchmark needs: results against a peer, an installation of its own, and what processes cost."""

import contextlib
import importlib
import os
import statistics
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy

POSTGRES = "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
TICKS = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
SAY_S = 10.0  # benchmarks that take longer say how far they are


@dataclass(frozen=True)
class Result:
    """Ours beside a peer or floor, one pair for each repetition; `compared` says what is made of a pair."""

    target: str
    what: str
    ours: Sequence[float]
    peer: Sequence[float]
    peer_name: str
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    compared: str = "ratio"  # or "difference"

    def pairs(self) -> list[float]:
        """Ratio or difference of each repetition: neighbours on the machine disturb both parts of it."""
        both = zip(self.ours, self.peer, strict=True)
        return [a / b if self.compared == "ratio" else a - b for a, b in both]

    def met(self) -> bool | None:
        """Whether the median is where it is to be; None where there is no target."""
        middle = statistics.median(self.pairs())
        if self.at_least is not None:
            return middle >= self.at_least
        return None if self.at_most is None else middle <= self.at_most

    def line(self) -> str:
        """The row of the Markdown table."""
        pairs = self.pairs()
        sign = "≥" if self.at_least is not None else "≤"
        bound = self.at_least if self.at_least is not None else self.at_most
        after = " x" if self.compared == "ratio" else f" {self.unit}"
        cells = (
            self.target,
            self.what,
            f"{_figure(statistics.median(self.ours))} {self.unit}",
            f"{_figure(statistics.median(self.peer))} {self.unit} ({self.peer_name})",
            f"{statistics.median(pairs):.2f}{after}",
            f"{min(pairs):.2f} to {max(pairs):.2f}, n = {len(pairs)}",
            "" if bound is None else f"{sign} {bound:g}{after}",
            {True: "met", False: "**not met**", None: ""}[self.met()],
        )
        return f"| {' | '.join(cells)} |"


@dataclass(frozen=True)
class Chart:
    """A figure of the note: its file beside the page, and what draws it from which data."""

    file: str
    shows: str  # for those who cannot see it
    kind: str  # a function of tests.benchmarks.charts
    data: Any


HEAD = "| | what | ours | peer or floor | compared | spread | target | |\n|---|---|---|---|---|---|---|---|"


def measured(name: str, quick: bool) -> list[Result | Chart | str]:
    """What one benchmark found: results for the table, and charts and texts of its own."""
    found: list[Result | Chart | str] = importlib.import_module(f"tests.benchmarks.bench_{name}").measure(
        quick
    )
    return found


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def interleaved(actions: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """What each action returned, one after the other in every repetition; every other one runs backwards."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    said = time.monotonic()
    for repetition in range(repetitions):
        names = list(actions) if repetition % 2 == 0 else list(reversed(actions))
        for name in names:
            found[name].append(actions[name]())
        if time.monotonic() - said > SAY_S:
            said = time.monotonic()
            progress(f"{repetition + 1} of {repetitions}")
    return found


def progress(text: str) -> None:
    """Say how far it has come to whoever waits for it."""
    print(f"  {text}", file=sys.stderr, flush=True)


def seconds(action: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def configure(
    folder: Path, redis_url: str, *, symbols: int = 1, database: str | None = None, api: str = ""
) -> str:
    """Make this process an installation with a migrated database; returns the database's URL."""
    from tasks import schema

    url = database or f"sqlite:///{folder / 'penstock.db'}"
    os.environ.update(
        {
            "PENSTOCK_STATE_DIR": str(folder),
            "PENSTOCK_REDIS_URL": redis_url,
            "PENSTOCK_DATABASE_URL": url,
            "PENSTOCK_COLLECTORS": "tests.chaos.pond:pond",
            "POND_URL": api or "http://127.0.0.1:9",
            "POND_SYMBOLS": str(symbols),
        }
    )
    schema.upgrade(url)
    return url


@contextlib.contextmanager
def postgres() -> Iterator[str | None]:
    """The URL of a database of our own; None when no PostgreSQL answers."""
    server = sqlalchemy.make_url(os.environ.get("PENSTOCK_TEST_POSTGRES_URL", POSTGRES))
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sqlalchemy.NullPool)
    name = f"penstock_bench_{uuid.uuid4().hex}"
    try:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
    except sqlalchemy.exc.OperationalError:
        yield None
        return
    try:
        yield server.set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


def cpu_s(pids: Sequence[int]) -> float:
    """User and system time of these processes and of the children they waited for."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += sum(int(field) for field in fields[11:15])
    return total / TICKS


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory of the largest of these processes."""
    largest = 0
    for pid in pids:
        with contextlib.suppress(OSError, IndexError):
            largest = max(largest, int(Path(f"/proc/{pid}/statm").read_text().split()[1]))
    return largest * PAGE / 1e6
