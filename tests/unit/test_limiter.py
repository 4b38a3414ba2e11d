"""A limit in numbers, and the proof that they hold."""

import random
from datetime import timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from resilience.errors import ConfigurationError
from resilience.guard import Ask, Go, Guard, Wait
from resilience.limiter import RateLimiter
from resilience.policy import Lane, Limit
from resilience.store import RateSpec, SeatSpec
from resilience.store.memory import MemoryStore


class World:
    """A guard with a clock of its own; `fresh`: nobody was calling before."""

    def __init__(self, *, fresh=True):
        self.now_us = 1_700_000_000_000_000
        store = MemoryStore(now_us=lambda: self.now_us)
        if fresh:
            store.mark_fresh(["a"])
        self.guard = Guard(store)


def most_in_window(started, window_us):
    """The heaviest window of any phase, both ends included."""
    return max(sum(w for at, w in started if begin <= at <= begin + window_us) for begin, _ in started)


def test_seats_and_rates():
    """Two kinds of limit."""
    assert isinstance(RateLimiter("r", Limit("10/1m"), api="a", key="k").spec, RateSpec)
    seats = RateLimiter("s", Limit("5 at once"), api="a", key="k", lease=timedelta(seconds=7)).spec
    assert (type(seats), seats.seats, seats.lease_us) == (SeatSpec, 5, 7_000_000)


def test_weight_above_the_limit():
    """Such a call could never start."""
    with pytest.raises(ConfigurationError, match="never fits"):
        RateLimiter("r", Limit("10/1m"), api="a", key="k", weight_max=11)


@settings(max_examples=100, deadline=None)
@given(
    st.integers(1, 130),
    st.sampled_from(["1s", "10s", "1m"]),
    st.integers(1, 9),
    st.integers(0, 9999),
    st.booleans(),
)
@example(1, "1s", 1, 1, False)
@example(2, "1s", 2, 1, False)
def test_no_window_of_any_phase_holds_more(amount, window, heaviest, seed, fresh):
    """Whatever the weights, the lanes, the tickets and however late they are redeemed."""
    heaviest, luck = min(heaviest, amount), random.Random(seed)
    limiter = RateLimiter(
        "r", Limit(f"{amount}/{window}", reserve=0.3), api="a", key="k", weight_max=heaviest
    )
    world, tickets, started = World(fresh=fresh), [], []
    for _ in range(250):
        lane = luck.choice([Lane.LIVE, Lane.LIVE, Lane.BACKFILL])
        weight = luck.randint(1, heaviest)
        ticket = tickets.pop(luck.randrange(len(tickets))) if tickets and luck.random() < 0.6 else None
        verdict = world.guard.admit(Ask("a", (), (limiter,), weight, lane), ticket=ticket)
        if isinstance(verdict, Go):
            started.append((world.now_us, weight))
        elif verdict.ticket:
            tickets.append(verdict.ticket)
        world.now_us += round(limiter.spec.unit_us * luck.choice([0, 0, 0.1, 0.99, 1, 2.5]))
    if started:
        assert most_in_window(started, limiter.spec.window_us) <= amount


def workers(limiter, count, lateness_s, seconds):
    """So many workers that call without a break, each coming a little late: when they start, in µs."""
    world, luck = World(), random.Random(7)
    ask = Ask("a", (), (limiter,))
    due, tickets, started = [world.now_us] * count, [None] * count, []
    end = world.now_us + seconds * 1_000_000
    while world.now_us < end:
        worker = min(range(count), key=due.__getitem__)
        world.now_us = max(world.now_us, due[worker])
        verdict = world.guard.admit(ask, ticket=tickets[worker])
        tickets[worker] = None
        wait_s = 0.0
        if isinstance(verdict, Wait):
            wait_s, tickets[worker] = verdict.seconds, verdict.ticket
        else:
            started.append((world.now_us, 1))
        due[worker] = world.now_us + round((wait_s + lateness_s(luck)) * 1e6)
    return started


def jitter(luck):
    return luck.uniform(0.0002, 0.004)


def stalls(luck):
    """Mostly a millisecond, sometimes the scheduler keeps one waiting for fifty."""
    return 0.05 if luck.random() < 0.004 else luck.uniform(0.0002, 0.002)


@pytest.mark.parametrize("lateness_s", [jitter, stalls])
def test_eight_late_workers_use_the_limit(lateness_s):
    """At least 98 % of limit - burst, and no window above the limit."""
    limiter = RateLimiter("r", Limit("100/1s"), api="a", key="k")
    started = workers(limiter, 8, lateness_s, seconds=20)
    assert most_in_window(started, 1_000_000) <= 100
    assert len(started) >= 0.98 * 99 * 20


def test_later_workers_use_a_larger_limit():
    """The burst makes up for it: workers that come up to a quarter of a second late lose nothing."""
    limiter = RateLimiter("r", Limit("3000/30s"), api="a", key="k")
    started = workers(limiter, 50, lambda luck: luck.uniform(0.01, 0.25), seconds=35)
    assert most_in_window(started, 30_000_000) <= 3000
    assert len(started) >= 0.98 * 99 * 35
