"""`penstock up`: a Redis if none is given, worker, ctl worker, beat and Flower, under one supervisor.

A Ctrl-C or SIGTERM ends it at any moment, and nothing is left running; nor is after a `kill -9`.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Self

from resilience.errors import ConfigurationError
from tasks.runtime import Runtime, started
from tasks.schema import current, upgrade
from tasks.settings import Settings, environment, masked
from workers.children import await_end, kill, spawn
from workers.embedded import EmbeddedRedis, check_redis
from workers.flower_auth import flower_auth

Say = Callable[[str], None]

_STEP_S = 0.1
_SETTLED_S = 60.0  # one that lived this long did not die of its start
_RESTART_MAX_S = 30.0


@dataclass(frozen=True, slots=True)
class Process:
    """A program to keep running. Without `restart`, its end is the end of all, with its exit status."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    restart: bool = True


class Interrupted(BaseException):
    """A stop was asked for while nothing but setting-up was going on."""


class StopSignal:
    """Counts the requests to stop (SIGINT, SIGTERM, SIGHUP) while it is entered.

    The first one raises Interrupted as long as `raises` is true. None raises later, so that cleaning up is
    never interrupted; a second one asks to hurry.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.raises = True
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            self._former[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def hurry(self) -> bool:
        return self.asked > 1

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self.asked += 1
        if self.raises and self.asked == 1:
            raise Interrupted


@dataclass(slots=True)
class _Watched:
    """A process and how it fares."""

    process: Process
    popen: subprocess.Popen[bytes] | None = None
    started_at_s: float = 0.0
    start_at_s: float = 0.0
    early_deaths: int = 0

    def next_wait_s(self, now_s: float) -> float:
        """Seconds until it may start again: 1, 2, 4 … 30 for one that keeps dying early."""
        self.early_deaths = 1 if now_s - self.started_at_s > _SETTLED_S else self.early_deaths + 1
        return min(_RESTART_MAX_S, 2.0 ** min(self.early_deaths - 1, 10))


@dataclass
class Supervisor:
    """Starts the processes in their order, restarts what dies, stops all in reverse order.

    Their output goes to `log_dir`/<name>.log, emptied at the start, or where ours goes without `log_dir`.
    All together have `grace_s` seconds to end before they are killed. `keep` is called ten times a second.
    """

    processes: Sequence[Process]
    say: Say
    grace_s: float
    log_dir: Path | None = None
    keep: Callable[[], None] = lambda: None
    _watched: list[_Watched] = field(default_factory=list, init=False)

    def run(self, asked: StopSignal) -> int:
        """Return 0 after a requested stop, else the exit status of the process that ended it all."""
        asked.raises = False
        self._prepare_logs()
        self._watched = [_Watched(process) for process in self.processes]
        try:
            while not asked.asked:
                self.keep()
                for watched in self._watched:
                    if not asked.asked and (status := self._look_after(watched)) is not None:
                        return status
                time.sleep(_STEP_S)
            return 0
        finally:
            self._stop(asked)

    def _look_after(self, watched: _Watched) -> int | None:
        """Start it when that is due, notice its end; its exit status if that ends everything."""
        now_s = time.monotonic()
        if watched.popen is None:
            if now_s >= watched.start_at_s:
                watched.popen, watched.started_at_s = self._spawn(watched.process), now_s
            return None
        status = watched.popen.poll()
        if status is None:
            return None
        # Pool children outlive a worker that was killed, and would go on beside the next one.
        kill(watched.popen)
        watched.popen = None
        if not watched.process.restart:
            return abs(status)
        wait_s = watched.next_wait_s(now_s)
        watched.start_at_s = now_s + wait_s
        self.say(
            f"{watched.process.name} {_ended(status)}; starting it again in {wait_s:g} s{self._see(watched)}"
        )
        return None

    def _spawn(self, process: Process) -> subprocess.Popen[bytes]:
        if self.log_dir is None:
            return spawn(process.argv, env=process.env)
        with self._log(process).open("ab") as output:
            return spawn(process.argv, env=process.env, output=output)

    def _prepare_logs(self) -> None:
        if self.log_dir is not None:
            self.log_dir.mkdir(parents=True, exist_ok=True)
            for process in self.processes:
                self._log(process).write_bytes(b"")

    def _log(self, process: Process) -> Path:
        assert self.log_dir
        return self.log_dir / f"{process.name}.log"

    def _see(self, watched: _Watched) -> str:
        return f" (see {self._log(watched.process)})" if self.log_dir else ""

    def _stop(self, asked: StopSignal) -> None:
        self.say("stopping; once more stops at once")
        deadline_s = time.monotonic() + self.grace_s
        running = [watched.popen for watched in reversed(self._watched) if watched.popen]
        for popen in running:
            popen.terminate()  # all at once: a warm shutdown takes seconds, even with nothing to do
        for popen in running:
            await_end(popen, deadline_s - time.monotonic(), hurry=asked.hurry)


def supervise(processes: Sequence[Process], settings: Settings, say: Say | None = None) -> int:
    """Run the processes until a stop is asked for, and return the exit status. They write where we write."""
    with StopSignal() as asked:
        return Supervisor(processes, say or _to_stderr, grace_s(settings)).run(asked)


def up(settings: Settings, say: Say | None = None, *, with_flower: bool = False) -> int:
    """Run everything until a stop is asked for, and return the exit status: 0 after a requested stop.

    Raises ConfigurationError when a server or the database is not as needed, or when another one runs here.
    """
    with StopSignal() as asked:
        try:
            return _up(settings, asked, say or _to_stderr, with_flower=with_flower)
        except Interrupted:
            return 0


def grace_s(settings: Settings) -> float:
    """How long a stop may take: a unit ends at its next page, and a call has a deadline."""
    return settings.call_timeout_s + 5


def _up(settings: Settings, asked: StopSignal, say: Say, *, with_flower: bool) -> int:
    own_redis = _look_ahead(settings)
    try:
        settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"PENSTOCK_STATE_DIR cannot be {settings.state_dir}: {error.strerror}"
        ) from None
    with (
        _sole(settings.state_dir),
        _redis(settings, own_redis, say) as (redis_url, keep),
        _runtime(settings, redis_url) as runtime,
    ):
        logs = settings.state_dir / "logs"
        say(f"database {masked(runtime.database_url)}; logs in {logs}; Ctrl-C stops it all")
        processes = _processes(settings, runtime)
        if with_flower:
            port, auth = _flower_port(), flower_auth(settings)
            say(f"Flower: http://127.0.0.1:{port}, {auth.told}")
            processes.append(_penstock("flower", ("flower", f"--port={port}"), processes[0].env))
        return Supervisor(processes, say, grace_s(settings), logs, keep).run(asked)


def _look_ahead(settings: Settings) -> EmbeddedRedis | None:
    """See to the servers before anything is written; the Redis to start, None where one is given."""
    if not settings.database.startswith("sqlite"):
        current(settings.database)
    if settings.redis_url is None:
        return EmbeddedRedis(settings.state_dir / "redis")
    check_redis(settings.redis)
    return None


def _processes(settings: Settings, runtime: Runtime) -> list[Process]:
    env = environment(
        PENSTOCK_REDIS_URL=runtime.redis_url,
        PENSTOCK_BROKER_URL=runtime.broker_url,
        PENSTOCK_DATABASE_URL=runtime.database_url,
        PENSTOCK_STATE_DIR=str(settings.state_dir),
    )
    commands = {"worker": ("worker",), "ctl": ("worker", "--ctl"), "beat": ("beat",)}
    return [_penstock(name, words, env) for name, words in commands.items()]


def _penstock(name: str, words: Sequence[str], env: Mapping[str, str] | None) -> Process:
    return Process(name, (sys.executable, "-m", "workers.cli", *words), env)


def _flower_port() -> int:
    """The usual port, or a free one when somebody has it."""
    for port in (5555, 0):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise ConfigurationError("Flower found no free port on 127.0.0.1")


@contextlib.contextmanager
def _redis(
    settings: Settings, own: EmbeddedRedis | None, say: Say
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The URL of the Redis to use, and what keeps it there."""
    if own is None:
        yield settings.redis, lambda: None
        return
    with own as server:
        say(f"Redis {server.version} ({server.binary}) on port {server.port}")

        def keep() -> None:
            if server.revive():
                say("Redis had died and was started again")

        yield server.url, keep


@contextlib.contextmanager
def _runtime(settings: Settings, redis_url: str) -> Iterator[Runtime]:
    """The migrated database and the servers, written down for other commands for as long as this lasts."""
    pid = os.getpid()
    since = started(pid)
    assert since is not None
    broker_url = settings.broker if settings.broker_url else redis_url
    runtime = Runtime(pid, since, redis_url, broker_url, settings.database)
    upgrade(runtime.database_url)
    runtime.write(settings.state_dir)
    try:
        yield runtime
    finally:
        Runtime.path(settings.state_dir).unlink(missing_ok=True)


@contextlib.contextmanager
def _sole(state_dir: Path) -> Iterator[None]:
    """One supervisor per directory; the kernel drops the lock with the process, so it is never stale."""
    with (state_dir / "up.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigurationError(
                f"`penstock up` is running in {state_dir} already; "
                "stop it, or set PENSTOCK_STATE_DIR to another directory"
            ) from None
        yield


def _ended(status: int) -> str:
    return f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
