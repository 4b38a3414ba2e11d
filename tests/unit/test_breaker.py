"""The breaker alone, as pybreaker's users know it."""

import threading
from datetime import timedelta

import pybreaker
import pytest

from resilience.breaker import CircuitBreaker
from resilience.errors import CircuitOpenError, ConfigurationError, NotFoundError, ServerError
from resilience.policy import BreakerPolicy
from resilience.store.memory import MemoryStore


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
