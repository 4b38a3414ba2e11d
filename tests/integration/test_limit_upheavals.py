"""Eight processes on one limit, while something happens to them: it is used, and never exceeded."""

import os
import signal

import pytest

from resilience.errors import RateLimitError
from resilience.store.redis import RedisStore
from tests.integration.test_limit_exactness import (
    AMOUNT,
    PACE_US,
    WINDOW_US,
    Callers,
    limiter,
    most_in_window,
    seconds,
)

__all__ = ["seconds"]  # a fixture

GATE_US = 1_200_000


@pytest.fixture
def store(each_redis_url):
    store = RedisStore(each_redis_url)
    yield store
    store.close()


def test_clocks_half_a_second_apart(each_redis_url, seconds):
    """Only the clock of Redis counts."""
    callers = Callers(each_redis_url, skews=(-0.25, 0.25) * 4)
    callers.run(seconds)
    callers.check_used_up("clocks apart")
    callers.check_no_window_holds_more()


def test_a_process_is_killed(each_redis_url, seconds):
    """What it had reserved is lost to nobody but itself: the others use up the limit."""

    def kill_one(callers):
        os.kill(callers.processes[0].pid, signal.SIGKILL)
        callers.processes[0].join()

    callers = Callers(each_redis_url)
    callers.run(seconds, kill_one)
    assert callers.processes[0].exitcode == -signal.SIGKILL
    callers.check_used_up("before the kill", until=callers.changed)
    callers.check_used_up("after the kill", since=callers.changed)
    callers.check_no_window_holds_more()


def test_the_rate_changes(each_redis_url, store, seconds):
    """Half the rate holds for all of them from then on: no window holds more, and none more than before."""
    callers = Callers(each_redis_url)
    callers.run(seconds, lambda callers: limiter(store).adjust_rate(0.5))
    settled = callers.changed + WINDOW_US
    callers.check_used_up("the whole rate", until=callers.changed)
    callers.check_used_up("half the rate", since=settled, pace_us=2 * PACE_US)
    callers.check_no_window_holds_more()
    later = [at for at in callers.times if at > settled]
    assert 0 < most_in_window(later, WINDOW_US) <= AMOUNT / 2 + 1


def test_a_gate_closes(each_redis_url, store, seconds):
    """Nobody starts while it is closed, and nobody catches up afterwards."""
    callers = Callers(each_redis_url)

    def close(callers):
        with pytest.raises(RateLimitError), limiter(store).acquire():
            raise RateLimitError(retry_after_s=GATE_US / 1e6)
        callers.opens = store.limits([limiter().spec])[0].gate_until_us

    callers.run(seconds, close)
    closed = callers.opens - GATE_US
    assert not [at for at in callers.times if closed < at < callers.opens]
    callers.check_used_up("before the gate", until=closed)
    callers.check_used_up("after the gate", since=callers.opens)
    callers.check_no_window_holds_more()
