"""The supervisor: it keeps its processes alive, and nothing outlives it."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resilience.errors import ConfigurationError
from tasks.runtime import Runtime, started
from tasks.settings import Settings
from workers import up as module
from workers.up import Interrupted, Process, StopSignal, Supervisor, up

ROOT = Path(__file__).parents[2]
SLEEPS = [Process("one", ("sleep", "1000")), Process("two", ("sleep", "1001"))]

# `penstock up` with programs that only sleep in place of the workers.
UP = """
import sys
from tasks.settings import get_settings
from workers import up
up._processes = lambda settings, runtime: [up.Process(name, ("sleep", "1000")) for name in ("worker", "ctl", "beat")]
sys.exit(up.up(get_settings()))
"""
# Python itself loses a SIGINT now and then that meets a .pth file or the lock of a module that is imported.
BEGUN = """
import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)
print("begun", flush=True)
"""
STUBBORN = """
import sys
from workers.up import Process, StopSignal, Supervisor
with StopSignal() as asked:
    process = Process("stubborn", ("sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"))
    sys.exit(Supervisor([process], print, 60).run(asked))
"""


def run(processes, keep, grace_s=5.0, **options):
    """Let `keep` say when it is enough, by returning True; what was said, and the exit status."""
    asked, said = StopSignal(), []

    def look():
        asked.asked = int(bool(keep()))

    return said, Supervisor(processes, said.append, grace_s, keep=look, **options).run(asked)


def left_in(state_dir):
    """Processes that work in this directory or were told of it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = str(state_dir).encode()
            if ours in (process / "environ").read_bytes() or ours in os.readlink(process / "cwd").encode():
                found.append(process.name)
    return [pid for pid in found if started(int(pid)) is not None]


def await_that(condition, within_s=10.0):
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


@contextlib.contextmanager
def running_up(state_dir):
    """`penstock up` in a process of its own, as soon as it is up."""
    env = {**os.environ, "PENSTOCK_STATE_DIR": str(state_dir)}
    with subprocess.Popen(
        [sys.executable, "-c", UP], cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            await_that(lambda: Runtime.read(state_dir) and len(left_in(state_dir)) >= 5, 30)
            yield process
        finally:
            process.kill()


def test_all_end_when_asked(tmp_path):
    """In reverse order, with exit status 0."""
    pids = []

    def keep():
        pids[:] = [watched.popen.pid for watched in supervisor._watched if watched.popen]
        asked.asked = int(len(pids) == 2)

    asked = StopSignal()
    supervisor = Supervisor(SLEEPS, lambda _line: None, 5, keep=keep)
    assert supervisor.run(asked) == 0
    assert [started(pid) for pid in pids] == [None, None]


def test_dead_process_is_started_again(tmp_path):
    """It says so, where to look, and waits longer each time."""
    crashing = Process("crashing", ("sh", "-c", "echo started; exit 3"))
    log = tmp_path / "logs" / "crashing.log"
    said, status = run(
        [crashing], lambda: log.exists() and log.read_text() == "started\n" * 3, log_dir=log.parent
    )
    assert status == 0
    assert said[:2] == [
        f"crashing ended with exit status 3; starting it again in 1 s (see {log})",
        f"crashing ended with exit status 3; starting it again in 2 s (see {log})",
    ]


def test_waits_grow_to_a_bound_and_start_over():
    """One that ran for a minute did not die of its start."""
    watched = module._Watched(SLEEPS[0])
    assert [watched.next_wait_s(1.0) for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    assert watched.next_wait_s(1000.0) == 1


def test_children_of_a_killed_process_go_too(tmp_path):
    """Pool children would go on beside those of the next worker."""
    script = "sleep 1000 & echo $! >> pids; [ $(wc -l < pids) = 2 ] || kill -9 $$; wait"
    process = Process("parent", ("sh", "-c", f"cd {tmp_path}; {script}"))
    pids = tmp_path / "pids"
    said, _ = run([process], lambda: pids.exists() and len(pids.read_text().split()) == 2)
    assert said[0].startswith("parent was killed by signal 9")
    for pid in pids.read_text().split():
        await_that(lambda pid=pid: started(int(pid)) is None)


def test_stubborn_process_is_killed(tmp_path):
    """After its time to end in peace."""
    ready = tmp_path / "ready"
    process = Process("stubborn", ("sh", "-c", f"trap '' TERM; touch {ready}; while :; do sleep 0.1; done"))
    since = time.monotonic()
    _, status = run([process], ready.exists, grace_s=0.5)
    assert status == 0
    assert time.monotonic() - since < 10


def test_second_signal_hurries():
    """Nobody has to wait out a minute of grace."""
    argv = [sys.executable, "-c", STUBBORN]
    with subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"}
    ) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline().startswith("stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0


def test_end_of_one_can_be_the_end_of_all():
    """As for a program that the others only serve."""
    _, status = run([SLEEPS[0], Process("main", ("sh", "-c", "exit 3"), restart=False)], lambda: False)
    assert status == 3


def test_missing_program_is_no_silence(tmp_path):
    """Its log says what could not be run."""
    log = tmp_path / "absent.log"
    run(
        [Process("absent", ("/no/such/program",))], lambda: log.exists() and log.read_text(), log_dir=tmp_path
    )
    assert log.read_text() == "/no/such/program cannot be run: No such file or directory\n"


def test_signal_interrupts_only_setting_up():
    """Cleaning up is never cut short."""
    with StopSignal() as asked:
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert asked.hurry()
    with StopSignal() as asked:
        asked.raises = False
        signal.raise_signal(signal.SIGINT)
        assert asked.asked == 1


def test_up_is_found_by_others_and_leaves_nothing(tmp_path):
    """While it runs, its Redis comes back when killed; a stop ends it all with exit status 0."""
    with running_up(tmp_path) as process:
        settings = Settings(state_dir=tmp_path)
        url = settings.redis
        assert settings.database == f"sqlite:///{tmp_path}/penstock.db"
        module.check_redis(url)
        redis_pid = int(re.search(r"process_id:(\d+)", info(url))[1])
        os.kill(redis_pid, signal.SIGKILL)
        await_that(lambda: started(redis_pid) is None and answers(url))
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
        assert "Redis had died and was started again" in process.stderr.read()
    assert left_in(tmp_path) == []
    assert not Runtime.path(tmp_path).exists()


def test_killed_up_leaves_nothing(tmp_path):
    """Nobody was there to clean up."""
    with running_up(tmp_path) as process:
        process.kill()
    await_that(lambda: left_in(tmp_path) == [])
    assert Runtime.read(tmp_path) is None


def test_stop_at_any_moment_leaves_nothing(tmp_path):
    """From the first import to long after the start."""
    ends = []
    for number in range(12):
        state_dir = tmp_path / str(number)
        env = {**os.environ, "PENSTOCK_STATE_DIR": str(state_dir)}
        process = subprocess.Popen(
            [sys.executable, "-c", BEGUN + UP],
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        with process.stdout:
            process.stdout.readline()
        # Set-up takes about a second; the steps sweep over it, and the last one is well beyond.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05 + 0.02 * number**2)
        process.send_signal(signal.SIGINT)
        ends.append(process.wait(20))
        await_that(lambda here=state_dir: left_in(here) == [], 3)
    # Before it has begun to listen, the signal itself is the end.
    assert set(ends) <= {0, 1, -signal.SIGINT}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_real_workers_end_too(tmp_path, number):
    """Pool children included, whichever way it ends."""
    env = {**os.environ, "PENSTOCK_STATE_DIR": str(tmp_path)}
    argv = [sys.executable, "-m", "workers.cli", "up"]
    with subprocess.Popen(argv, cwd=ROOT, env=env, stderr=subprocess.DEVNULL) as process:
        try:
            for name in ("worker", "ctl"):
                log = tmp_path / "logs" / f"{name}.log"
                await_that(lambda log=log: log.exists() and " ready." in log.read_text(), 60)
            running, since = len(left_in(tmp_path)), time.monotonic()
            process.send_signal(number)
            process.wait(30)
        finally:
            process.kill()
    await_that(lambda: left_in(tmp_path) == [])
    print(f"{running} processes were gone {time.monotonic() - since:.2f} s after {number.name}")
    assert running > 8


def test_flower_gets_a_free_port():
    """The usual one if nobody has it, so that one `up` more does no harm."""
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # then somebody else has it
            other.bind(("127.0.0.1", 5555))
            other.listen()
        port = module._flower_port()
        assert port != 5555
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))


def test_one_up_per_directory(tmp_path):
    """The second one says so and touches nothing."""
    with (
        module._sole(tmp_path),
        pytest.raises(ConfigurationError, match=r"`penstock up` is running in .* already"),
    ):
        up(Settings(state_dir=tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["up.lock"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "there is no Redis 6.2 or newer on this machine"),
        ({"redis_url": "redis://127.0.0.1:1/0"}, "there is no Redis at"),
        ({"database_url": "postgresql://nobody@127.0.0.1:1/nothing"}, "cannot be opened"),
    ],
)
def test_missing_server_leaves_nothing(tmp_path, monkeypatch, given, said):
    """Neither a lock nor a directory."""
    monkeypatch.setattr("workers.embedded._binaries", lambda: iter(()))
    with pytest.raises(ConfigurationError, match=said):
        up(Settings(state_dir=tmp_path / "state", **given))
    assert list(tmp_path.iterdir()) == []


def test_impossible_state_directory_is_told(tmp_path):
    """In one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"PENSTOCK_STATE_DIR cannot be .*Not a directory"):
        up(Settings(state_dir=tmp_path / "file" / "state"))


def info(url):
    import redis

    with redis.Redis.from_url(url) as client:
        return "\n".join(f"{key}:{value}" for key, value in client.info("server").items())


def answers(url):
    with contextlib.suppress(ConfigurationError):
        module.check_redis(url)
        return True
    return False
