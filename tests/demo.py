"""What `make demo` runs: the main job against fake APIs that fail in every way a real one does.

Three processes matter. This one tells the story. The *stage* (`--stage`) supervises the fake APIs and
`penstock up`. All of them end with this one, however it ends, unless `--keep` says otherwise.
"""

import signal

if __name__ == "__main__":
    # There is nothing to stop yet: a Ctrl-C during the imports just ends us, without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import requests

from resilience.errors import PenstockError
from tasks.outcomes import RunKind, RunOutcome
from tasks.runtime import Runtime, started
from tasks.settings import get_settings
from tests.upstream.client import APIS
from tests.upstream.data import PROJECTS
from workers.children import await_end, spawn
from workers.up import Interrupted, Process, StopSignal, supervise

ROOT = Path(__file__).resolve().parents[1]
BAD = "BADUSDT"  # the fake Binance does not know it, as the real one would not
COINS = """
    BTC ETH BNB SOL XRP ADA DOGE TRX LINK DOT LTC BCH AVAX ATOM UNI XLM ETC FIL APT NEAR
    ARB OPT INJ SUI AAVE ALGO VET GRT SAND MANA AXS THETA EGLD FTM RUNE KAVA ZEC DASH COMP
""".split()  # noqa: SIM905 - one name a line would fill the screen
EVERY_S = 15  # of coinbase, so that a slot comes while its circuit is open
THROTTLE_S = 5
READY_S = 60
STOP_S = 40


def main() -> int:
    """Play the demo, or be its stage."""
    parser = argparse.ArgumentParser(prog="python -m tests.demo", description=__doc__)
    parser.add_argument("--keep", action="store_true", help="leave everything running at the end")
    parser.add_argument(
        "--since", type=float, default=time.time(), help="epoch seconds when it was asked for"
    )
    parser.add_argument(
        "--state", type=Path, default=ROOT / ".penstock-demo", help="a directory to be emptied"
    )
    parser.add_argument("--stage", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is not None:
        return stage(options.stage, keep=options.keep)
    with StopSignal() as asked:
        try:
            return Demo(options.state.absolute(), keep=options.keep, since_s=options.since).play(asked)
        except Interrupted:
            print("\nstopped; nothing is left running")
            return 130
        except PenstockError as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1


def stage(port: int, *, keep: bool) -> int:
    """Run the fake APIs and `penstock up` until told to stop; with Flower if there is time to look at it."""
    flower = "--flower" if keep else "--no-flower"
    processes = [
        Process("upstream", (sys.executable, "-m", "tests.upstream", f"--port={port}")),
        Process("up", (sys.executable, "-m", "workers.cli", "up", flower)),
    ]
    return supervise(processes, get_settings())


class Upstream:
    """The fake APIs' control endpoint."""

    def __init__(self, port: int):
        self.url = f"http://127.0.0.1:{port}"
        self.session = requests.Session()
        self.session.trust_env = False

    def control(self, api: str, **changes: Any) -> dict[str, Any]:
        answer = self.session.post(f"{self.url}/control/{api}", json=changes, timeout=10)
        answer.raise_for_status()
        return answer.json()

    def get(self, path: str) -> Any:
        answer = self.session.get(f"{self.url}/control/{path}", timeout=10)
        answer.raise_for_status()
        return answer.json()

    def answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return bool(self.get("binance"))
        return False


class Demo:
    """The story: everything at once, a 429, an outage, and what came of it."""

    def __init__(self, state: Path, *, keep: bool, since_s: float):
        self.state, self.keep, self.since_s = state, keep, since_s
        self.port = free_port()
        self.upstream = Upstream(self.port)
        self.events = 0
        self.skipped = 0
        self.first_rows_s: float | None = None

    def play(self, asked: StopSignal) -> int:
        prepare(self.state, self.port)
        with self.running(asked):
            from workers.tables import console

            self.screen = console()
            self.wait_until_ready()
            self.everything_at_once()
            self.too_many_requests()
            self.outage()
            self.sum_up()
            if not self.keep:
                self.say("stopping everything")
        return 0

    @contextlib.contextmanager
    def running(self, asked: StopSignal) -> Iterator[None]:
        """The stage, for as long as this lasts; with --keep also after a good end."""
        argv = [
            sys.executable,
            "-m",
            "tests.demo",
            f"--stage={self.port}",
            *(["--keep"] if self.keep else []),
        ]
        with (self.state / "stage.log").open("wb") as log:
            if self.keep:
                self.process = subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            else:
                self.process = spawn(argv, output=log)
        try:
            (self.state / "stage.pid").write_text(f"{self.process.pid} {started(self.process.pid)}")
            yield
        except BaseException:
            self.keep = False
            raise
        finally:
            asked.raises = False
            if not self.keep:
                self.process.terminate()
                await_end(self.process, STOP_S, hurry=asked.hurry)

    @property
    def shown(self) -> Path:
        """The directory as people type it."""
        return self.state.relative_to(Path.cwd()) if self.state.is_relative_to(Path.cwd()) else self.state

    def say(self, text: str, style: str = "") -> None:
        self.screen.print(text, style=style, markup=False)

    def chapter(self, text: str) -> None:
        self.screen.print()
        self.say(text, "bold")

    def wait_until_ready(self) -> None:
        """Return when fake APIs, worker and ctl worker live."""
        self.say(
            "Starting: fake APIs that enforce their limits, a private Redis, a database, worker, ctl worker, beat"
        )
        from tasks import reads

        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                break
            if Runtime.read(self.state) and self.upstream.answers():
                alive = reads.workers_alive(get_settings().gone_after_s)
                if alive.get("units") and alive.get("ctl"):
                    slots = f"{alive['units']} processes collect, {alive['ctl']} steer"
                    return self.say(f"Everything is up after {time.time() - self.since_s:.0f} s: {slots}")
            time.sleep(0.1)
        tail = (self.state / "stage.log").read_text(errors="replace").strip().splitlines()[-5:]
        raise PenstockError(
            "\n".join([f"it did not start; see {self.state}/stage.log and {self.state}/logs", *tail])
        )

    def everything_at_once(self) -> None:
        """The first slot of every schedule is due at once."""
        self.chapter(
            "1. Three schedules are due: 40 markets, 20 markets, 10 projects. One market does not exist."
        )
        names = ("binance.klines", "coinbase.candles", "asana.tasks")
        done = self.watch([self.scheduled(name) for name in names], self.notice_first_rows)
        from tasks import reads

        for failure in reads.detail(done[0].id).failures:
            self.say(f"{failure.endpoint} {failure.symbol} failed alone: {failure.message}", "red")

    def notice_first_rows(self, board: Any) -> None:
        if self.first_rows_s is None and any(run.units.records for run in board.runs):
            self.first_rows_s = time.time() - self.since_s
            self.say(f"first rows after {self.first_rows_s:.0f} s", "green")

    def too_many_requests(self) -> None:
        """One answer is enough to stop every worker."""
        self.chapter(f"2. Binance answers 429, Retry-After {THROTTLE_S}, in the middle of a run.")
        self.upstream.control("binance", latency_ms=300)
        throttled_s: list[float] = []

        def each(board: Any) -> None:
            if not throttled_s and board.runs and board.runs[0].units.calls >= 4:
                self.upstream.control("binance", throttle_s=THROTTLE_S)
                throttled_s.append(time.monotonic())

        self.watch([self.run("binance")], each)
        self.upstream.control("binance", latency_ms=0)
        if throttled_s:
            self.say_silence(throttled_s[0])

    def say_silence(self, since_s: float) -> None:
        """How long nobody called, counted where the calls arrive."""
        arrived_s = [at for at in self.upstream.get("binance/arrivals") if at >= since_s]
        silence_s = max((after - before for before, after in pairwise([since_s, *arrived_s])), default=0.0)
        heard = self.upstream.get("binance")["throttled"]
        self.say(f"{heard} calls were answered 429; then no process called for {silence_s:.1f} s.", "green")

    def outage(self) -> None:
        """An ad-hoc run parks behind the circuit, a scheduled one is skipped."""
        slot_s = (int(time.time()) // EVERY_S + 1) * EVERY_S
        slot_s += EVERY_S if slot_s - time.time() < 4 else 0
        outage_s = slot_s - time.time() + 7
        self.chapter(f"3. Coinbase answers 503 for {outage_s:.0f} s.")
        from tasks import reads

        last = reads.latest_runs(1)[0].id
        self.events = max((event.id for event in reads.events_after(0, limit=10_000)), default=0)
        self.upstream.control("coinbase", outage_s=outage_s)

        def each(_: Any) -> None:
            self.tell_transitions()
            self.tell_skipped(last)

        (run,) = self.watch([self.run("coinbase")], each)
        if run.outcome == RunOutcome.OK:
            self.say("The ad-hoc run waited behind the circuit and came to its end by itself.", "green")
        else:
            self.say(f"The ad-hoc run waited behind the circuit, and ended {run.outcome}.", "yellow")

    def tell_transitions(self) -> None:
        from tasks import reads

        for event in reads.events_after(self.events):
            self.events = event.id
            if event.kind == "circuit":
                old, new = event.detail["old"], event.detail["new"]
                self.say(f"circuit {event.subject}: {old} -> {new}", "yellow")

    def tell_skipped(self, last: int) -> None:
        from tasks import reads
        from workers.tables import why

        for run in reads.runs_of("coinbase.candles", after=max(last, self.skipped)):
            if run.outcome == RunOutcome.SKIPPED:
                self.skipped = run.id
                self.say(
                    f"scheduled run {run.id} was skipped: {why(run)}; the next slot catches up", "yellow"
                )

    def sum_up(self) -> None:
        """What came of it, and where it lies."""
        from tasks import reads
        from tasks.collectors.registry import collectors
        from workers.tables import results_table

        self.chapter("What came of it")
        runs = sorted((run for run in reads.latest_runs(100) if run.is_done), key=lambda run: run.id)
        self.screen.print(results_table(runs))
        endpoints = [each for api in collectors().values() for each in api.endpoints.values()]
        self.chapter(f"Where it lies: {self.shown / 'penstock.db'}")
        for name, (table, rows) in reads.rows_stored(endpoints).items():
            self.say(f"  {name:<17} {rows:>7,} rows in {table}")
        over = sum(self.upstream.get(api)["violations"] for api in APIS)
        self.say(f"  requests that the fake APIs counted over a documented limit: {over}")
        worst = max(runs, key=lambda run: (run.units.failed, run.kind == RunKind.SCHEDULED, -run.id))
        self.chapter("What to try next")
        env = f"PENSTOCK_STATE_DIR={self.shown}"
        self.say(f"  {env} .venv/bin/penstock runs")
        self.say(f"  {env} .venv/bin/penstock show {worst.id}")
        self.say(self.third_command())
        self.screen.print()
        first = f"first rows after {self.first_rows_s:.0f} s, " if self.first_rows_s else ""
        self.say(f"{first}everything after {time.time() - self.since_s:.0f} s", "bold")

    def third_command(self) -> str:
        if not self.keep:
            return "  make demo KEEP=1        leaves everything up, to play with"
        return (
            f"  PENSTOCK_STATE_DIR={self.shown} PENSTOCK_CONFIG={self.shown}/penstock.toml "
            ".venv/bin/penstock run binance\n"
            f"{self.flower()}\n"
            f"Everything is left running; stop it with: kill {self.process.pid}"
        )

    def flower(self) -> str:
        """What `penstock up` said about it: the address, and where the password lies."""
        said = (self.state / "stage.log").read_text().splitlines()
        return next((line for line in said if line.startswith("Flower: ")), "Flower did not start")

    def scheduled(self, name: str) -> int:
        """The first run of a schedule, once the tick has made it."""
        from tasks import reads

        deadline_s = time.monotonic() + READY_S
        while time.monotonic() < deadline_s:
            if runs := reads.runs_of(name):
                return runs[0].id
            time.sleep(0.1)
        raise PenstockError(f"no run of {name} was made; see {self.state}/logs")

    def run(self, collector: str) -> int:
        """Ask for a run by the command that a user would type."""
        self.say(f"$ penstock run {collector} --detach", "bright_black")
        asked = subprocess.run(
            [sys.executable, "-m", "workers.cli", "run", collector, "--detach", "--json"],
            check=False,
            capture_output=True,
            text=True,
            timeout=READY_S,
        )
        if asked.returncode:
            raise PenstockError(asked.stderr.strip())
        return json.loads(asked.stdout)[0]["run"]

    def watch(self, numbers: Sequence[int], each: Any = lambda _: None) -> list[Any]:
        from workers.progress import watch

        return watch(numbers, screen=self.screen, each=each)


def prepare(state: Path, port: int) -> None:
    """A fresh directory and an environment in which every command finds the demo and nothing else."""
    with contextlib.suppress(OSError, ValueError):
        pid, since = (state / "stage.pid").read_text().split()
        if str(started(int(pid))) == since:
            raise PenstockError(f"the demo is still running; stop it with: kill {pid}")
    if state.exists() and any(state.iterdir()) and not (state / "stage.pid").exists():
        raise PenstockError(f"{state} holds something that is not a demo's; it will not be emptied")
    shutil.rmtree(state, ignore_errors=True)
    state.mkdir(parents=True)
    (state / "stage.pid").touch()
    for name in list(os.environ):
        if name.upper().startswith("PENSTOCK_"):
            del os.environ[name]
    (state / "penstock.toml").write_text(toml(f"http://127.0.0.1:{port}"))
    os.environ |= {
        "PENSTOCK_STATE_DIR": str(state),
        "PENSTOCK_CONFIG": str(state / "penstock.toml"),
        "PENSTOCK_COLLECTORS": ",".join(APIS),  # others would call the real hosts
        "PENSTOCK_SCHEDULES": "*",
        "ASANA_TOKEN": "demo",  # the fake takes any
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }


def toml(url: str) -> str:
    """The settings file of the demo."""
    symbols = {
        "binance": [*(f"{coin}USDT" for coin in COINS), BAD],
        "coinbase": [f"{coin}-USD" for coin in COINS[:20]],
        "asana": PROJECTS[:10],
    }
    endpoints = {
        "binance": ("klines", "5m"),
        "coinbase": ("candles", f"{EVERY_S}s"),
        "asana": ("tasks", "1h"),
    }
    lines = []
    for api, (endpoint, every) in endpoints.items():
        lines += [
            f"[{api}]",
            f'base_url = "{url}/{api}{"/api/1.0" if api == "asana" else ""}"',
            "breaker = { open_for_s = 10 }  # a minute by default; too long to watch",
            f"[{api}.{endpoint}]",
            f"symbols = {json.dumps(symbols[api])}",
            f'every = "{every}"',
            "",
        ]
    return "\n".join(lines)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


if __name__ == "__main__":
    sys.exit(main())
