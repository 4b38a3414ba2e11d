"""Eight processes on one limit, while something happens to them: it is used, and never exceeded."""

import os
import signal
import threading
import time

import pytest

from resilience.errors import RateLimitError
from resilience.guard import Ask, CallResult, Go, Guard, Kind
from resilience.limiter import RateLimiter
from resilience.store.redis import RedisStore
from tests.integration.test_limit_exactness import most_in_window, spawn, usable

SPEC = "100/1s"
PACE_US = 1e6 / 99
SECONDS = float(os.environ.get("PENSTOCK_TEST_SECONDS", "4"))
GOOD = CallResult(Kind.SUCCESS, 0.0)


def limiter(store=None):
    return RateLimiter("r", SPEC, api="a", key="ip", store=store)


def call_until_told(url, skew_s, started, at_once, over):
    """Start calls as fast as the limit lets and write down when, on the clock of Redis.

    The process's own clock is off by `skew_s`: nothing may depend on it.
    """
    told = time.time_ns
    time.time_ns = lambda: told() + int(skew_s * 1e9)
    guard, ask, ticket = Guard(RedisStore(url)), Ask("a", (), (limiter(),)), None
    at_once.wait()
    while not over.is_set():
        verdict = guard.admit(ask, ticket=ticket)
        if isinstance(verdict, Go):
            started.send(verdict.lease.grant.started_us)
            guard.settle(verdict.lease, GOOD)
            ticket = None
        else:
            ticket = verdict.ticket
            time.sleep(min(verdict.seconds, 0.5))
    started.send(None)


class Callers:
    """Eight processes that call; `meanwhile` is what happens to them halfway."""

    def __init__(self, url, skews=(0,) * 8):
        self.at_once, self.over = spawn.Barrier(len(skews) + 1), spawn.Event()
        self.times, self.processes, self.readers = [], [], []
        for skew_s in skews:
            mine, theirs = spawn.Pipe(duplex=False)
            process = spawn.Process(
                target=call_until_told, args=(url, skew_s, theirs, self.at_once, self.over)
            )
            process.start()
            theirs.close()
            reader = threading.Thread(target=self._read, args=(mine,))
            reader.start()
            self.processes.append(process)
            self.readers.append(reader)

    def _read(self, pipe):
        with pipe:
            try:
                while (at := pipe.recv()) is not None:
                    self.times.append(at)
            except EOFError:
                pass  # it was killed

    def run(self, meanwhile):
        self.at_once.wait()
        time.sleep(SECONDS / 2)
        meanwhile(self)
        time.sleep(SECONDS / 2)
        self.over.set()
        for each in (*self.processes, *self.readers):
            each.join(30)
        return sorted(self.times)


@pytest.fixture
def store(each_redis_url):
    store = RedisStore(each_redis_url)
    yield store
    store.close()


def used(times):
    return len(times) / usable(times, PACE_US)


def test_clocks_half_a_second_apart(each_redis_url):
    """Only the clock of Redis counts."""
    times = Callers(each_redis_url, skews=(-0.25, 0.25) * 4).run(lambda callers: None)
    print(f"\n{len(times)} starts, {used(times):.1%} of limit - burst")
    assert len(times) > 20 * SECONDS
    assert most_in_window(times, 1_000_000) <= 100


def test_a_process_is_killed(each_redis_url):
    """What it had reserved is lost to nobody but itself."""

    def kill_one(callers):
        os.kill(callers.processes[0].pid, signal.SIGKILL)

    callers = Callers(each_redis_url)
    times = callers.run(kill_one)
    print(f"\n{len(times)} starts, {used(times):.1%} of limit - burst")
    assert callers.processes[0].exitcode == -signal.SIGKILL
    assert len(times) > 20 * SECONDS
    assert most_in_window(times, 1_000_000) <= 100


def test_the_rate_changes(each_redis_url, store):
    """Half the rate holds for all of them from then on: no window holds more, and none more than before."""
    told = []

    def halve(callers):
        limiter(store).adjust_rate(0.5)
        told.append(max(callers.times))

    times = Callers(each_redis_url).run(halve)
    later = [at for at in times if at > told[0] + 1_000_000]
    print(f"\n{len(times)} starts, {len(later)} of them later")
    assert most_in_window(times, 1_000_000) <= 100
    assert 0 < most_in_window(later, 1_000_000) <= 51


def test_a_gate_closes(each_redis_url, store):
    """Nobody starts while it is closed, and nobody catches up afterwards."""
    shut = []

    def close(callers):
        with pytest.raises(RateLimitError), limiter(store).acquire():
            raise RateLimitError(retry_after_s=1.2)
        shut.append(store.limits([limiter().spec])[0].gate_until_us)

    times = Callers(each_redis_url).run(close)
    assert not [at for at in times if shut[0] - 1_000_000 < at < shut[0]]
    assert [at for at in times if at >= shut[0]]
    assert most_in_window(times, 1_000_000) <= 100
