"""Calls that are made again. The clock is the test's own: nothing here waits."""

import asyncio
import functools
import inspect
import logging
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import (
    ApiTimeoutError,
    CircuitOpenError,
    ConfigurationError,
    NotFoundError,
    PenstockError,
    RateLimitError,
    RetryExhaustedError,
    ServerError,
    StoreUnavailableError,
    Throttled,
)
from resilience.policy import RetryPolicy
from resilience.retry import Retry, RetryBudget, retry
from resilience.store.memory import MemoryStore


class World:
    """A clock that only waits move, and what was waited."""

    def __init__(self):
        self.now_s = 1000.0
        self.waits = []

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now_s += seconds

    async def sleep_async(self, seconds):
        self.sleep(seconds)

    def retry(self, policy=None, **options):
        policy = policy or RetryPolicy(jitter="none")
        return Retry(
            policy, clock=lambda: self.now_s, sleep=self.sleep, sleep_async=self.sleep_async, **options
        )


@pytest.fixture
def world():
    return World()


class Upstream:
    """Fails with each of the errors, then answers."""

    def __init__(self, *errors, takes_s=0.0, world=None):
        self.errors, self.calls, self.takes_s, self.world = list(errors), 0, takes_s, world

    def fetch(self, *args, **kwargs):
        self.calls += 1
        if self.world:
            self.world.now_s += self.takes_s
        if self.errors:
            raise self.errors.pop(0)
        return args, kwargs

    async def fetch_async(self, *args, **kwargs):
        await asyncio.sleep(0)
        return self.fetch(*args, **kwargs)


def sync_call(retrying, upstream, *args, **kwargs):
    return retrying.call(upstream.fetch, *args, **kwargs)


def async_call(retrying, upstream, *args, **kwargs):
    return asyncio.run(retrying.call_async(upstream.fetch_async, *args, **kwargs))


def decorated(retrying, upstream, *args, **kwargs):
    @retrying
    def fetch(*args, **kwargs):
        return upstream.fetch(*args, **kwargs)

    return fetch(*args, **kwargs)


def decorated_async(retrying, upstream, *args, **kwargs):
    @retrying
    async def fetch(*args, **kwargs):
        return await upstream.fetch_async(*args, **kwargs)

    return asyncio.run(fetch(*args, **kwargs))


@pytest.fixture(params=[sync_call, async_call, decorated, decorated_async], ids=lambda form: form.__name__)
def call(request):
    """The four forms behave alike."""
    return request.param


def test_first_call_succeeds(world, call):
    """No error, no wait; arguments and result pass through."""
    assert call(world.retry(), Upstream(), 1, b=2) == ((1,), {"b": 2})
    assert world.waits == []


def test_succeeds_after_failures(world, call):
    """Two failures, the third call answers; each wait is twice the one before."""
    upstream = Upstream(ServerError(), ApiTimeoutError())
    call(world.retry(), upstream)
    assert (upstream.calls, world.waits) == (3, [1, 2])


def test_last_error_is_raised_as_it_is(world, call):
    """With a note that says how many calls there were."""
    errors = [ServerError(f"no {n}") for n in range(4)]
    with pytest.raises(ServerError, match="no 3") as caught:
        call(world.retry(), Upstream(*errors))
    assert caught.value is errors[3]
    assert "4 calls in 7.0 s failed" in caught.value.__notes__[0]
    assert world.waits == [1, 2, 4]


def test_wrapped(world, call):
    """RetryExhaustedError, for those who want to catch one thing; the last error is its cause."""
    with pytest.raises(RetryExhaustedError, match=r"4 calls in 7\.0 s failed, the last with gone") as caught:
        call(world.retry(wrap=True), Upstream(*[ServerError("gone")] * 4))
    assert caught.value.attempts == 4
    assert isinstance(caught.value.__cause__, ServerError)
    assert isinstance(caught.value.cause, ServerError)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("error", [NotFoundError(), ValueError("ours"), PenstockError()])
def test_what_no_retry_mends_fails_at_once(world, call, error, wrap):
    """And is never wrapped: nothing was exhausted."""
    upstream = Upstream(error)
    with pytest.raises(type(error)):
        call(world.retry(wrap=wrap), upstream)
    assert (upstream.calls, world.waits) == (1, [])


@pytest.mark.parametrize("error", [CircuitOpenError(), Throttled()])
@pytest.mark.parametrize("on", [None, Exception, lambda _: True])
def test_a_refusal_ends_it(world, call, error, on):
    """The call was not made; whoever waits for a circuit does so elsewhere."""
    upstream = Upstream(ServerError(), error)
    with pytest.raises(type(error)):
        call(world.retry(on=on or (ServerError, Throttled)), upstream)
    assert upstream.calls == 2


@pytest.mark.parametrize("on", [OSError, (KeyError, OSError), lambda error: isinstance(error, OSError)])
def test_on_says_which(world, call, on):
    """Classes, or a function; the class attribute no longer counts."""
    upstream = Upstream(OSError(), ServerError())
    with pytest.raises(ServerError):
        call(world.retry(on=on), upstream)
    assert upstream.calls == 2


@pytest.mark.parametrize("error", [TimeoutError(), ConnectionResetError()])
def test_builtin_errors_of_the_network(world, call, error):
    """Where nobody says anything, these are worth another call."""
    upstream = Upstream(error)
    call(world.retry(), upstream)
    assert upstream.calls == 2


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit, asyncio.CancelledError])
def test_nothing_holds_up_an_end(world, end):
    """Neither Ctrl-C nor a cancelled task is an error."""
    upstream = Upstream(end())
    with pytest.raises(end):
        sync_call(world.retry(on=lambda _: True), upstream)
    assert upstream.calls == 1


def test_cancelled_while_waiting():
    """The wait ends, and there is no further call."""

    async def main():
        upstream, waiting = Upstream(ServerError(), ServerError()), asyncio.Event()

        async def sleep(seconds):
            waiting.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(Retry(sleep_async=sleep).call_async(upstream.fetch_async))
        await waiting.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return upstream.calls

    assert asyncio.run(main()) == 1


@pytest.mark.parametrize("luck", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("jitter", ["full", "equal", "decorrelated", "additive", "none"])
def test_a_servers_wait_is_never_shortened(world, call, jitter, luck):
    """Whatever the jitter: it only adds, a second at most."""
    call(
        world.retry(RetryPolicy(jitter=jitter, base_s=0.1), rng=lambda: luck),
        Upstream(RateLimitError(retry_after_s=30.0)),
    )
    assert 30 <= world.waits[0] <= 31


def test_deadline_counts_calls_and_waits(world, call):
    """No wait begins that would end after it; the calls' own time counts."""
    upstream = Upstream(*[ServerError()] * 9, takes_s=2.0, world=world)
    with pytest.raises(ServerError):
        call(world.retry(RetryPolicy(attempts=9, jitter="none"), deadline_s=12.9), upstream)
    # calls end at 2, 5 (waited 1) and 9 (waited 2): a wait of 4 would end at 13
    assert (upstream.calls, world.waits) == (3, [1, 2])


def test_deadline_before_a_servers_wait(world, call):
    """Whoever cannot wait that long learns it at once."""
    with pytest.raises(RateLimitError):
        call(world.retry(deadline_s=10), Upstream(RateLimitError(retry_after_s=60.0)))
    assert world.waits == []


def test_each_retry_is_heard_of_and_logged(world, call, caplog):
    """Before its wait, with its delay."""
    heard = []
    with caplog.at_level(logging.WARNING, logger="resilience.retry"):
        call(world.retry(on_retry=heard.append), Upstream(ServerError("one"), ServerError("two")))
    assert [(each.attempt, each.attempts, each.wait_s, str(each.error)) for each in heard] == [
        (1, 4, 1.0, "one"),
        (2, 4, 2.0, "two"),
    ]
    assert [record.message.partition(" failed ")[2] for record in caplog.records] == [
        "(ServerError: one), call 1 of 4; again in 1.00 s",
        "(ServerError: two), call 2 of 4; again in 2.00 s",
    ]


def test_who_listens_changes_nothing(world, call, caplog):
    """What `on_retry` raises is logged; the call is made again, and its own error is the one raised."""

    def fails(_):
        raise ZeroDivisionError("the listener's")

    call(world.retry(on_retry=fails), Upstream(ServerError()))
    with pytest.raises(ServerError, match="the service's"):
        call(
            world.retry(RetryPolicy(attempts=2), on_retry=fails),
            Upstream(*[ServerError("the service's")] * 2),
        )
    assert [record.message for record in caplog.records if record.exc_info] == [
        f"on_retry of {caplog.records[0].message.partition(' failed')[0]} failed"
    ] * 2


def test_listener_is_awaited(world, caplog):
    """Before the wait; an error of its own is logged."""
    heard = []

    async def listen(retrying):
        await asyncio.sleep(0)
        heard.append((retrying.attempt, list(world.waits)))
        if retrying.attempt == 2:
            raise ZeroDivisionError

    for form in (async_call, decorated_async):
        form(world.retry(on_retry=listen), Upstream(*[ServerError()] * 2))
        assert heard == [(1, []), (2, [1])]
        heard.clear()
        world.waits.clear()
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ZeroDivisionError] * 2


def test_listener_that_nobody_awaits(world):
    """Is refused before the first call: when it is decorated, or in place."""

    async def listen(_):
        pass

    upstream, again = Upstream(), world.retry(on_retry=listen)
    for form in (again, again.call):
        with pytest.raises(
            ConfigurationError, match=r"on_retry is a coroutine function, and \S*fetch is not"
        ):
            form(upstream.fetch)
    assert upstream.calls == 0


def test_one_retry_serves_many(world, call):
    """The count belongs to a call, not to the decorator."""
    again = world.retry()
    for _ in range(3):
        call(again, Upstream(*[ServerError()] * 3))
    assert world.waits == [1, 2, 4] * 3


def test_decorator_without_options():
    """`@retry` and `@retry(...)` keep what they decorate: its name, and whether it is awaited."""

    @retry
    def plain() -> str:
        """Told."""
        return "plain"

    @retry(RetryPolicy(attempts=2), deadline_s=3)
    async def awaited() -> str:
        return "awaited"

    assert (plain(), plain.__name__, plain.__doc__) == ("plain", "plain", "Told.")
    assert inspect.iscoroutinefunction(awaited)
    assert asyncio.run(awaited()) == "awaited"


def test_generators_are_refused():
    """A retry would yield again what was taken already."""
    with pytest.raises(ConfigurationError, match="numbers is a generator"):

        @retry
        def numbers():
            yield 1


async def numbers_async():
    yield 1


def numbers():
    yield 1


@pytest.mark.parametrize("func", [numbers, numbers_async, functools.partial(numbers)])
def test_generators_are_refused_in_place(world, func):
    """As when they are decorated: nothing is called, so nothing could be called again."""
    for form in (world.retry().call, lambda func: asyncio.run(world.retry().call_async(func))):
        with pytest.raises(ConfigurationError, match=r"numbers\S* is a generator"):
            form(func)


def hidden(func):
    def plain():
        return func()

    plain.__qualname__ = func.__qualname__
    return plain


@pytest.mark.parametrize("wrapped", [lambda func: func, functools.partial, hidden])
def test_a_coroutine_that_nobody_awaits_is_no_result(world, wrapped):
    """It has not begun; which form awaits it is said."""
    upstream = Upstream()
    with pytest.raises(ConfigurationError, match="fetch_async makes a coroutine: await the form that ends"):
        world.retry().call(wrapped(upstream.fetch_async))
    assert (upstream.calls, world.waits) == (0, [])


@pytest.mark.parametrize("deadline_s", [0, -1, float("nan")])
def test_impossible_deadline(deadline_s):
    """Says the number."""
    with pytest.raises(ConfigurationError, match=f"deadline_s is {deadline_s}"):
        retry(deadline_s=deadline_s)


# the numbers that people use

PRESETS = {
    "three retries, a second, a minute": (RetryPolicy(max_retries=3, base_s=1, cap_s=60), 4, [1, 2, 4]),
    "five calls, two seconds first, a second of luck on top": (
        RetryPolicy(attempts=5, base_s=2, cap_s=60, jitter="additive"), 5, [2.5, 4.5, 8.5, 16.5],
    ),
    "three calls, doubling": (RetryPolicy(attempts=3, factor=2.0), 3, [1, 2]),
    "three calls, tripling, no more than five seconds": (
        RetryPolicy(attempts=3, base_s=2, factor=3, cap_s=5), 3, [2, 5],
    ),
    "three calls from half a second": (RetryPolicy(attempts=3, base_s=0.5), 3, [0.5, 1]),
    "up to ten minutes, as Celery": (RetryPolicy(max_retries=10, cap_s=600, base_s=1), 11, [2**n for n in range(10)]),
    "one call": (RetryPolicy(max_retries=0), 1, []),
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_numbers_that_people_use(world, name):
    """Calls in all, and the waits between them without luck (half of it where it only adds)."""
    policy, calls, waits = PRESETS[name]
    rng = (lambda: 0.5) if policy.jitter == "additive" else (lambda: 1.0)
    upstream = Upstream(*[ServerError()] * 20)
    with pytest.raises(ServerError):
        sync_call(world.retry(policy, rng=rng), upstream)
    assert (upstream.calls, world.waits) == (calls, [min(wait, policy.cap_s + 1) for wait in waits])


# jitter


@given(
    st.integers(1, 80),
    st.sampled_from(["full", "equal", "decorrelated", "additive", "none"]),
    st.floats(0, 100),
    st.floats(0, 1000),
    st.floats(1, 100),
    st.randoms(use_true_random=False),
)
def test_waits_stay_in_their_bounds(attempt, jitter, base_s, above_s, factor, luck):
    """Never negative, never above the cap (a second more where jitter adds), whatever the numbers."""
    cap_s = base_s + above_s
    policy = RetryPolicy(base_s=base_s, cap_s=cap_s, factor=factor, jitter=jitter)
    wait_s = policy.wait_s(attempt, rng=luck.random)
    backoff_s = min(cap_s, base_s * factor ** min(attempt - 1, 62))
    least, most = {
        "full": (0, backoff_s),
        "equal": (backoff_s / 2, backoff_s),
        "decorrelated": (min(base_s, cap_s), cap_s),
        "additive": (backoff_s, backoff_s + 1),
        "none": (backoff_s, backoff_s),
    }[jitter]
    assert least <= wait_s <= most


def test_decorrelated_waits_grow():
    """Three times the wait before at most; on the average they grow until the cap holds them."""
    luck = random.Random(1)
    policy = RetryPolicy(jitter="decorrelated")
    means = [sum(policy.wait_s(n, rng=luck.random) for _ in range(2000)) / 2000 for n in (1, 2, 3, 4)]
    assert means == sorted(means)
    assert policy.wait_s(1, rng=lambda: 1.0) == 3
    assert policy.wait_s(3, rng=lambda: 1.0) == 27
    assert policy.wait_s(5000, rng=lambda: 1.0) == 60


# the fleet's budget


class Clock:
    def __init__(self):
        self.now_us = 1_700_000_000_000_000

    def sleep(self, seconds):
        self.now_us += round(seconds * 1e6)


def test_budget_is_a_share_of_the_first_calls():
    """Ten calls earn two retries, beyond what is saved and what a second brings."""
    clock = Clock()
    budget = RetryBudget(share=0.2, least_per_s=1, saved_s=5, store=MemoryStore(now_us=lambda: clock.now_us))
    assert [budget.withdraw() for _ in range(6)] == [True] * 5 + [False]
    for _ in range(10):
        budget.deposit()
    assert [budget.withdraw() for _ in range(3)] == [True, True, False]
    clock.sleep(1)
    assert [budget.withdraw() for _ in range(2)] == [True, False]
    clock.sleep(3600)
    assert [budget.withdraw() for _ in range(6)] == [True] * 5 + [False]


def test_no_retry_beyond_the_budget(world, call):
    """Everything fails: of 100 calls 20 are made again, and five more that were saved."""
    clock = Clock()
    store = MemoryStore(now_us=lambda: clock.now_us)
    calls = 0
    for _process in range(4):
        budget = RetryBudget(share=0.2, least_per_s=1, saved_s=5, store=store, api="a")
        again = world.retry(budget=budget)
        for _ in range(25):
            upstream = Upstream(*[ServerError()] * 9)
            with pytest.raises(ServerError):
                call(again, upstream)
            calls += upstream.calls
    assert calls == pytest.approx(125, abs=2)


def test_budgets_have_names():
    """One API's outage spends nothing of another's."""
    store = MemoryStore()
    one, other = [RetryBudget(api=api, least_per_s=0.001, saved_s=1000, store=store) for api in "ab"]
    assert [one.withdraw(), one.withdraw(), other.withdraw()] == [True, False, True]


def test_budget_without_its_store(world, call):
    """Retries are bounded without it."""

    class Away(MemoryStore):
        def retry(self, spec, earned_us):
            raise StoreUnavailableError

    upstream = Upstream(*[ServerError()] * 9)
    with pytest.raises(ServerError):
        call(world.retry(budget=RetryBudget(store=Away())), upstream)
    assert upstream.calls == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"share": 1.5}, "share is 1.5"),
        ({"least_per_s": 0}, "least_per_s is 0"),
        ({"saved_s": 0.01}, "saved_s is 0.01"),
        ({"saved_s": 7200}, "saved_s is 7200"),
    ],
)
def test_impossible_budget(words, said):
    """Says which number."""
    with pytest.raises(ConfigurationError, match=said):
        RetryBudget(**words)
