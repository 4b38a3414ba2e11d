"""Several at once, in threads and as tasks: how many, in which order, and what becomes of errors."""

import asyncio
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import ContextVar

import pybreaker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resilience.breaker import CircuitBreaker
from resilience.concurrency import (
    ConcurrentBatcher,
    gather_with_errors,
    process_concurrent,
    process_pages_concurrent,
    run_concurrent_tasks,
)
from resilience.concurrency_async import (
    AsyncConcurrentBatcher,
    gather_with_errors_async,
    process_concurrent_async,
    process_pages_concurrent_async,
    run_concurrent_tasks_async,
)
from resilience.error_collector import ErrorCollector
from resilience.errors import CircuitOpenError, ConfigurationError, PartialCollectionError, ServerError
from resilience.policy import BreakerPolicy

REQUEST: ContextVar[str] = ContextVar("request")


class Gauge:
    """How many are inside at the same moment, at most."""

    def __init__(self):
        self.inside = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self):
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)

    def __exit__(self, *_):
        with self._lock:
            self.inside -= 1


def odd_fails(n):
    """Every second item is a bad one."""
    if n % 2:
        raise ValueError(n)
    return n * 10


async def odd_fails_async(n):
    await asyncio.sleep(0)
    return odd_fails(n)


async def collect(results):
    return [result async for result in results]


# threads


def test_results_in_order_while_as_many_as_allowed_work():
    """The barrier opens only when three are inside at once; a fourth never is."""
    gauge, barrier = Gauge(), threading.Barrier(3)

    def work(n):
        with gauge:
            barrier.wait(timeout=10)
            return n * n

    assert list(process_concurrent(work, range(12), at_once=3)) == [n * n for n in range(12)]
    assert gauge.most == 3


def test_a_slow_first_item_holds_up_no_other():
    """The second of two threads takes all items that may be held while the first one waits."""
    others = threading.Event()

    def work(n):
        if n == 0:
            assert others.wait(timeout=10)
        if n == 3:
            others.set()
        return n

    assert list(process_concurrent(work, range(6), at_once=2)) == list(range(6))


def test_items_are_taken_as_places_become_free():
    """An endless iterable is fine, and little of it is held."""
    taken = itertools.count()
    results = process_concurrent(str, taken, at_once=4)
    assert [next(results) for _ in range(100)] == [str(n) for n in range(100)]
    assert next(taken) <= 100 + 2 * 4
    results.close()


def test_the_first_failure_is_raised_in_its_turn():
    """What stands before it in order has been given out."""
    results = process_concurrent(odd_fails, [0, 2, 3, 4])
    assert [next(results), next(results)] == [0, 20]
    with pytest.raises(ValueError, match="3"):
        next(results)


def test_who_stops_early_cancels_what_has_not_started(monkeypatch):
    """Both threads are busy when the consumer goes: they end, and the item that waits never begins."""
    busy, go, called = threading.Barrier(3), threading.Event(), []

    def work(n):
        called.append(n)
        if n > 0:
            busy.wait(timeout=10)
            assert go.wait(timeout=10)

    def shutdown(pool, *, cancel_futures):
        stop(pool, wait=False, cancel_futures=cancel_futures)
        go.set()
        stop(pool)

    stop = ThreadPoolExecutor.shutdown
    results = process_concurrent(work, range(100), at_once=2)
    next(results)
    busy.wait(timeout=10)
    monkeypatch.setattr(ThreadPoolExecutor, "shutdown", shutdown)
    results.close()
    assert sorted(called) == [0, 1, 2]


def test_errors_with_their_items():
    """The others are not lost."""
    results, errors = gather_with_errors(odd_fails, range(5), at_once=2)
    assert results == [0, 20, 40]
    assert [(each.item, str(each.error)) for each in errors] == [(1, "1"), (3, "3")]


def test_a_broken_iterable_raises_after_what_it_gave():
    """Also where errors are collected: it is no item that failed."""

    def items():
        yield from (0, 2)
        raise ServerError("page 2 is away")

    errors = ErrorCollector()
    results = process_concurrent(odd_fails, items(), errors=errors)
    assert [next(results), next(results)] == [0, 20]
    with pytest.raises(ServerError, match="page 2"):
        next(results)
    assert not len(errors)


def test_pages():
    """The items of all pages in order; a page is asked for when there is room for its items."""
    asked = []

    def pages():
        for n in range(100):
            asked.append(n)
            yield [2 * n, 2 * n + 1]

    results = process_pages_concurrent(pages(), lambda n: n, at_once=2)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(asked) <= 6
    results.close()


def test_named_tasks():
    """Each name is among the results or among the errors."""
    results, errors = run_concurrent_tasks({"a": lambda: 1, "b": lambda: odd_fails(3), "c": lambda: 3})
    assert results == {"a": 1, "c": 3}
    assert str(errors["b"]) == "3"


def test_context_variables_go_along():
    """A request id set by the caller stands in the threads' logs."""
    REQUEST.set("r-1")
    assert list(process_concurrent(lambda _: REQUEST.get("none"), [0])) == ["r-1"]


@pytest.mark.parametrize("function", [process_concurrent, gather_with_errors])
def test_no_places(function):
    """Nothing could ever start."""
    with pytest.raises(ConfigurationError, match="at_once is 0"):
        function(str, [1], at_once=0)


# batches


def test_full_batches_and_the_rest():
    """Nine items in batches of four: the ninth is written at the end."""
    written = []
    with ConcurrentBatcher(written.append, size=4, at_once=1) as batcher:
        for n in range(9):
            batcher.add(n)
    assert written == [[0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_flush_waits_for_all():
    """What was added is written when it returns, and nothing is written twice."""
    written = []
    with ConcurrentBatcher(written.append, size=2, at_once=3) as batcher:
        for n in range(5):
            batcher.add(n)
        batcher.flush()
        assert sorted(written) == [[0, 1], [2, 3], [4]]
        batcher.flush()
    assert len(written) == 3


def test_batches_are_written_at_once_but_no_more_than_allowed():
    """The barrier opens only for three."""
    gauge, barrier = Gauge(), threading.Barrier(3)

    def write(_):
        with gauge:
            barrier.wait(timeout=10)

    with ConcurrentBatcher(write, size=1, at_once=3) as batcher:
        for n in range(9):
            batcher.add(n)
    assert gauge.most == 3


def test_failed_batches_are_collected_whole():
    """With their items, so that they can be tried again."""
    errors, written = ErrorCollector(), []

    def write(batch):
        if 3 in batch:
            raise ServerError("full")
        written.append(batch)

    with ConcurrentBatcher(write, size=2, errors=errors) as batcher:
        for n in range(6):
            batcher.add(n)
    assert [each.item for each in errors] == [[2, 3]]
    assert sorted(written) == [[0, 1], [4, 5]]


def test_a_failed_batch_is_raised_where_nobody_collects():
    """At the latest when the rest is written; what was left is dropped after an error."""
    written = []

    def fill(write, item):
        with ConcurrentBatcher(write, size=2) as batcher:
            batcher.add(item)
            if item == "stop":
                raise KeyError(item)

    with pytest.raises(ValueError, match="1"):
        fill(lambda batch: odd_fails(*batch), 1)
    with pytest.raises(KeyError):
        fill(written.append, "stop")
    assert not written


# behind a circuit


class Failing:
    """Four calls go well; once the circuit knows of them, all others fail."""

    def __init__(self):
        self.gauge, self.called, self.well, self.left = Gauge(), [], threading.Event(), 4
        self.breaker = CircuitBreaker(
            name="it", policy=BreakerPolicy(failures=3, rate=None), listeners=[self.Listener(self)]
        )

    class Listener(pybreaker.CircuitBreakerListener):
        def __init__(self, failing):
            self.failing = failing

        def success(self, _):
            self.failing.left -= 1
            if not self.failing.left:
                self.failing.well.set()

    def fetch(self, n):
        with self.gauge:
            self.called.append(n)
            if n >= 4:
                assert self.well.wait(timeout=10)
                raise ServerError(str(n))
            return n

    async def fetch_async(self, n):
        await asyncio.sleep(0)
        return self.fetch(n)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_circuit_that_opens_refuses_the_rest(asynchronous):
    """Three failures, and one that was under way: nothing else is called, and every item is accounted for."""
    failing = Failing()
    if asynchronous:
        call = failing.breaker(failing.fetch_async)
        results, errors = asyncio.run(gather_with_errors_async(call, range(20), at_once=2))
    else:
        results, errors = gather_with_errors(failing.breaker(failing.fetch), range(20), at_once=2)
    failed = [each.item for each in errors if isinstance(each.error, ServerError)]
    refused = [each.item for each in errors if isinstance(each.error, CircuitOpenError)]
    assert results == [0, 1, 2, 3]
    assert sorted(failing.called) == results + failed
    assert len(failed) in {3, 4}
    assert sorted(results + failed + refused) == list(range(20))
    assert failing.gauge.most <= 2
    assert failing.breaker.current_state == "open"


# tasks


def test_async_results_in_order_while_as_many_as_allowed_work():
    """As with threads."""
    gauge = Gauge()

    async def main():
        barrier = asyncio.Barrier(3)

        async def work(n):
            with gauge:
                await asyncio.wait_for(barrier.wait(), 10)
                return n * n

        return await collect(process_concurrent_async(work, range(12), at_once=3))

    assert asyncio.run(main()) == [n * n for n in range(12)]
    assert gauge.most == 3


def test_async_items_may_come_from_an_async_generator():
    """And are taken as places become free."""
    taken = []

    async def items():
        for n in itertools.count():
            taken.append(n)
            yield n

    async def main():
        found = []
        async with aclosing(
            process_concurrent_async(odd_fails_async, items(), errors=ErrorCollector())
        ) as results:
            async for result in results:
                found.append(result)
                if len(found) == 50:
                    break
        return found

    assert asyncio.run(main()) == [20 * n for n in range(50)]
    assert len(taken) <= 2 * 50 + 2 * 10


def test_async_errors_with_their_items():
    """As with threads."""
    results, errors = asyncio.run(gather_with_errors_async(odd_fails_async, range(5), at_once=2))
    assert results == [0, 20, 40]
    assert [(each.item, str(each.error)) for each in errors] == [(1, "1"), (3, "3")]


def test_async_first_failure_cancels_the_others():
    """What is under way is cancelled before the error arrives."""
    cancelled = []

    async def work(n):
        if n == 0:
            await asyncio.sleep(0)
            raise ServerError("away")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(n)
            raise

    with pytest.raises(ServerError):
        asyncio.run(collect(process_concurrent_async(work, range(3))))
    assert cancelled == [1, 2]


def test_cancelling_the_caller_cancels_the_tasks():
    """And none is left behind."""
    ended, both = [], asyncio.Event()

    async def work(n):
        if n == 1:
            both.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(n)

    async def main():
        whole = asyncio.create_task(collect(process_concurrent_async(work, range(5), at_once=2)))
        await both.wait()
        whole.cancel()
        with pytest.raises(asyncio.CancelledError):
            await whole
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert not asyncio.run(main())
    assert sorted(ended) == [0, 1]


def test_async_pages_and_a_broken_one():
    """What the pages before it gave comes first."""

    async def pages():
        yield [0, 2]
        yield [4]
        raise ServerError("page 3 is away")

    async def main():
        results = process_pages_concurrent_async(pages(), odd_fails_async)
        assert [await anext(results) for _ in range(3)] == [0, 20, 40]
        with pytest.raises(ServerError, match="page 3"):
            await anext(results)

    asyncio.run(main())


def test_async_named_tasks():
    """As with threads."""
    tasks = {"a": lambda: odd_fails_async(2), "b": lambda: odd_fails_async(3)}
    results, errors = asyncio.run(run_concurrent_tasks_async(tasks))
    assert results == {"a": 20}
    assert str(errors["b"]) == "3"


def test_async_batches():
    """Full ones, the rest, and one that fails."""
    errors, written = ErrorCollector(), []

    async def write(batch):
        await asyncio.sleep(0)
        if 3 in batch:
            raise ServerError("full")
        written.append(batch)

    async def main():
        async with AsyncConcurrentBatcher(write, size=2, at_once=2, errors=errors) as batcher:
            for n in range(7):
                await batcher.add(n)
            await batcher.flush()
            assert sorted(written) == [[0, 1], [4, 5], [6]]

    asyncio.run(main())
    assert [each.item for each in errors] == [[2, 3]]


def test_async_batches_are_cancelled_after_an_error():
    """Nothing goes on behind the caller's back."""
    ended = []

    async def write(batch):
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(batch)

    async def main():
        async with AsyncConcurrentBatcher(write, size=1, at_once=2) as batcher:
            await batcher.add(1)
            await asyncio.sleep(0)
            raise KeyError

    with pytest.raises(KeyError):
        asyncio.run(main())
    assert ended == [[1]]


# both


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 7))
def test_threads_and_tasks_agree(items, at_once):
    """With each other, and with a plain loop."""
    results, errors = gather_with_errors(odd_fails, items, at_once=at_once)
    others = asyncio.run(gather_with_errors_async(odd_fails_async, items, at_once=at_once))
    assert results == others[0] == [10 * n for n in items if n % 2 == 0]
    assert [each.item for each in errors] == [each.item for each in others[1]] == [n for n in items if n % 2]


# the collector


def test_collected_errors():
    """The first of them with their items, all of them counted."""
    errors = ErrorCollector(keep=2)
    for n in range(5):
        with errors.catching(n):
            odd_fails(1) if n < 4 else {}["x"]
    assert len(errors) == 5
    assert errors.by_type == {"ValueError": 4, "KeyError": 1}
    assert [each.item for each in errors] == [0, 1]
    assert next(iter(errors)).to_dict() == {"item": "0", "error_type": "ValueError", "message": "1"}


def test_raise_if_any():
    """One error that tells how many there were, and the first of them."""
    errors = ErrorCollector()
    errors.raise_if_any()
    errors.add("BTC", ServerError("away"))
    errors.add("ETH", ValueError("no"))
    with pytest.raises(PartialCollectionError, match=r"2 failed, first 'BTC': ServerError: away") as caught:
        errors.raise_if_any()
    assert caught.value.details == {"ServerError": 1, "ValueError": 1}
    assert [each.to_dict()["error_type"] for each in errors] == ["ServerError", "ValueError"]


def test_an_exit_is_no_error_of_an_item():
    """Control-C ends the whole."""
    errors = ErrorCollector()
    with pytest.raises(KeyboardInterrupt), errors.catching("BTC"):
        raise KeyboardInterrupt
    assert not len(errors)
