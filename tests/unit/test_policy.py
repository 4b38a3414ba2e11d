"""Policies say at once what is wrong with them, and reckon what follows from them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import ConfigurationError
from resilience.policy import BreakerPolicy, Limit, RetryPolicy


@pytest.mark.parametrize(
    ("spec", "amount", "window_s"),
    [
        ("6000/1m", 6000, 60),
        ("10/s", 10, 1),
        ("5000/1d", 5000, 86_400),
        ("450/15m", 450, 900),
        ("1/2h", 1, 7200),
    ],
)
def test_limit_per_window(spec, amount, window_s):
    """As the documentation writes it."""
    limit = Limit(spec)
    assert (limit.amount, limit.window_s, limit.at_once) == (amount, window_s, False)


def test_limit_at_once():
    """Calls in flight have no window."""
    limit = Limit("5 at once")
    assert (limit.amount, limit.window_s, limit.at_once) == (5, 0, True)


@pytest.mark.parametrize("spec", ["", "10", "10/1w", "ten/1m", "-1/1m", "0/1m", "0 at once", "5 at least"])
def test_limit_not_understood(spec):
    """The message shows what was written."""
    with pytest.raises(ConfigurationError, match=spec or "''"):
        Limit(spec)


@pytest.mark.parametrize("reserve", [-0.1, 1, 2])
def test_reserve_is_a_share(reserve):
    """A reserve of everything would leave backfills nothing, ever."""
    with pytest.raises(ConfigurationError, match="reserve"):
        Limit("10/1m", reserve=reserve)


def test_burst_is_one_percent():
    """At least the largest weight."""
    assert Limit("6000/1m").burst_for() == 60
    assert Limit("100/1m").burst_for() == 1
    assert Limit("100/1m").burst_for(20) == 20
    assert Limit("100/1m", burst=7).burst_for() == 7
    assert Limit("10/1m", burst=10).burst_for() == 10


def test_burst_is_counted_inside():
    """Burst and a window at this pace are the amount."""
    assert Limit("6000/1m").rate_for() == 99
    assert Limit("1/1s").rate_for() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"failures": None, "rate": None}, "needs `failures`, `rate` or `slow_rate`"),
        ({"failures": 0}, "failures is 0, but has to be a whole number of at least 1"),
        ({"failures": 2.5}, "failures is 2.5"),
        ({"rate": 0.0}, "rate is 0.0, but has to be above 0"),
        ({"rate": 1.1}, "rate is 1.1"),
        ({"slow_rate": -1}, "slow_rate is -1"),
        ({"window": timedelta(seconds=-1)}, "window is -1 day, 23:59:59, but has to be 1 millisecond"),
        ({"window": timedelta()}, "window is 0:00:00"),
        ({"min_calls": 0}, "min_calls is 0"),
        ({"open_for": timedelta()}, "open_for is 0:00:00"),
        (
            {"open_for": timedelta(hours=2)},
            r"open_max is 1:00:00, but has to be at least open_for \(2:00:00\)",
        ),
        ({"open_max": timedelta(days=999)}, "open_max is 999 days"),
        ({"growth": 0.9}, "growth is 0.9, but has to be 1"),
        ({"growth": float("nan")}, "growth is nan"),
        ({"half_open_calls": 0}, "half_open_calls is 0"),
        ({"half_open_successes": 0}, "half_open_successes is 0"),
        (
            {"half_open_successes": 4},
            r"half_open_successes is 4, but has to be at most half_open_calls \(3\)",
        ),
        ({"permit_lease": timedelta(0)}, "permit_lease is 0:00:00"),
        ({"slow_start_step": timedelta(seconds=-5)}, "slow_start_step is -1 day"),
        ({"slow_after": timedelta(0)}, "slow_after is 0:00:00"),
        ({"reopen_on": "never"}, "reopen_on is 'never', but has to be out_of_reach or first_failure"),
        ({"rate_limited_trips": 0}, "rate_limited_trips is 0"),
        ({"rate": "0.5"}, "rate is '0.5', but has to be above 0"),
        ({"window": 60}, "window is 60, but has to be 1 millisecond"),
        ({"min_calls": None}, "min_calls is None, but has to be a whole number"),
        ({"open_for": None}, "open_for is None"),
        ({"open_max": None}, "open_max is None"),
        ({"growth": None}, "growth is None"),
        ({"permit_lease": None}, "permit_lease is None"),
        ({"half_open_successes": None}, "half_open_successes is None"),
        ({"count_rate_limited": "no"}, "count_rate_limited is 'no', but has to be True or False"),
    ],
)
def test_breaker_policy_that_cannot_work(wrong, told):
    """It would never open, or never close; the message says which number, and what it has to be."""
    with pytest.raises(ConfigurationError, match=told):
        BreakerPolicy(**wrong)


def test_breaker_policy_numbers():
    """The design's defaults."""
    policy = BreakerPolicy()
    assert (policy.failures, policy.rate, policy.min_calls, policy.half_open_calls) == (5, 0.5, 20, 3)
    assert (policy.open_for, policy.growth, policy.open_max) == (
        timedelta(minutes=1),
        1.5,
        timedelta(hours=1),
    )


def test_back_off_doubles_up_to_a_minute():
    """Without jitter: 1, 2, 4 … 60."""
    policy = RetryPolicy(attempts=9, jitter="none")
    assert [policy.wait_s(attempt) for attempt in (1, 2, 3, 6, 7, 5000)] == [1, 2, 4, 32, 60, 60]


@given(st.integers(1, 50), st.floats(0, 1))
def test_full_jitter_stays_below(attempt, luck):
    """Anything from nothing to the whole wait."""
    assert 0 <= RetryPolicy().wait_s(attempt, rng=lambda: luck) <= min(60, 2 ** (attempt - 1))


@given(st.integers(1, 10), st.floats(0, 86_400), st.floats(0, 1))
def test_a_servers_wait_is_never_shortened(attempt, said_s, luck):
    """Jitter only adds."""
    assert RetryPolicy().wait_s(attempt, said_s, rng=lambda: luck) >= said_s


@pytest.mark.parametrize(
    "wrong",
    [
        {"attempts": 0},
        {"attempts": 2.5},
        {"attempts": float("nan")},
        {"max_retries": -1},
        {"max_retries": 1.5},
    ],
)
def test_no_whole_number_of_attempts(wrong):
    """Four attempts are three retries; none is nothing, and half a one is no call."""
    [(name, number)] = wrong.items()
    with pytest.raises(ConfigurationError, match=f"RetryPolicy.{name} is {number}, but has to be a whole"):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"base_s": "1"}, "base_s is '1', but has to be seconds"),
        ({"base_s": float("nan")}, "base_s is nan"),
        ({"base_s": 100, "cap_s": 1}, r"cap_s is 1, but the first wait alone is base_s \(100\)"),
        ({"factor": None}, "factor is None"),
    ],
)
def test_waits_that_cannot_be(wrong, told):
    """Seconds, and the cap not below the first of them."""
    with pytest.raises(ConfigurationError, match=told):
        RetryPolicy(**wrong)


@pytest.mark.parametrize(
    ("spec", "part"),
    [
        ("60/1x", "from 'x' on"),
        ("sixty/1m", "from 'sixty/1m' on"),
        ("5 at most", "from 'at most' on"),
        ("60/1m please", "from 'please' on"),
        ("60", "ends too early"),
        ("60/", "ends too early"),
        ("60/5", "ends too early"),
    ],
)
def test_limit_shows_what_cannot_be_read(spec, part):
    """Only the part that is wrong."""
    with pytest.raises(ConfigurationError, match=part):
        Limit(spec)


@pytest.mark.parametrize(
    ("spec", "wrong", "named"),
    [
        ("60/1m", {"burst": 0}, "burst is 0"),
        ("60/1m", {"burst": float("nan")}, "burst is nan, but has to be a whole number of at least 1"),
        ("60/1m", {"burst": 2.5}, "burst is 2.5"),
        ("60/1m", {"burst": 61}, "burst is 61, but is counted inside the limit, so at most 60"),
        ("60/0m", {}, "window of no length"),
        ("60/1m", {"reserve": 1}, "reserve is 1"),
        ("60/1m", {"on_store_away": "pray"}, "on_store_away is 'pray'"),
        ("60/1m", {"cut": 0}, "cut is 0, but has to lie in 0 … 1"),
        ("60/1m", {"default_retry_after": timedelta(hours=1)}, "default_retry_after is 1:00:00"),
        ("60/1m", {"algorithm": "leaky"}, "algorithm is 'leaky'"),
        ("60/1m", {"algorithm": "concurrency"}, "only 'N at once'"),
        ("5 at once", {"algorithm": "window"}, "only 'N at once'"),
        ("5 at once", {"reserve": 0.5}, "reserve"),
        ("60/month", {"algorithm": "bucket"}, "months differ"),
        ("60/5month", {}, "5 months"),
        ("60/1d", {"midnight": "Mars/Base"}, "no time zone"),
        ("60/1m", {"midnight": "Europe/Berlin"}, "midnight is for budgets"),
        ("60/1d", {"adaptive": True}, "adaptive is for token buckets"),
        ("60/1d", {"burst": 3}, "burst is for token buckets"),
        ("60/1m", {"min_rate": 0.5}, "adaptive=True"),
        ("60/1m", {"adaptive": True, "min_rate": 2}, "min_rate is 2"),
        ("60/1m", {"adaptive": True, "max_rate": 0.5}, "max_rate is 0.5"),
    ],
)
def test_limit_with_impossible_numbers(spec, wrong, named):
    """Which one, and why."""
    with pytest.raises(ConfigurationError, match=named):
        Limit(spec, **wrong)


@given(st.text(max_size=20))
def test_any_text_is_a_limit_or_a_sentence(text):
    """No text raises anything else."""
    try:
        limit = Limit(text)
    except ConfigurationError as error:
        told = str(error)
    else:
        told = repr(limit.spec)
    assert repr(text) in told
