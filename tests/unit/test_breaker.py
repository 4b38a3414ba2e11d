"""The breaker alone, as pybreaker's users know it, and with its own verbs."""

import asyncio
import inspect
import json
import threading
from datetime import UTC, datetime, timedelta

import pybreaker
import pytest

from resilience.breaker import CircuitBreaker
from resilience.errors import (
    CircuitOpenError,
    ConfigurationError,
    NotFoundError,
    RateLimitError,
    ServerError,
    StoreUnavailableError,
)
from resilience.policy import BreakerPolicy, RetryPolicy
from resilience.retry import retry
from resilience.store import CircuitState
from resilience.store.memory import MemoryStore


class DyingStore(MemoryStore):
    """A store that a call can take away, until it is back."""

    away = False

    def die(self):
        self.away = True

    def check(self):
        if self.away:
            raise StoreUnavailableError("gone")

    def admit(self, request):
        self.check()
        return super().admit(request)

    def settle(self, report):
        self.check()
        return super().settle(report)

    def release(self, grant):
        self.check()
        return super().release(grant)


class Clock:
    def __init__(self):
        self.now_us = 1_700_000_000_000_000

    def sleep(self, seconds):
        self.now_us += round(seconds * 1e6)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(name="it", store=MemoryStore(now_us=lambda: clock.now_us))


def fail(error=ValueError):
    raise error("no")


def trip(breaker, times=5):
    for _ in range(times):
        with pytest.raises(ValueError):
            breaker.call(fail)


def test_is_a_pybreaker(breaker):
    """Wherever one is expected."""
    assert isinstance(breaker, pybreaker.CircuitBreaker)


def test_pybreakers_names():
    """By position or keyword, and they can be read back."""
    breaker = CircuitBreaker(3, 30, 2, name="it")
    assert (breaker.fail_max, breaker.reset_timeout, breaker.success_threshold) == (3, 30.0, 2)
    breaker.fail_max, breaker.reset_timeout, breaker.success_threshold = 4, 40, 5
    assert (breaker.fail_max, breaker.reset_timeout, breaker.success_threshold) == (4, 40.0, 5)
    assert breaker.policy.half_open_calls == 5


def test_policy_or_names():
    """Both at once would hide one of them."""
    with pytest.raises(ConfigurationError, match="either"):
        CircuitBreaker(fail_max=3, policy=BreakerPolicy())


def test_making_one_asks_nothing():
    """A module that declares a circuit can be imported without Redis."""
    assert CircuitBreaker(name="it", store=object()).circuit == "it"


def test_opens_after_fail_max(breaker):
    """The call that opens it raises its own error; the next is refused."""
    trip(breaker)
    assert breaker.current_state == breaker.state == breaker.state.name == "open"
    assert breaker.fail_counter == 5
    with pytest.raises(pybreaker.CircuitBreakerError) as refusal:
        breaker.call(fail)
    assert isinstance(refusal.value, CircuitOpenError)
    assert refusal.value.failure_count == 5
    assert refusal.value.retry_at


def test_the_tripping_call_may_raise_the_refusal(clock):
    """As pybreaker does, if asked."""
    breaker = CircuitBreaker(fail_max=1, name="it", throw_new_error_on_trip=True)
    with pytest.raises(CircuitOpenError) as refusal:
        breaker.call(fail)
    assert isinstance(refusal.value.__cause__, ValueError)


def test_recovers(breaker, clock):
    """Half-open when the time is over, closed after two good calls."""
    trip(breaker)
    clock.sleep(60)
    assert breaker.state.name == "half_open"
    breaker.call(int)
    assert breaker.success_counter == 1
    breaker.call(int)
    assert (breaker.state.name, breaker.fail_counter) == ("closed", 0)


def test_half_open_without_a_permit_is_a_refusal(breaker, clock):
    """Three calls at once, not four."""
    trip(breaker)
    clock.sleep(60)
    with (
        breaker.calling(),
        breaker.calling(),
        breaker.calling(),
        pytest.raises(CircuitOpenError, match="permits"),
    ):
        breaker.call(int)


def test_decorator(breaker):
    """With and without brackets, and the function's name stays."""

    @breaker
    def double(n):
        return 2 * n

    assert (double(4), double.__name__) == (8, "double")
    assert breaker()(double)(5) == 10


def test_calling(breaker):
    """The block's errors count."""
    for _ in range(5):
        with pytest.raises(ValueError), breaker.calling():
            fail()
    assert breaker.current_state == "open"


def test_generator_counts_when_it_ends(breaker):
    """Its errors come while it is read."""

    def items():
        yield 1
        fail()

    for _ in range(5):
        numbers = breaker.call(items)
        assert next(numbers) == 1
        with pytest.raises(ValueError):
            next(numbers)
    assert breaker.current_state == "open"


def test_excluded_errors_are_no_failures(clock):
    """By class or by a function; they count as a success, as in pybreaker."""
    breaker = CircuitBreaker(
        2, name="it", exclude=[KeyError, lambda error: type(error) is ValueError and error.args == ("no",)]
    )
    trip(breaker, 10)
    for _ in range(10):
        with pytest.raises(KeyError):
            breaker.call(fail, KeyError)
    assert (breaker.current_state, breaker.fail_counter) == ("closed", 0)


def test_our_errors_say_themselves_whether_they_count(breaker):
    """A 404 never trips; a 500 does."""
    for _ in range(10):
        with pytest.raises(NotFoundError):
            breaker.call(fail, NotFoundError)
    assert breaker.fail_counter == 0
    with pytest.raises(ServerError):
        breaker.call(fail, ServerError)
    assert breaker.fail_counter == 1


def test_interrupt_is_no_failure(breaker):
    """Ctrl-C says nothing about the service."""
    with pytest.raises(KeyboardInterrupt):
        breaker.call(fail, KeyboardInterrupt)
    assert breaker.fail_counter == 0


def test_by_hand(breaker):
    """Open, half-open, closed."""
    breaker.open()
    assert breaker.current_state == "open"
    breaker.half_open()
    assert breaker.current_state == "half_open"
    breaker.close()
    assert breaker.current_state == "closed"


def test_open_keeps_its_time(breaker, clock):
    """Opened by hand, it is half-open after `reset_timeout`, to the microsecond."""
    breaker.open()
    clock.sleep(59.999999)
    assert breaker.current_state == "open"
    clock.sleep(0.000001)
    assert breaker.current_state == "half_open"


class Ears(pybreaker.CircuitBreakerListener):
    def __init__(self):
        self.heard = []

    def before_call(self, cb, func, *args, **kwargs):
        self.heard.append(("before", func, args, kwargs))

    def success(self, cb):
        self.heard.append("success")

    def failure(self, cb, exc):
        self.heard.append(exc.args[0])

    def state_change(self, cb, old_state, new_state):
        self.heard.append((old_state.name, new_state.name))


def test_listeners(clock):
    """What happens, in the order in which it does."""
    ears = Ears()
    breaker = CircuitBreaker(fail_max=1, name="it", listeners=[ears])
    breaker.call(int, "12", base=3)
    with pytest.raises(ValueError):
        breaker.call(fail)
    breaker.close()
    assert ears.heard == [
        *(("before", int, ("12",), {"base": 3}), "success"),
        *(("before", fail, (), {}), "no", ("closed", "open"), ("open", "closed")),
    ]


def test_a_failing_listener_changes_nothing(breaker, caplog):
    """It is logged."""

    class Broken(pybreaker.CircuitBreakerListener):
        def success(self, cb):
            fail()

    breaker.add_listener(Broken())
    assert breaker.call(int) == 0
    assert "a listener of circuit it failed" in caplog.text


def test_calls_do_not_wait_for_each_other(breaker):
    """No lock is held during a call: eight calls meet at a barrier that needs all of them."""
    barrier = threading.Barrier(8, timeout=10)
    threads = [threading.Thread(target=breaker.call, args=(barrier.wait,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not barrier.broken


def test_two_objects_one_circuit(clock):
    """The pair of api and name is what counts."""
    store = MemoryStore(now_us=lambda: clock.now_us)
    here, there, elsewhere = (CircuitBreaker(name="it", api=api, store=store) for api in ("a", "a", "b"))
    trip(here)
    assert (there.current_state, elsewhere.current_state) == ("open", "closed")


def test_rate_alone(clock):
    """Without the rule of consecutive failures."""
    breaker = CircuitBreaker(
        name="it",
        policy=BreakerPolicy(failures=None, min_calls=4, window=timedelta(seconds=10)),
        store=MemoryStore(now_us=lambda: clock.now_us),
    )
    breaker.call(int)
    breaker.call(int)
    trip(breaker, 2)
    assert breaker.current_state == "open"


def half_open(breaker, clock):
    trip(breaker)
    clock.sleep(60)


def test_check_then_record(breaker, clock):
    """The verbs of those who make the call themselves: three failures of three open it, two good ones close it."""
    for _ in range(5):
        assert breaker.can_attempt()
        breaker.record_failure(ServerError())
    assert not breaker.can_attempt()
    clock.sleep(60)
    for state in ("half_open", "closed"):
        assert breaker.can_attempt()
        assert breaker.current_state == "half_open"
        breaker.record_success()
        assert breaker.current_state == state


def test_asking_again_takes_no_second_permit(breaker, clock):
    """Who asks ten times before a call holds one permit, not ten."""
    half_open(breaker, clock)
    assert all(breaker.can_attempt() for _ in range(10))
    assert breaker.view.free_permits == 2
    breaker.record_success()
    assert breaker.view.free_permits == 2  # of three calls one has been made


def test_a_check_without_a_record_frees_its_permit(breaker, clock):
    """After `permit_lease`, and what is recorded then comes too late to count as a probe."""
    half_open(breaker, clock)
    assert breaker.can_attempt()
    clock.sleep(35)
    assert breaker.view.free_permits == 3
    breaker.record_failure()
    assert breaker.get_status()["half_open"]["successes"] == 0
    assert breaker.current_state == "half_open"


def test_each_thread_holds_its_own(breaker, clock):
    """Three threads ask, the fourth is told to wait, and one's record leaves the others theirs."""
    half_open(breaker, clock)
    asked, record = threading.Barrier(5, timeout=10), threading.Event()
    told = []

    def ask():
        told.append(breaker.can_attempt())
        asked.wait()
        record.wait(10)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    asked.wait()
    record.set()
    for thread in threads:
        thread.join()
    assert sorted(told) == [False, True, True, True]


def test_recorded_without_asking(breaker, clock):
    """It counts as a call; half-open only where a permit is free."""
    for _ in range(5):
        breaker.record_failure()
    assert breaker.current_state == "open"
    breaker.record_success()
    assert breaker.current_state == "open"
    clock.sleep(60)
    with breaker.calling(), breaker.calling(), breaker.calling():
        for _ in range(3):
            breaker.record_failure()
    assert breaker.current_state == "closed"


def test_two_429s_open_a_circuit_of_two():
    """Where the server names no wait, each is a failure."""
    breaker = CircuitBreaker(2, name="it")
    for _ in range(2):
        assert breaker.can_attempt()
        breaker.record_failure(RateLimitError(status=429))
    assert not breaker.can_attempt()


def test_status_of_a_new_circuit(breaker):
    """Every field is there before the first call, and none is a guess."""
    assert breaker.get_status() == {
        "api": "local",
        "circuit": "it",
        "state": "closed",
        "failure_count": 0,
        "consecutive_successes": 0,
        "failure_threshold": 5,
        "open_for_s": 60.0,
        "retry_at": None,
        "last_failure_at": None,
        "last_state_change_at": None,
        "half_open": None,
        "statistics": {
            "total_successes": 0,
            "total_failures": 0,
            "circuit_opens": 0,
            "successful_recoveries": 0,
            "failed_recoveries": 0,
            "time_in_open_s": 0.0,
            "last_open_at": None,
        },
        "error_rate": 0.0,
        "health_score": 1.0,
        "health_recent": 1.0,
        "forced": None,
    }


def test_status_after_a_failed_recovery(breaker, clock):
    """What happened, in numbers and UTC: opened at 22:13:20, reopened for 90 s, now half-open again."""
    breaker.call(int)
    half_open(breaker, clock)
    for _ in range(2):
        with pytest.raises(ValueError):
            breaker.call(fail)
    clock.sleep(90)
    breaker.call(int)
    told = json.loads(json.dumps(breaker.get_status()))
    assert told["half_open"] == {
        "attempts": 1,
        "successes": 1,
        "max_calls": 3,
        "success_threshold": 2,
        "success_rate": 1.0,
    }
    assert told["statistics"] == {
        "total_successes": 2,
        "total_failures": 7,
        "circuit_opens": 2,
        "successful_recoveries": 0,
        "failed_recoveries": 1,
        "time_in_open_s": 150.0,
        "last_open_at": "2023-11-14T22:14:20Z",
    }
    assert told["open_for_s"] == 90
    assert told["last_failure_at"] == "2023-11-14T22:14:20Z"
    assert told["last_state_change_at"] == "2023-11-14T22:15:50Z"
    assert told["health_score"] == 2 / 9


def test_health_has_two_memories(breaker, clock):
    """A bad hour stays in the lifetime's score and leaves the recent one."""
    trip(breaker, 4)
    breaker.call(int)
    assert (breaker.get_status()["health_score"], breaker.get_status()["health_recent"]) == (0.2, 0.2)
    clock.sleep(3600)
    breaker.call(int)
    told = breaker.get_status()
    assert (round(told["health_score"], 3), told["health_recent"]) == (0.333, 1.0)


def test_metrics(breaker, clock):
    """The four figures, while it is open and after."""
    assert breaker.get_metrics() == {
        "state": "closed",
        "failure_count": 0,
        "error_rate": 0.0,
        "time_until_retry_s": 0.0,
    }
    breaker.call(int)
    trip(breaker)
    clock.sleep(18)
    assert breaker.get_metrics() == {
        "state": "open",
        "failure_count": 5,
        "error_rate": 5 / 6,
        "time_until_retry_s": 42.0,
    }


def test_forced_says_who_and_why(breaker, clock):
    """And until when; closing it ends that."""
    until = datetime(2023, 11, 15, tzinfo=UTC)
    breaker.force(CircuitState.FORCED_OPEN, by="ada", why="the provider has maintenance", until=until)
    assert breaker.get_status()["forced"] == {
        "by": "ada",
        "why": "the provider has maintenance",
        "since_at": "2023-11-14T22:13:20Z",
        "until_at": "2023-11-15T00:00:00Z",
    }
    with pytest.raises(CircuitOpenError, match="forced_open"):
        breaker.call(int)
    clock.sleep(3600)
    assert breaker.get_status()["statistics"]["time_in_open_s"] == 3600
    breaker.reset()
    assert (breaker.get_status()["forced"], breaker.call(int)) == (None, 0)


def test_forced_without_an_end(breaker):
    """Nobody knows when to come back."""
    breaker.force(CircuitState.FORCED_OPEN, by="ada", why="an audit")
    assert breaker.get_metrics()["time_until_retry_s"] is None


@pytest.mark.parametrize(
    ("state", "words", "told"),
    [
        (CircuitState.OPEN, {"by": "ada", "why": "an audit"}, "forced_open or disabled"),
        (CircuitState.DISABLED, {"by": " ", "why": "an audit"}, "by= takes"),
        (CircuitState.DISABLED, {"by": "ada", "why": "x" * 201}, "why= takes 1 … 200 letters, not 201"),
    ],
)
def test_force_wants_to_know(breaker, state, words, told):
    """A circuit that nobody admits to have forced is a riddle at night."""
    with pytest.raises(ConfigurationError, match=told):
        breaker.force(state, **words)


def test_callbacks_hear_transitions(clock):
    """With actor, reason and time; one that fails is only logged."""
    heard = []
    store = MemoryStore(now_us=lambda: clock.now_us, actor="here:1")
    breaker = CircuitBreaker(fail_max=1, name="it", store=store)
    breaker.on_transition(lambda change: heard.append((change.old, change.new, change.reason, change.actor)))
    breaker.on_transition(fail)
    trip(breaker, 1)
    breaker.force(CircuitState.DISABLED, by="ada", why="it errs")
    assert heard == [
        ("closed", "open", "consecutive failures", "here:1"),
        ("open", "disabled", "it errs", "ada"),
    ]


async def double(number):
    await asyncio.sleep(0)
    if number < 0:
        fail()
    return 2 * number


def test_async(clock):
    """A coroutine function is awaited under the circuit, also where several run at once."""
    breaker = CircuitBreaker(2, name="it", store=MemoryStore(now_us=lambda: clock.now_us))
    guarded = breaker(double)
    assert inspect.iscoroutinefunction(guarded)

    async def run():
        assert await asyncio.gather(*(guarded(number) for number in range(3))) == [0, 2, 4]
        for _ in range(2):
            with pytest.raises(ValueError):
                await breaker.call_async(double, -1)
        with pytest.raises(CircuitOpenError):
            await guarded(1)

    asyncio.run(run())


def test_a_cancelled_call_says_nothing(breaker, clock):
    """It gives its permit back."""
    half_open(breaker, clock)

    async def run():
        task = asyncio.create_task(breaker.call_async(asyncio.sleep, 60))
        await asyncio.sleep(0)
        assert breaker.view.free_permits == 2
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    assert (breaker.view.free_permits, breaker.current_state) == (3, "half_open")


def test_tasks_hold_their_own(breaker, clock):
    """What one asyncio task asked for another does not record."""
    half_open(breaker, clock)

    async def attempt(good):
        assert breaker.can_attempt()
        await asyncio.sleep(0)
        breaker.record_success() if good else breaker.record_failure()

    async def run():
        await asyncio.gather(attempt(good=True), attempt(good=False), attempt(good=True))

    asyncio.run(run())
    assert breaker.current_state == "closed"


def test_awaited_by_hand(breaker, clock):
    """Asking again takes no second permit, a record gives it back, and an error of a symbol only that."""

    async def attempt(record, *error):
        assert all([await breaker.can_attempt_async() for _ in range(3)])
        assert breaker.view.free_permits == 2
        await record(*error)
        return breaker.current_state

    async def main():
        for _ in range(5):
            await breaker.record_failure_async()
        assert not await breaker.can_attempt_async()
        clock.sleep(60)
        assert await attempt(breaker.record_failure_async, NotFoundError()) == "half_open"
        assert breaker.view.free_permits == 3
        assert await attempt(breaker.record_success_async) == "half_open"
        assert await breaker.can_attempt_async()
        await breaker.record_success_async()
        return breaker.current_state

    assert asyncio.run(main()) == "closed"


def test_tasks_that_await_hold_their_own(breaker, clock):
    """The fourth finds no permit, and each records what it asked for."""
    half_open(breaker, clock)

    async def attempt(good):
        if not await breaker.can_attempt_async():
            return False
        await asyncio.sleep(0)
        await (breaker.record_success_async() if good else breaker.record_failure_async())
        return True

    async def main():
        return await asyncio.gather(*(attempt(good) for good in (True, False, True, True)))

    assert asyncio.run(main()) == [True, True, True, False]
    assert breaker.current_state == "closed"


def test_methods_can_be_decorated(breaker):
    """They get their object."""

    class Shop:
        price = 3

        @breaker
        def sell(self, count):
            return count * self.price

    assert Shop().sell(2) == 6


@pytest.mark.parametrize(("calls", "successes"), [(1, 1), (3, 2), (5, 3)])
def test_other_ways_to_recover(clock, calls, successes):
    """One good call closes, or two of three, or three of five."""
    policy = BreakerPolicy(
        half_open_calls=calls, half_open_successes=successes, open_for=timedelta(seconds=300)
    )
    breaker = CircuitBreaker(name="it", policy=policy, store=MemoryStore(now_us=lambda: clock.now_us))
    trip(breaker)
    clock.sleep(300)
    for _ in range(successes):
        assert breaker.current_state == "half_open"
        breaker.call(int)
    assert breaker.current_state == "closed"


# the store is away


def by_call(breaker, func):
    return breaker.call(func)


def by_block(breaker, func):
    with breaker.calling():
        return func()


def by_decorator(breaker, func):
    return breaker(func)()


def by_generator(breaker, func):
    def items():
        yield func()

    [item] = breaker.call(items)
    return item


def by_hand(breaker, func):
    assert breaker.can_attempt()
    try:
        result = func()
    except Exception as error:
        breaker.record_failure(error)
        raise
    breaker.record_success()
    return result


def by_hand_async(breaker, func):
    async def main():
        assert await breaker.can_attempt_async()
        try:
            result = func()
        except Exception as error:
            await breaker.record_failure_async(error)
            raise
        await breaker.record_success_async()
        return result

    return asyncio.run(main())


def by_call_async(breaker, func):
    async def awaited():
        return func()

    return asyncio.run(breaker.call_async(awaited))


def by_decorator_async(breaker, func):
    @breaker
    async def awaited():
        return func()

    return asyncio.run(awaited())


def by_block_async(breaker, func):
    async def main():
        async with breaker.calling_async():
            return func()

    return asyncio.run(main())


@pytest.fixture(
    params=[
        *(by_call, by_block, by_decorator, by_generator, by_hand),
        *(by_call_async, by_decorator_async, by_block_async, by_hand_async),
    ],
    ids=lambda way: way.__name__,
)
def way(request):
    """Every way to call through a breaker."""
    return request.param


@pytest.mark.parametrize("error", [None, ServerError("its own"), NotFoundError(), KeyError("k")])
def test_a_store_that_dies_during_a_call(way, error, caplog):
    """One call, and its own result or error, whoever retries above; the loss is logged."""
    store, calls = DyingStore(), []
    breaker = CircuitBreaker(name="it", store=store)

    @retry(RetryPolicy(attempts=4, base_s=0), on=StoreUnavailableError)
    def again():
        return way(breaker, func)

    def func():
        calls.append("made")
        store.die()
        if error:
            raise error
        return "bought"

    if error:
        with pytest.raises(type(error)) as caught:
            again()
        assert caught.value is error
    else:
        assert again() == "bought"
    assert calls == ["made"]
    assert "how a call went was not heard: gone" in caplog.text


def test_no_call_begins_without_the_store(way):
    """Nothing is known, so nothing is called."""
    store, calls = DyingStore(), []
    store.die()
    with pytest.raises(StoreUnavailableError):
        way(CircuitBreaker(name="it", store=store), lambda: calls.append("made"))
    assert calls == []


@pytest.mark.parametrize("seconds", [float("nan"), 1e99, "60"])
def test_a_timeout_that_is_no_time(seconds):
    """It is named, at construction and later."""
    with pytest.raises(ConfigurationError, match=r"reset_timeout is .*, but has to be seconds"):
        CircuitBreaker(reset_timeout=seconds)
    with pytest.raises(ConfigurationError, match="reset_timeout is"):
        CircuitBreaker().reset_timeout = seconds


def test_force_takes_a_states_name_and_a_time_with_its_zone():
    """The name is as good as the state; a time without a zone could mean anything."""
    breaker = CircuitBreaker()
    with pytest.raises(ConfigurationError, match="until= takes a time with its zone"):
        breaker.force("disabled", by="ada", why="a test", until=datetime(2099, 1, 1))
    breaker.force("disabled", by="ada", why="a test")
    assert breaker.current_state == "disabled"


def test_a_wait_that_is_no_number():
    """What an error says of it is not believed, and hides neither the error nor the lease."""
    breaker = CircuitBreaker(fail_max=1)
    with pytest.raises(RateLimitError), breaker.calling():
        raise RateLimitError(retry_after_s=float("nan"))
    assert breaker.current_state == "open"  # as a 429 that names no wait
