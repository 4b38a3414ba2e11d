"""A limiter on its own: it blocks, learns from headers and 429s, and tells what it did."""

import asyncio
import json
from datetime import timedelta

import pytest

from resilience.errors import (
    ConfigurationError,
    RateLimitError,
    ServerError,
    StoreUnavailableError,
    Throttled,
)
from resilience.limiter import RateLimiter
from resilience.policy import Lane, Limit
from resilience.statistics import humanize
from resilience.store.memory import MemoryStore
from tests.unit.test_breaker import DyingStore

START_US = 1_700_000_040_000_000  # the 0th second of a minute, in the 14th hour of a day


class Clock:
    """A store whose time passes only when somebody sleeps."""

    def __init__(self):
        self.now_us = START_US
        self.store = MemoryStore(now_us=lambda: self.now_us)
        self.store.mark_fresh(["local"])

    def sleep(self, seconds):
        self.now_us += round(seconds * 1e6)

    def limiter(self, limit="10/1s", **words):
        return RateLimiter("prices", limit, store=self.store, sleep=self.sleep, **words)


@pytest.fixture
def clock():
    return Clock()


def test_ten_a_second_is_a_tenth_of_a_second(clock):
    """The first starts at once, the next after a tenth of a second: nine and a burst of one."""
    limiter = clock.limiter()
    assert limiter.wait() == 0
    assert 0.09 <= limiter.wait() <= 0.15


def test_defaults():
    """Without anything: ten a second, in this process, full."""
    limiter = RateLimiter()
    assert (limiter.name, limiter.limit.spec) == ("unknown", "10/1s")
    assert limiter.wait() == 0


def test_timeout_takes_no_place(clock):
    """Who cannot wait that long is told at once, and nobody behind it waits longer for that."""
    limiter = clock.limiter("1/1m")
    limiter.wait()
    with pytest.raises(Throttled, match="prices: the next call may start in") as told:
        limiter.wait(timeout=5)
    assert told.value.retry_after_s == pytest.approx(60, rel=1e-3)
    assert clock.now_us == START_US
    assert limiter.wait(timeout=61) == pytest.approx(60, rel=1e-3)


def test_try(clock):
    """A permit now, or none; nothing is reserved."""
    limiter = clock.limiter("1/1m")
    assert limiter.try_acquire() is not None
    assert [limiter.try_acquire() for _ in range(3)] == [None] * 3
    assert limiter.read().waiting == 0


def test_refund(clock):
    """Where nothing was sent the next one may start at once."""
    limiter = clock.limiter("1/1m")
    limiter.acquire().refund()
    with limiter.acquire() as permit:
        assert permit.waited_s == 0


def test_calls_in_flight(clock):
    """A seat is taken for the block, and comes back however it ends."""
    limiter = clock.limiter("1 at once")
    with limiter.acquire():
        assert limiter.try_acquire() is None
    with pytest.raises(ZeroDivisionError), limiter.acquire():
        raise ZeroDivisionError
    assert limiter.try_acquire() is not None
    with pytest.raises(ConfigurationError, match="acquire"):
        limiter.wait()


def test_hard_window(clock):
    """Everything at once, then nothing until the clock's next minute; never more in a minute of the clock."""
    limiter = clock.limiter(Limit("5/1m", algorithm="window"))
    clock.sleep(50)
    assert [limiter.wait() for _ in range(5)] == [0] * 5
    assert limiter.wait() == 10
    assert [limiter.wait() for _ in range(4)] == [0] * 4
    assert limiter.wait() == 60


def test_lost_window_is_used_up():
    """A store that knows nothing of this minute lets nothing start in it."""
    now = [START_US + 20_000_000]
    limiter = RateLimiter("w", Limit("5/1m", algorithm="window"), store=MemoryStore(now_us=lambda: now[0]))
    with pytest.raises(Throttled) as told:
        limiter.wait(timeout=1)
    assert told.value.retry_after_s == 40


@pytest.mark.parametrize(
    ("spec", "zone", "hours"),
    [
        ("3/1d", "UTC", 24 - 22 - 14 / 60),
        ("3/1d", "America/New_York", 24 - 17 - 14 / 60),
        ("3/1d", "Asia/Kolkata", 24 - 3 - 44 / 60),
        ("3/month", "UTC", 16 * 24 + 24 - 22 - 14 / 60),
        ("3/7d", "UTC", 5 * 24 + 24 - 22 - 14 / 60),
    ],
)
def test_budget_of_the_calendar(clock, spec, zone, hours):
    """Tuesday, 2023-11-14, 22:14 UTC: until midnight there, the end of the month, Sunday night."""
    limiter = clock.limiter(Limit(spec, midnight=zone))
    assert [limiter.wait() for _ in range(3)] == [0] * 3
    assert limiter.wait() / 3600 == pytest.approx(hours)
    assert limiter.wait() == 0


def test_days_of_23_and_25_hours():
    """Where clocks change, a day is what the calendar says."""
    spec = RateLimiter("d", Limit("3/1d", midnight="Europe/Berlin")).spec
    lengths = set()
    for hours in range(0, 366 * 24, 5):
        begin, end = spec.bounds(*[START_US + hours * 3_600_000_000] * 2)
        lengths.add((end - begin) // 3_600_000_000)
    assert lengths == {23, 24, 25}


def test_backfill_leaves_the_reserve_of_a_budget(clock):
    """While live work was seen since the day before; all of it otherwise."""
    from resilience.guard import Ask, Go, Guard
    from resilience.policy import Lane

    limiter = clock.limiter(Limit("10/1d", reserve=0.3))
    guard = Guard(clock.store)

    def backfill():
        asks = (guard.admit(Ask("local", (), (limiter,), 1, Lane.BACKFILL)) for _ in range(20))
        return sum(isinstance(verdict, Go) for verdict in asks)

    assert backfill() == 10
    clock.sleep(86_400)
    limiter.wait()
    assert backfill() == 6
    clock.sleep(3 * 86_400)
    assert backfill() == 10


def taken(limiter, lane):
    """How many calls of a lane may start now."""
    return sum(limiter.try_acquire(lane=lane) is not None for _ in range(20))


def taken_async(limiter, lane):
    async def main():
        return sum([await limiter.try_acquire_async(lane=lane) is not None for _ in range(20)])

    return asyncio.run(main())


@pytest.mark.parametrize("take", [taken, taken_async])
@pytest.mark.parametrize(
    "limit",
    [Limit("10/1d", reserve=0.3), Limit("10/1m", algorithm="window", reserve=0.3)],
    ids=lambda limit: limit.spec,
)
def test_backfill_leaves_the_reserve_to_live_work(clock, take, limit):
    """While there is any; the lane's name as a text is the lane."""
    limiter = clock.limiter(limit)
    limiter.wait(lane="live")
    assert take(limiter, Lane.BACKFILL) == 6
    assert take(limiter, Lane.LIVE) == 3


def test_backfill_waits_behind_live_work(clock):
    """Blocking and awaited; it reserves no place, so live work need not wait for it."""
    limiter = clock.limiter(Limit("10/1m", algorithm="window", reserve=0.3))
    for _ in range(8):
        limiter.wait()
    with pytest.raises(Throttled), limiter.acquire(timeout=1, lane=Lane.BACKFILL):
        pass

    async def main():
        with pytest.raises(Throttled):
            await limiter.wait_async(timeout=1, lane=Lane.BACKFILL)
        with pytest.raises(Throttled):
            async with limiter.acquire_async(timeout=1, lane=Lane.BACKFILL):
                pass

    asyncio.run(main())
    assert limiter.wait() == 0
    assert limiter.wait(lane=Lane.BACKFILL) == 60


def test_headers_of_each_family(clock):
    """What is left is kept, and obeyed."""
    limiter = clock.limiter("100/1m")
    said = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30"}
    quota = limiter.parse_rate_limit_headers(said)
    assert (quota.limit, quota.remaining, quota.reset_s) == (100, 0, 30)
    limiter.wait()
    assert limiter.endpoints["prices"] == {"limit": 100, "remaining": 0, "reset_s": 30}
    limiter.parse_rate_limit_headers(said)
    assert limiter.wait() >= 30
    assert limiter.parse_rate_limit_headers({"Date": "x"}) is None


def told(limiter, headers, **words):
    return limiter.parse_rate_limit_headers(headers, **words)


def told_async(limiter, headers, **words):
    return asyncio.run(limiter.parse_rate_limit_headers_async(headers, **words))


@pytest.mark.parametrize("tell", [told, told_async])
@pytest.mark.parametrize("spec", ["10/1s", Limit("10/1m", algorithm="window"), "10/1d", "10 at once"])
def test_retry_after_by_itself_closes_the_gate(clock, tell, spec):
    """Whatever the limit counts; it counts as a 429."""
    limiter = clock.limiter(spec)
    limiter.acquire()
    assert tell(limiter, {"retry-after": "30"}).reset_s == 30
    with pytest.raises(Throttled) as caught:
        limiter.acquire(timeout=1)
    assert caught.value.retry_after_s == 30
    assert limiter.get_stats()["total_violations"] == 1
    assert limiter.endpoints == {}


@pytest.mark.parametrize("tell", [told, told_async])
def test_retry_after_beside_a_quota(clock, tell):
    """Both are heard, and the quota is what is returned."""
    limiter = clock.limiter("10/1m")
    limiter.wait()
    headers = {"RateLimit-Limit": "10", "RateLimit-Remaining": "4", "RateLimit-Reset": "20"}
    assert tell(limiter, {**headers, "Retry-After": "45"}).left == 4
    assert limiter.endpoints["prices"]["remaining"] == 4
    assert limiter.wait() == pytest.approx(45, abs=10)


def test_retry_after_of_an_endpoint(clock):
    """Holds back that one alone; a date is compared with the server's own."""
    limiter = clock.limiter("100/1s")
    headers = {"Date": "Wed, 01 Jan 2020 10:00:00 GMT", "Retry-After": "Wed, 01 Jan 2020 10:02:00 GMT"}
    assert limiter.parse_rate_limit_headers(headers, "/a").reset_s == 120
    assert limiter.try_acquire(endpoint="/b")
    clock.sleep(1)
    with pytest.raises(Throttled) as caught:
        limiter.wait(timeout=1, endpoint="/a")
    assert caught.value.retry_after_s == 119


@pytest.mark.parametrize("text", ["0", "", "-5", "soon", "nan"])
def test_retry_after_that_names_no_wait(clock, text):
    """Nobody waits for it, and no 429 is counted."""
    limiter = clock.limiter("100/1s")
    assert limiter.parse_rate_limit_headers({"Retry-After": text}) is None
    assert limiter.try_acquire()
    assert limiter.get_stats()["total_violations"] == 0


def test_one_endpoint_blocks_no_other(clock):
    """Its own headers and 429s concern it alone; the whole counts for all."""
    limiter = clock.limiter("100/1s")
    limiter.wait(endpoint="/a")
    limiter.record_429(30, endpoint="/a")
    assert limiter.wait(endpoint="/b") < 1
    assert limiter.wait() < 1
    assert limiter.wait(endpoint="/a") == pytest.approx(30, abs=1)
    with pytest.raises(RateLimitError), limiter.acquire(endpoint="/b"):
        raise RateLimitError(retry_after_s=20)
    assert limiter.wait(endpoint="/a") < 1
    assert limiter.wait(endpoint="/b") == pytest.approx(20, abs=1)


def test_429_without_a_wait_is_a_minute(clock):
    """Doubled while they go on."""
    limiter = clock.limiter()
    for seconds in (60, 120):
        limiter.wait()
        limiter.record_429()
        assert limiter.wait() == pytest.approx(seconds, abs=0.2)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), float("-inf")])
def test_429_of_no_length(clock, seconds):
    """The number is said, and nothing is closed."""
    limiter = clock.limiter()
    for record in (limiter.record_429, lambda wait: asyncio.run(limiter.record_429_async(wait))):
        with pytest.raises(ConfigurationError, match=f"retry_after is {seconds}, but has to be seconds"):
            record(seconds)
    assert limiter.try_acquire()


def test_429_for_longer_than_a_week(clock):
    """Is one for a week, as that of a header."""
    limiter = clock.limiter()
    limiter.record_429(1e9)
    with pytest.raises(Throttled) as caught:
        limiter.wait(timeout=1)
    assert caught.value.retry_after_s == 7 * 86_400


def test_429s_of_one_moment_count_once(clock):
    """Thirty calls in flight meet the same closed gate."""
    limiter = clock.limiter(Limit("1000/1s", adaptive=True))
    permits = [limiter.acquire() for _ in range(30)]
    for permit in permits:
        with pytest.raises(RateLimitError), permit:
            raise RateLimitError
    assert limiter.get_stats()["current_global_rate_per_s"] == 500
    assert limiter.get_stats()["total_violations"] == 30


def test_adjust_rate_and_back(clock):
    """Half speed is twice the wait, in the whole fleet, until it is taken back."""
    limiter, other = clock.limiter("100/10s"), clock.limiter("100/10s")
    limiter.adjust_rate(0.5)
    other.wait()
    assert other.wait() == pytest.approx(0.2, rel=0.02)
    clock.sleep(86_400 * 3)
    assert other.get_stats()["current_global_rate_per_s"] == 5
    limiter.adjust_rate(1)
    other.wait()
    assert other.wait() == pytest.approx(0.1, rel=0.02)
    for factor in (0, -1, 1.5):
        with pytest.raises(ConfigurationError, match="factor of 0 … 1"):
            limiter.adjust_rate(factor)


def test_statistics(clock):
    """Every figure, as numbers that JSON takes, and as people read them."""
    limiter = clock.limiter()
    for _ in range(3):
        limiter.wait(endpoint="/a")
    limiter.parse_rate_limit_headers({"RateLimit-Remaining": "7", "RateLimit-Reset": "1"}, "/a")
    limiter.record_429(5, endpoint="/a")
    limiter.adjust_rate(0.25)
    stats = json.loads(json.dumps(limiter.get_stats()))
    waited_s = stats.pop("total_wait_time_s")
    assert waited_s == pytest.approx(0.22, abs=0.01)
    endpoint = stats.pop("endpoints")["/a"]
    assert endpoint.pop("backoff_until") == "2023-11-14T22:14:05.222224Z"
    assert endpoint == {
        "rate_per_s": 10.0,
        "requests_made": 3,
        "violations": 1,
        "rate_limit_remaining": 7,
        "in_backoff": True,
    }
    assert stats == {
        "limiter_name": "prices",
        "default_rate_per_s": 10.0,
        "current_global_rate_per_s": 2.5,
        "total_requests": 3,
        "total_violations": 1,
        "rate_adjustments": 1,
        "min_rate_seen_per_s": 2.5,
        "max_rate_seen_per_s": 10.0,
        "backoff_multiplier": 4.0,
        "endpoints_tracked": 1,
    }
    read = humanize(limiter.get_stats())
    assert read["total_wait_time"] == f"{waited_s:.2f}s"
    assert (read["default_rate"], read["current_global_rate"]) == ("10.00 req/s", "2.50 req/s")
    assert read["endpoints"]["/a"]["rate"] == "10.00 req/s"


def test_statistics_of_other_kinds(clock):
    """Calls in flight have no rate."""
    assert clock.limiter("5 at once").get_stats()["default_rate_per_s"] is None
    assert clock.limiter("86400/1d").get_stats()["default_rate_per_s"] == 1


@pytest.mark.parametrize(
    ("limit", "calls"),
    [("9/1m", 3), (Limit("9/1m", algorithm="window"), 3), ("9/1d", 3), ("9 at once", None)],
)
def test_statistics_of_every_kind(clock, limit, calls):
    """Calls and 429s are counted, whatever the limit counts; calls in flight only while they are."""
    limiter = clock.limiter(limit)
    for _ in range(3):
        with limiter.acquire():
            pass
    limiter.record_429(retry_after=5)
    statistics = limiter.get_stats()
    assert (statistics["total_requests"], statistics["total_violations"]) == (calls, 1)


def test_errors_say_nothing_of_the_rate(clock):
    """A server that fails is the circuit's business."""
    limiter = clock.limiter()
    with pytest.raises(ServerError), limiter.acquire():
        raise ServerError
    assert limiter.get_stats()["total_violations"] == 0


def test_all_kinds_together(clock):
    """A bucket, a window, a budget and calls in flight: unless all of them agree, none of them is spent."""
    from resilience.guard import Ask, CallResult, Go, Guard

    specs = (Limit("100/1s"), Limit("4/1m", algorithm="window"), Limit("3/1d"), Limit("2 at once"))
    limiters = tuple(RateLimiter(limit.spec, limit, store=clock.store, sleep=clock.sleep) for limit in specs)
    guard, ask = Guard(clock.store), Ask("local", (), limiters)

    def left():
        return [round(reading.left) for reading in clock.store.limits([each.spec for each in limiters])]

    first = guard.admit(ask)
    clock.sleep(1)
    second = guard.admit(ask)
    assert isinstance(first, Go)
    assert isinstance(second, Go)
    clock.sleep(1)
    for taken_back, refusal, before in ((None, "seats", [1, 2, 1, 0]), (first, "budget", [1, 1, 0, 1])):
        if taken_back:
            guard.settle(taken_back.lease, CallResult.of(None, latency_s=0.1))
            third = guard.admit(ask)
            guard.settle(third.lease, CallResult.of(None, latency_s=0.1))
            clock.sleep(1)
        assert left() == before
        assert guard.admit(ask).reason == refusal
        assert left() == before
    guard.release(second.lease)
    assert left() == [1, 2, 1, 2]


@pytest.mark.parametrize("weight", [-5, 0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("spec", ["10/1s", "2 at once", "5/1d"])
def test_weights_that_are_none(clock, spec, weight):
    """A negative one would give back what others spent."""
    limiter = clock.limiter(spec)
    before = limiter.read()
    with pytest.raises(
        ConfigurationError, match=f"a call of local has weight {weight:g}, but it has to be above 0"
    ):
        limiter.acquire(weight)
    assert limiter.read() == before


@pytest.mark.parametrize("lease", [timedelta(seconds=-1), timedelta(), timedelta(days=400)])
def test_impossible_lease(lease):
    """A seat would be free before its call began, or never."""
    with pytest.raises(ConfigurationError, match=f"lease is {lease}, but has to be 1 millisecond … 366 days"):
        RateLimiter("s", Limit("5 at once"), lease=lease)


# awaited


def test_awaited_without_waiting(clock):
    """A permit now or none, and what a call learns elsewhere: the same as blocking."""
    limiter = clock.limiter("2 at once")

    async def main():
        first, second = [await limiter.try_acquire_async() for _ in range(2)]
        assert await limiter.try_acquire_async() is None
        await first.refund_async()
        await first.refund_async()
        async with await limiter.try_acquire_async():
            assert await limiter.try_acquire_async() is None
        with pytest.raises(ZeroDivisionError):
            async with second:
                raise ZeroDivisionError

    asyncio.run(main())
    assert limiter.read().left == 2


def test_awaited_headers_and_429s(clock):
    """They hold back whoever shares the limit, or the endpoint alone."""
    limiter = clock.limiter("100/1m")
    said = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "30"}

    limiter.wait(endpoint="/a")

    async def main():
        quota = await limiter.parse_rate_limit_headers_async(said, "/a")
        await limiter.record_429_async(50, endpoint="/b")
        return quota, await limiter.parse_rate_limit_headers_async({"Date": "x"})

    quota, nothing = asyncio.run(main())
    assert (quota.remaining, quota.reset_s, nothing) == (0, 30, None)
    assert limiter.endpoints["/a"] == {"limit": 100, "remaining": 0, "reset_s": 30}
    assert limiter.wait() < 1
    assert limiter.wait(endpoint="/a") == pytest.approx(30, abs=1)
    assert limiter.wait(endpoint="/b") == pytest.approx(20, abs=1)
    asyncio.run(limiter.record_429_async())
    assert limiter.wait() >= 60


# the store is away


def by_block(limiter, func, **words):
    with limiter.acquire(**words):
        return func()


def by_block_async(limiter, func, **words):
    async def main():
        async with limiter.acquire_async(**words):
            return func()

    return asyncio.run(main())


@pytest.mark.parametrize("way", [by_block, by_block_async])
@pytest.mark.parametrize("endpoint", [None, "/a"])
@pytest.mark.parametrize("error", [None, RateLimitError(retry_after_s=3.0), KeyError("k")])
def test_a_store_that_dies_during_a_call(way, endpoint, error, caplog):
    """The call's own result or error; the seat comes back by itself."""
    store = DyingStore()
    store.mark_fresh(["local"])
    limiter = RateLimiter("s", Limit("2 at once"), store=store)

    def func():
        store.die()
        if error:
            raise error
        return "bought"

    if error:
        with pytest.raises(type(error)) as caught:
            way(limiter, func, endpoint=endpoint)
        assert caught.value is error
    else:
        assert way(limiter, func, endpoint=endpoint) == "bought"
    assert "how a call went was not heard: gone" in caplog.text
    with pytest.raises(StoreUnavailableError):
        limiter.acquire()


def test_what_is_told_while_the_store_is_away(caplog):
    """Headers, a 429, a refund: after a call nothing of it raises."""
    store = DyingStore()
    store.mark_fresh(["local"])
    limiter = RateLimiter("r", Limit("10/1s", burst=2), store=store)
    permit, another = limiter.acquire(), limiter.acquire()
    store.die()
    assert limiter.parse_rate_limit_headers({"RateLimit-Remaining": "7"}).remaining == 7
    limiter.record_429(5)
    limiter.record_latency(0.1)
    permit.refund()
    assert caplog.text.count("was not heard") == 4

    async def main():
        await limiter.parse_rate_limit_headers_async({"RateLimit-Remaining": "7"})
        await limiter.record_429_async(5)
        await another.refund_async()

    asyncio.run(main())
    assert caplog.text.count("was not heard") == 7
