"""An adaptive rate: from headers, from 429s, from the time that answers take; and it never passes the limit."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.guard import Ask, CallResult, Go, Guard, Kind
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.store.memory import MemoryStore

MINUTE_US = 60_000_000


class World:
    """A limit of a hundred a second, say, and the server's answers to its calls."""

    def __init__(self, limit):
        self.now_us = 1_700_000_000_000_000
        self.store = MemoryStore(now_us=lambda: self.now_us)
        self.store.mark_fresh(["local"])
        self.guard = Guard(self.store)
        self.limiter = RateLimiter("r", limit, store=self.store)

    def pass_by(self, seconds):
        self.now_us += round(seconds * 1e6)

    def call(self, kind=Kind.SUCCESS, latency_s=1.0, **said):
        ask, ticket = Ask("local", (), (self.limiter,)), None
        while not isinstance(verdict := self.guard.admit(ask, ticket=ticket), Go):
            self.pass_by(verdict.seconds)
            ticket = verdict.ticket
        self.guard.settle(verdict.lease, CallResult(kind, latency_s, **said))

    def calls(self, seconds, every_s=1.0, **words):
        end = self.now_us + seconds * 1e6
        while self.now_us < end:
            self.call(**words)
            self.pass_by(every_s)

    @property
    def rate(self):
        return self.limiter.get_stats()["current_global_rate_per_s"]


def left(remaining, reset_s):
    return {"X-RateLimit-Remaining": str(remaining), "X-RateLimit-Reset": str(reset_s)}


@pytest.fixture
def world():
    return World(Limit("6000/1m", adaptive=True))


def test_seventy_percent_of_what_is_left(world):
    """1,000 calls in 50 seconds are 20 a second: 14 of them, until the server starts anew."""
    world.call(headers=left(1000, 50))
    assert world.rate == pytest.approx(14, rel=0.02)
    world.call(headers=left(1000, 25))
    assert world.rate == pytest.approx(28, rel=0.02)
    world.pass_by(26)
    assert world.rate == 100


def test_headers_of_an_error_speed_nothing_up(world):
    """They may slow it down."""
    world.call(headers=left(1000, 50))
    world.call(Kind.FAILURE, headers=left(4000, 50))
    assert world.rate == pytest.approx(14, rel=0.02)
    world.call(Kind.FAILURE, headers=left(500, 50))
    assert world.rate == pytest.approx(7, rel=0.02)


def test_without_headers_nothing_changes(world):
    """A second is neither slow nor fast."""
    world.calls(30)
    assert world.rate == 100


def test_half_after_each_429(world):
    """One that names no wait; a sixteenth at most."""
    rates = []
    for _ in range(6):
        world.call(Kind.THROTTLED)
        rates.append(world.rate)
    assert rates == [50, 25, 12.5, 6.25, 6.25, 6.25]
    assert world.limiter.get_stats()["backoff_multiplier"] == 16


def test_floor():
    """Or the least rate that was declared."""
    world = World(Limit("6000/1m", adaptive=True, min_rate=40))
    for _ in range(3):
        world.call(Kind.THROTTLED)
    assert world.rate == 40


def test_429_with_a_wait_cuts_nothing(world):
    """Then the server said when to come back, and the gate keeps to it."""
    world.call(Kind.THROTTLED, retry_after_s=3)
    assert world.rate == 100


def test_recovery_after_five_quiet_minutes(world):
    """A tenth of the limit every minute, and none of it before."""
    for _ in range(4):
        world.call(Kind.THROTTLED)
    world.pass_by(15 * 60)  # the gate
    assert world.rate == 6.25
    world.call(Kind.THROTTLED, retry_after_s=1)
    world.calls(290)
    assert world.rate == 6.25
    world.calls(12)
    assert world.rate == pytest.approx(16.25)
    world.calls(60)
    assert world.rate == pytest.approx(26.25)
    world.calls(600)
    assert world.rate == 100


def test_backoff_ignores_fast_answers(world):
    """Speed of answers counts only near normal operation."""
    for _ in range(3):
        world.call(Kind.THROTTLED)
    world.calls(200, latency_s=0.01)
    assert world.rate == 12.5


def test_slow_answers_slow_down_to_half(world):
    """A tenth less every five seconds; fast ones bring it back."""
    world.call(latency_s=2.5)
    assert world.rate == pytest.approx(90)
    world.calls(4, latency_s=2.5)
    assert world.rate == pytest.approx(90)
    world.calls(120, latency_s=2.5)
    assert world.rate == 50
    world.calls(12, latency_s=0.1)
    assert 55 <= world.rate < 66
    world.calls(120, latency_s=0.1)
    assert world.rate == 100


def test_errors_speed_nothing_up(world):
    """A server that fails fast is not one that gets on."""
    world.calls(60, latency_s=3)
    slow = world.rate
    world.calls(60, kind=Kind.FAILURE, latency_s=0.01)
    assert world.rate == slow < 100


def test_ceiling():
    """The limit itself, or a higher one that was declared."""
    world = World(Limit("10/1s", adaptive=True, max_rate=20))
    assert world.rate == 10
    world.calls(300, latency_s=0.1)
    assert world.rate == 20
    assert world.limiter.get_stats()["backoff_multiplier"] == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(Kind),
            st.sampled_from([0.0, 0.1, 1.0, 5.0]),
            st.sampled_from([None, None, 0.5, 90.0]),
            st.sampled_from([None, left(0, 5), left(3, 60), left(6000, 60), left(10**9, 1), left("x", -1)]),
            st.sampled_from([0.0, 0.1, 7.0, 400.0]),
        ),
        max_size=60,
    )
)
def test_never_over_the_limit_nor_under_the_floor(answers):
    """Whatever a server answers, and how often."""
    world = World(Limit("600/1m", adaptive=True))
    for kind, latency_s, retry_after_s, headers, pause_s in answers:
        world.call(kind, latency_s, retry_after_s=retry_after_s, headers=headers)
        assert 10 / 16 - 1e-9 <= world.rate <= 10
        world.pass_by(pause_s)
