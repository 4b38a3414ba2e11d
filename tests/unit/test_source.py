"""Circuit, limits and retries of one source under one name. The clock is the test's own."""

import asyncio
import json
import ssl

import pytest
import requests

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import (
    BannedError,
    CircuitOpenError,
    ConfigurationError,
    NotFoundError,
    RateLimitError,
    ServerError,
    StoreUnavailableError,
    Throttled,
)
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Lane, Limit, RetryPolicy
from resilience.retry import Retry, retry
from resilience.source import Source, with_resilience
from resilience.store.memory import MemoryStore
from tests.unit.test_breaker import DyingStore


class World:
    """A clock that only waits move, a registry on it, and an upstream that can be told to fail."""

    def __init__(self):
        self.now_us = 1_700_000_000_000_000
        self.waits, self.calls, self.errors = [], 0, []
        self.known = Circuits(MemoryStore(now_us=lambda: self.now_us))

    def sleep(self, seconds):
        self.waits.append(round(seconds, 3))
        self.now_us += round(seconds * 1e6)

    async def sleep_async(self, seconds):
        self.sleep(seconds)

    def options(self, **options):
        return {
            "known": self.known,
            "retry": RetryPolicy(jitter="none"),
            "sleep": self.sleep,
            "sleep_async": self.sleep_async,
            **options,
        }

    def source(self, name="shop", **options):
        return Source(name, **self.options(**options))

    def fetch(self, symbol="BTC"):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return symbol

    async def fetch_async(self, symbol="BTC"):
        await asyncio.sleep(0)
        return self.fetch(symbol)


@pytest.fixture
def world():
    return World()


def method(source, world, *args):
    return source.retry_with_backoff(world.fetch, *args)


def method_async(source, world, *args):
    return asyncio.run(source.retry_with_backoff_async(world.fetch_async, *args))


def decorator(source, world, *args):
    return source(world.fetch)(*args)


def decorator_async(source, world, *args):
    return asyncio.run(source(world.fetch_async)(*args))


@pytest.fixture(params=[method, method_async, decorator, decorator_async], ids=lambda form: form.__name__)
def call(request):
    """The four forms behave alike."""
    return request.param


def test_call_goes_through(world, call):
    """Arguments and result."""
    assert call(world.source(), world, "ETH") == "ETH"
    assert (world.calls, world.waits) == (1, [])


def test_each_real_call_is_recorded_once(world, call):
    """Three failures and a success are four calls to the circuit."""
    source = world.source()
    world.errors = [ServerError()] * 3
    call(source, world)
    statistics = source.get_health_status()["circuit"]["statistics"]
    assert (statistics["total_failures"], statistics["total_successes"]) == (3, 1)


def test_retry_stops_at_the_open_circuit(world, call):
    """The third failure opens it: no fourth call is tried, and none of the next caller's."""
    source = world.source(breaker=BreakerPolicy(failures=3), retry=RetryPolicy(attempts=9, jitter="none"))
    world.errors = [ServerError()] * 9
    with pytest.raises(CircuitOpenError) as caught:
        call(source, world)
    assert (world.calls, world.waits) == (3, [1, 2, 4])
    assert caught.value.retry_at is not None
    with pytest.raises(CircuitOpenError):
        call(source, world)
    assert world.calls == 3


def test_half_open_without_a_permit_is_refused(world, call):
    """Whoever probes already decides."""
    source = world.source(breaker=BreakerPolicy(half_open_calls=1, half_open_successes=1))
    source.circuit.half_open()
    with source.calling(), pytest.raises(CircuitOpenError, match="permits"):
        call(source, world)
    assert world.waits == []


def test_cancelled_calls_give_back_what_they_held(world):
    """During the call the permit and the seat, while waiting nothing is held."""
    source = world.source(
        breaker=BreakerPolicy(half_open_calls=1, half_open_successes=1), limits=["1 at once"]
    )
    source.circuit.half_open()

    async def main():
        started = asyncio.Event()

        async def hang():
            started.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(source.retry_with_backoff_async(hang))
        await started.wait()
        assert source.circuit.view.free_permits == 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert source.circuit.view.free_permits == 1
    assert source.retry_with_backoff(world.fetch) == "BTC"


def test_limits_make_it_wait(world, call):
    """Two at once, then at the limit's pace; the place is reserved."""
    source = world.source(limits=[Limit("60/1m", burst=2)])
    for _ in range(4):
        call(source, world)
    assert world.waits == pytest.approx([60 / 58] * 2, abs=0.01)


def test_patience_ends(world, call):
    """A gate that is closed for longer is told at once, with what is left of it."""
    source = world.source(limits=["60/1m"], patience_s=30)
    source.record_rate_limit(90)
    with pytest.raises(Throttled) as caught:
        call(source, world)
    assert (caught.value.retry_after_s, world.waits, world.calls) == (90, [], 0)


def test_patience_is_for_all_waits_together(world):
    """Not for each of them anew."""
    source = world.source(limits=["60/1m"], patience_s=30)
    source.record_rate_limit(20)
    source.guard.admit(source.ask)

    def sleep(seconds):
        world.sleep(seconds)
        source.record_rate_limit(20)

    source._sleep = sleep
    with pytest.raises(Throttled):
        source.retry_with_backoff(world.fetch)
    assert world.waits == [20]


def test_a_429_holds_back_everybody(world, call):
    """The server's wait, by the gate and not by the retry's own: nobody else calls meanwhile."""
    source, other = world.source(limits=["600/1m"]), world.source(limits=["600/1m"], patience_s=5)
    world.errors = [RateLimitError(retry_after_s=30.0)]

    def sleep(seconds):
        with pytest.raises(Throttled):
            other.retry_with_backoff(world.fetch)
        world.sleep(seconds)

    async def sleep_async(seconds):
        sleep(seconds)

    source.retry.sleep, source.retry.sleep_async = sleep, sleep_async
    call(source, world)
    assert world.calls == 2
    assert 30 <= world.waits[0] <= 31


def test_a_bad_symbol_opens_nothing(world, call):
    """Our errors say themselves what they are about."""
    source = world.source(breaker=BreakerPolicy(failures=2))
    for _ in range(5):
        world.errors = [NotFoundError()]
        with pytest.raises(NotFoundError):
            call(source, world)
    assert source.check_circuit_breaker()


def test_errors_of_others_count_unless_excluded(world, call):
    """As every breaker's users expect."""
    own = CircuitBreaker(2, exclude=[KeyError], name="own", api="shop", store=world.known.store)
    source = world.source(circuit=own)
    for error in [KeyError()] * 3 + [ValueError()] * 2:
        world.errors = [error]
        with pytest.raises(type(error)):
            call(source, world)
    assert not source.check_circuit_breaker()


def test_a_source_is_its_name(world):
    """Two objects of one name share circuit and limits; another name or circuit shares nothing."""
    one, same, other = world.source(), world.source(), world.source("other")
    endpoint = world.source(circuit="klines")
    one.circuit.open()
    assert [each.check_circuit_breaker() for each in (one, same, other, endpoint)] == [
        False,
        False,
        True,
        True,
    ]
    assert sorted(world.known.views()) == ["other/all", "shop/all", "shop/klines"]


def test_verbs_for_calls_made_elsewhere(world):
    """check, record_failure, record_success, record_rate_limit: a loop of one's own."""
    source = world.source(breaker=BreakerPolicy(failures=2), limits=["60/1m"])
    source.record_failure(ServerError())
    source.record_success()
    source.record_failure()
    assert source.check_circuit_breaker()
    source.record_failure(NotFoundError())
    assert source.check_circuit_breaker()
    source.record_failure(ServerError())
    assert not source.check_circuit_breaker()
    source.reset()
    assert source.check_circuit_breaker()
    source.record_rate_limit()
    with pytest.raises(Throttled) as caught:
        world.source(limits=["60/1m"], patience_s=1).retry_with_backoff(world.fetch)
    assert caught.value.retry_after_s == 60


def test_awaited_verbs_for_calls_made_elsewhere(world):
    """The same decisions, and the same counts."""
    source = world.source(breaker=BreakerPolicy(failures=2), limits=["60/1m"])

    async def main():
        await source.record_failure_async(ServerError())
        await source.record_success_async()
        await source.record_failure_async()
        await source.record_failure_async(NotFoundError())
        assert await source.check_circuit_breaker_async()
        await source.record_failure_async(ServerError())
        assert not await source.check_circuit_breaker_async()
        source.circuit.close()
        await source.record_rate_limit_async(30)

    asyncio.run(main())
    health = source.get_health_status()
    assert (health["calls"], health["failures"], health["last_error"]) == (5, 4, "ServerError")
    with pytest.raises(Throttled) as caught:
        world.source(limits=["60/1m"], patience_s=1).retry_with_backoff(world.fetch)
    assert caught.value.retry_after_s == 30


def failed(source, error):
    source.record_failure(error)


def failed_async(source, error):
    asyncio.run(source.record_failure_async(error))


@pytest.mark.parametrize("record", [failed, failed_async])
@pytest.mark.parametrize("limits", [["600/1m"], []])
@pytest.mark.parametrize("kind", [RateLimitError, BannedError])
def test_recorded_429s_and_bans_hold_back_everybody(world, record, kind, limits):
    """For as long as the server said; the circuit leaves them to the limits."""
    source, other = world.source(limits=limits), world.source(limits=limits, patience_s=5)
    record(source, kind(retry_after_s=600))
    with pytest.raises(Throttled) as caught:
        other.retry_with_backoff(world.fetch)
    assert caught.value.retry_after_s == 600
    assert source.check_circuit_breaker()


@pytest.mark.parametrize("record", [failed, failed_async])
def test_a_recorded_429_that_names_no_wait(world, record):
    """Is a minute for the limits, and a failure for the circuit: one, not two."""
    source = world.source(limits=["600/1m"])
    record(source, RateLimitError())
    assert source.circuit.fail_counter == 1
    with pytest.raises(Throttled) as caught:
        world.source(limits=["600/1m"], patience_s=5).retry_with_backoff(world.fetch)
    assert caught.value.retry_after_s == 60


def test_a_recorded_429_gives_back_the_permit(world):
    """Of a half-open circuit that was asked by hand."""
    source = world.source(breaker=BreakerPolicy(half_open_calls=1, half_open_successes=1))
    source.circuit.half_open()
    assert source.circuit.can_attempt()
    source.record_failure(RateLimitError(retry_after_s=5))
    assert source.circuit.view.free_permits == 1


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_rate_limit_of_no_length(world, seconds):
    """Closes nothing."""
    source = world.source(limits=["60/1m"], patience_s=0)
    with pytest.raises(ConfigurationError, match=f"retry_after is {seconds}"):
        source.record_rate_limit(seconds)
    with pytest.raises(ConfigurationError, match=f"retry_after is {seconds}"):
        asyncio.run(source.record_rate_limit_async(seconds))
    assert source.retry_with_backoff(world.fetch) == "BTC"


def test_check_only_looks(world):
    """It takes no permit of a half-open circuit."""
    source = world.source(breaker=BreakerPolicy(half_open_calls=1, half_open_successes=1))
    source.circuit.half_open()
    assert [source.check_circuit_breaker() for _ in range(3)] == [True] * 3
    with source.calling():
        assert not source.check_circuit_breaker()


def test_health(world, call):
    """The circuit's state and what was called, as JSON."""
    source = world.source(breaker=BreakerPolicy(failures=3))
    world.errors = [ServerError(), ServerError()]
    call(source, world)
    world.errors = [ServerError()] * 3
    with pytest.raises(CircuitOpenError):
        call(source, world)
    health = source.get_health_status()
    assert json.loads(json.dumps(health)) == health
    assert health["source"] == "shop"
    assert health["circuit"]["state"] == "open"
    assert health["last_error_at"].endswith("Z")
    assert {name: health[name] for name in ("calls", "retries", "failures", "refused", "last_error")} == {
        "calls": 6,
        "retries": 4,
        "failures": 5,
        "refused": 1,
        "last_error": "ServerError",
    }


def test_decorator_by_name(world):
    """The circuit is looked up once, by api and function: calls of one function share it, and it opens."""
    options = world.options(breaker=BreakerPolicy(failures=2), retry=RetryPolicy(attempts=1))

    @with_resilience("shop", **options)
    def klines():
        """Told."""
        return world.fetch()

    @with_resilience("shop", **options)
    async def trades():
        return await world.fetch_async()

    for _ in range(2):
        world.errors = [ServerError()]
        with pytest.raises(ServerError):
            klines()
    with pytest.raises(CircuitOpenError):
        klines()
    assert asyncio.run(trades()) == "BTC"
    assert (klines.__name__, klines.__doc__) == ("klines", "Told.")
    assert {name: view.state for name, view in world.known.views().items()} == {
        "shop/klines": "open",
        "shop/trades": "closed",
    }


def test_a_breaker_above_a_retry_counts_how_it_ended(world):
    """The coarse reading: four calls that failed are one failure."""
    breaker = CircuitBreaker(2, name="coarse", store=world.known.store)

    @breaker
    @retry(RetryPolicy(attempts=4), sleep=world.sleep)
    def fetch():
        return world.fetch()

    world.errors = [ServerError()] * 3
    fetch()
    assert breaker.fail_counter == 0
    world.errors = [ServerError()] * 4
    with pytest.raises(ServerError):
        fetch()
    assert (world.calls, breaker.fail_counter) == (8, 1)


def test_a_retry_of_ones_own(world, call):
    """With what a policy does not say."""
    heard = []
    source = world.source(
        retry=Retry(
            RetryPolicy(attempts=2),
            on=KeyError,
            on_retry=heard.append,
            sleep=world.sleep,
            sleep_async=world.sleep_async,
        )
    )
    world.errors = [KeyError()]
    call(source, world)
    assert "fetch" in heard[0].name


# which errors are retried


class ExchangeError(Exception):
    """Of no builtin kind."""


FOREIGN = [
    requests.ConnectionError("refused"),
    requests.Timeout(),
    ExchangeError("as libraries of exchanges have it, and clients such as httpx"),
    ConnectionResetError(),
    OSError("the network is down"),
    Exception("who knows"),
]
MISTAKES = [
    TypeError(),
    ValueError(),
    KeyError(),
    AttributeError(),
    IndexError(),
    ZeroDivisionError(),
    NotImplementedError(),
    ssl.SSLCertVerificationError(),
    requests.exceptions.MissingSchema(),
]


@pytest.mark.parametrize("error", [*FOREIGN, ServerError()], ids=lambda error: type(error).__name__)
def test_what_the_circuit_counts_is_retried(world, call, error):
    """Errors of any client, whatever class it has for them."""
    source = world.source()
    world.errors = [error, error]
    assert call(source, world) == "BTC"
    assert (world.calls, world.waits) == (3, [1, 2])
    assert source.circuit.view.reading.total_failures == 2


@pytest.mark.parametrize("error", [*MISTAKES, NotFoundError()], ids=lambda error: type(error).__name__)
def test_mistakes_are_not_retried(world, call, error):
    """Nor what says itself that another call would not mend it."""
    world.errors = [error]
    with pytest.raises(type(error)):
        call(world.source(), world)
    assert (world.calls, world.waits) == (1, [])


def test_what_the_circuit_excludes_is_not_retried(world, call):
    """It is an answer and no failure."""
    own = CircuitBreaker(exclude=[ExchangeError], name="own", api="shop", store=world.known.store)
    world.errors = [ExchangeError()]
    with pytest.raises(ExchangeError):
        call(world.source(circuit=own), world)
    assert world.calls == 1


@pytest.mark.parametrize("on", [KeyError, (KeyError,), lambda error: isinstance(error, KeyError)])
@pytest.mark.parametrize("retry", [RetryPolicy(attempts=2), Retry(RetryPolicy(attempts=2, base_s=0))])
def test_on_says_which(world, call, on, retry):
    """In place of all that; a Retry that names none takes the source's."""
    world.errors = [KeyError(), ServerError()]
    with pytest.raises(ServerError):
        call(world.source(on=on, retry=retry), world)
    assert world.calls == 2


def test_a_retry_that_names_no_errors_is_not_changed(world):
    """Whoever else uses it has its own rule; in the source it retries what the source says."""
    own = Retry(RetryPolicy(attempts=2, base_s=0))
    world.errors = [ExchangeError()]
    assert world.source(retry=own).retry_with_backoff(world.fetch) == "BTC"
    assert own.on is None


def test_decorator_by_name_takes_on(world):
    """As every option of a source."""
    world.errors = [ValueError(), ValueError()]
    assert with_resilience("shop", **world.options(on=ValueError))(world.fetch)() == "BTC"


# what shows no end


def rows():
    yield 1
    raise ServerError


async def rows_async():
    yield 1


@pytest.mark.parametrize("func", [rows, rows_async])
@pytest.mark.parametrize(
    "way",
    [
        lambda source, func: source(func),
        lambda source, func: source.retry_with_backoff(func),
        lambda source, func: asyncio.run(source.retry_with_backoff_async(func)),
    ],
)
def test_generators_are_refused(world, way, func):
    """Their end comes after the call's: it would count as good whatever becomes of it."""
    source = world.source()
    with pytest.raises(ConfigurationError, match="is a generator"):
        way(source, func)
    assert source.get_health_status()["calls"] == 0


def test_a_coroutine_that_nobody_awaits_is_no_success(world):
    """Neither as a coroutine function nor where a function hides it."""
    source = world.source()
    with pytest.raises(ConfigurationError, match="await the form that ends in _async"):
        source.retry_with_backoff(world.fetch_async)
    assert source.get_health_status()["calls"] == 0
    with pytest.raises(ConfigurationError, match="await the form that ends in _async"):
        source(lambda: world.fetch_async())()  # noqa: PLW0108 - it hides that this is one
    assert source.get_health_status()["circuit"]["statistics"]["total_successes"] == 0
    assert source.circuit.fail_counter == 0
    assert world.calls == 0


# weights and lanes


def test_weight(world, call):
    """Of each call, unless a block names its own."""
    source = world.source(limits=[Limit("60/1m", algorithm="window")], weight=20, patience_s=0)
    call(source, world)
    with source.calling(weight=39):
        pass
    with pytest.raises(Throttled):
        call(source, world)
    with source.calling(weight=1), pytest.raises(Throttled), source.calling(weight=1):
        pass


def test_lane(world, call):
    """A backfill leaves the reserve to live work, blocking and awaited."""
    options = {"limits": [Limit("10/1m", algorithm="window", reserve=0.3)], "patience_s": 0}
    live, backfill = world.source(**options), world.source(**options, lane=Lane.BACKFILL)
    call(live, world)
    for _ in range(6):
        call(backfill, world)
    with pytest.raises(Throttled):
        call(backfill, world)
    with pytest.raises(Throttled), live.calling(lane=Lane.BACKFILL):
        pass

    async def main():
        with pytest.raises(Throttled):
            async with live.calling_async(lane=Lane.BACKFILL):
                pass
        async with backfill.calling_async(lane=Lane.LIVE, weight=2):
            pass

    asyncio.run(main())
    call(live, world)
    with pytest.raises(Throttled):
        call(live, world)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limits": ["6000"]}, "6000"),
        ({"limits": [Limit("60/1m", per=str)]}, "RateLimiter"),
        ({"circuit": CircuitBreaker(name="own"), "breaker": BreakerPolicy()}, "its own policy"),
        ({"patience_s": -5}, "shop: patience_s is -5, but has to be 0 or more"),
        ({"patience_s": float("nan")}, "patience_s is nan"),
        ({"patience_s": float("inf")}, "patience_s is inf"),
        ({"on": KeyError, "retry": Retry(on=OSError)}, "the Retry says already which errors"),
        ({"limits": ["60/1m"], "weight": -1}, "weight -1, but it has to be above 0"),
        ({"limits": ["60/1m"], "weight": 2}, "a call of weight 2 does not fit limit 60/1m of shop"),
    ],
)
def test_what_is_wrong_is_said_at_once(world, options, said):
    """At construction."""
    with pytest.raises(ConfigurationError, match=said):
        world.source(**options)


def test_a_limiter_of_ones_own(world):
    """One per account, say."""
    limiter = RateLimiter("orders", Limit("1 at once"), api="shop", key="account-7")
    source, other = [world.source(limits=[limiter], patience_s=0.5) for _ in range(2)]
    with source.calling(), pytest.raises(Throttled) as caught:
        other.retry_with_backoff(world.fetch)
    assert caught.value.limit == "orders"


# the store is away


def by_with_resilience(source, world):
    return with_resilience("shop", **world.options())(world.fetch)()


def by_with_resilience_async(source, world):
    return asyncio.run(with_resilience("shop", **world.options())(world.fetch_async)())


def by_block(source, world):
    with source.calling():
        return world.fetch()


def by_block_async(source, world):
    async def main():
        async with source.calling_async():
            return await world.fetch_async()

    return asyncio.run(main())


WAYS = [
    *(method, method_async, decorator, decorator_async),
    *(by_with_resilience, by_with_resilience_async, by_block, by_block_async),
]


class DyingWorld(World):
    """Whose store goes away during a call."""

    def __init__(self):
        super().__init__()
        self.store = DyingStore(now_us=lambda: self.now_us)
        self.known = Circuits(self.store)

    def fetch(self, symbol="BTC"):
        self.store.die()
        return super().fetch(symbol)


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.parametrize("error", [None, NotFoundError(), KeyError("k")])
def test_a_store_that_dies_during_a_call(way, error):
    """One call, and its own result or error."""
    world = DyingWorld()
    world.errors = [error] if error else []
    if error:
        with pytest.raises(type(error)) as caught:
            way(world.source(), world)
        assert caught.value is error
    else:
        assert way(world.source(), world) == "BTC"
    assert world.calls == 1


def test_an_error_worth_it_is_retried_until_the_store_is_asked(call):
    """The first call's error is heard by the retry; the second call does not begin."""
    world = DyingWorld()
    world.errors = [ServerError()]
    with pytest.raises(StoreUnavailableError):
        call(world.source(), world)
    assert world.calls == 1


def test_what_is_recorded_while_the_store_is_away():
    """Is lost, and no error of the program's call."""
    world = DyingWorld()
    source = world.source(limits=["60/1m"])
    world.store.die()
    source.record_success()
    source.record_failure(ServerError())
    source.record_rate_limit(30)

    async def main():
        await source.record_success_async()
        await source.record_failure_async(ServerError())
        await source.record_rate_limit_async(30)

    asyncio.run(main())
    world.store.away = False
    assert source.circuit.fail_counter == 0
