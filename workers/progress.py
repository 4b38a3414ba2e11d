"""Runs while they run: bars on a terminal, a plain line every few seconds elsewhere. Looks at SQL only."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rich.console import Console, ConsoleOptions, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from resilience.errors import ConfigurationError, DatabaseError, StoreUnavailableError
from tasks import reads
from tasks.collectors.registry import endpoint_of
from tasks.limits import circuits
from tasks.reads import RunView
from workers.tables import bar, circuit, console, count, duration, outcome, shares

LOOK_S = 0.4
PLAIN_S = 5.0
CIRCUITS_S = 1.0
CIRCUITS_AWAY_S = 10.0  # a Redis that does not answer may take seconds to say so
SPEED_OVER_S = 5.0
BESIDE_THE_BAR = 76  # columns that the other figures take


@dataclass(slots=True)
class Speed:
    """Calls per second over the last seconds."""

    seen: deque[tuple[float, int]] = field(default_factory=deque)

    def at(self, now_s: float, calls: int) -> float:
        """Take a reading and say the speed."""
        self.seen.append((now_s, calls))
        while now_s - self.seen[0][0] > SPEED_OVER_S:
            self.seen.popleft()
        (then_s, before) = self.seen[0]
        return (calls - before) / (now_s - then_s) if now_s > then_s else 0.0


@dataclass(slots=True)
class Board:
    """What is on the screen: the runs, how fast each goes, and their circuits."""

    runs: Sequence[RunView] = ()
    circuits: Mapping[str, str] = field(default_factory=dict)
    speeds: dict[int, Speed] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    note: str = ""
    took_s: float = 0.0  # the last look at SQL
    ask_circuits_s: float = 0.0  # when to ask Redis again

    def look(self, numbers: Sequence[int], now_s: float) -> bool:
        """Read everything again; true when all runs are done. A database that is away is waited for."""
        try:
            self.runs, self.note = reads.look_at(numbers), ""
        except DatabaseError as error:
            self.note = f"waiting for the database: {error}"
            return False
        self.took_s = time.monotonic() - now_s
        for run in self.runs:
            self.rates[run.id] = self.speeds.setdefault(run.id, Speed()).at(now_s, run.units.calls)
        done = bool(self.runs) and all(run.is_done for run in self.runs)
        if done or now_s >= self.ask_circuits_s:
            self.circuits = circuit_states(self.runs)
            self.ask_circuits_s = now_s + (CIRCUITS_S if self.circuits else CIRCUITS_AWAY_S)
        return done

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        del screen
        table = Table(box=None, pad_edge=False, collapse_padding=True, header_style="bright_black")
        for heading in ("run", "", "", "stored", "waiting", "failed", "skipped", "calls/s", "circuit", ""):
            table.add_column(heading, no_wrap=True, justify="left" if heading in {"", "circuit"} else "right")
        width = max(6, min(40, options.max_width - BESIDE_THE_BAR))
        for run in self.runs:
            table.add_row(*self._row(run, width))
        yield table
        if self.note:
            yield Text(self.note, style="yellow")

    def _row(self, run: RunView, width: int) -> list[RenderableType]:
        tally = run.units
        return [
            str(run.id),
            Text(run.collector, style="bold"),
            bar(shares(tally), width),
            f"{tally.successful}/{tally.total}",
            count(tally.open),
            count(tally.failed, "red"),
            count(tally.skipped, "yellow"),
            f"{self.rates.get(run.id, 0.0):.1f}",
            self._circuit(run),
            outcome(run) if run.is_done or run.lasted_s is None else duration(run.lasted_s),
        ]

    def _circuit(self, run: RunView) -> Text:
        states = sorted({self.circuits.get(name) for name in run.endpoints}, key=str)
        return Text("/").join(circuit(state) for state in states)

    def lines(self) -> list[str]:
        """The same for a log file."""
        said = [
            f"run {run.id} {run.collector}: {run.units.successful}/{run.units.total} stored, "
            f"{run.units.open} waiting, {run.units.failed} failed, {run.units.skipped} skipped, "
            f"{self.rates.get(run.id, 0.0):.1f} calls/s, "
            f"circuit {'/'.join(sorted({self.circuits.get(name, '?') for name in run.endpoints}))}, "
            f"{run.outcome or run.state}"
            for run in self.runs
        ]
        return [*said, self.note] if self.note else said


def circuit_states(runs: Sequence[RunView]) -> dict[str, str]:
    """The circuits of these runs by endpoint; empty when Redis does not answer."""
    try:
        views = circuits([endpoint_of(name) for run in runs for name in run.endpoints])
    except (StoreUnavailableError, ConfigurationError):
        return {}
    return {name: str(view.state) for name, view in views.items()}


def watch(
    numbers: Sequence[int],
    *,
    quiet: bool = False,
    screen: Console | None = None,
    each: Callable[[Board], None] = lambda _: None,
) -> list[RunView]:
    """Wait until all runs are done, and return them. Progress goes to stderr unless `quiet`.

    `each` is called after every look, and may print above the bars. KeyboardInterrupt leaves the runs as they
    are. A database that is away is waited for.
    """
    screen = screen or console(stderr=True)
    board = Board()
    if not quiet and screen.is_terminal:
        with Live(board, console=screen, auto_refresh=False) as live:

            def draw(*, done: bool) -> None:
                del done
                live.update(board, refresh=True)

            _until_done(board, numbers, draw, each)
    else:
        _until_done(board, numbers, _Plain(None if quiet else screen, board), each)
    return list(board.runs)


@dataclass(slots=True)
class _Plain:
    """Says how it goes every few seconds, and at the end."""

    screen: Console | None
    board: Board
    said_s: float = 0.0

    def __call__(self, *, done: bool) -> None:
        now_s = time.monotonic()
        if self.screen is None or not (done or now_s - self.said_s >= PLAIN_S):
            return
        self.said_s = now_s
        for line in self.board.lines():
            self.screen.print(line, markup=False)


def _until_done(
    board: Board, numbers: Sequence[int], draw: Callable[..., None], each: Callable[[Board], None]
) -> None:
    while True:
        began_s = time.monotonic()
        done = board.look(numbers, began_s)
        each(board)
        draw(done=done)
        if done:
            return
        # A look at a very large run must not become a load of its own.
        time.sleep(max(LOOK_S, 5 * board.took_s))
