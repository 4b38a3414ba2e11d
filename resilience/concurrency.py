"""Several calls at once in threads, and never more than so many; `concurrency_async` does it with tasks.

    for price in process_concurrent(fetch, symbols, at_once=5):
        print(price)

    prices, errors = gather_with_errors(fetch, symbols)

What is called decides about limits and circuits; here is decided only how many of them are under way. Items
are taken one by one as places become free, so an endless iterable is fine.
"""

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from enum import Enum
from threading import Lock, Semaphore
from typing import Generic, Self, TypeVar

from resilience.error_collector import ErrorCollector
from resilience.errors import ConfigurationError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2  # items held for each one under way: while the oldest is slow, the others go on


def process_concurrent(
    func: Callable[[T], R], items: Iterable[T], *, at_once: int = 10, errors: ErrorCollector | None = None
) -> Generator[R, None, None]:
    """Call `func` for each item in threads, `at_once` at a time; yields the results in the items' order.

    Like `map` it does nothing before it is iterated. An item that fails raises its error when its turn comes,
    or with `errors` is collected there and left out. Whoever stops early cancels what has not started and
    waits for what has: a thread cannot be interrupted.
    """
    check(at_once=at_once)
    return _in_threads(func, items, at_once, errors)


def process_pages_concurrent(
    pages: Iterable[Iterable[T]],
    func: Callable[[T], R],
    *,
    at_once: int = 10,
    errors: ErrorCollector | None = None,
) -> Generator[R, None, None]:
    """`process_concurrent` for the items of pages; the next page is asked for when places become free.

    A page that cannot be had raises, after the results of the pages before it.
    """
    return process_concurrent(func, (item for page in pages for item in page), at_once=at_once, errors=errors)


def gather_with_errors(
    func: Callable[[T], R], items: Iterable[T], *, at_once: int = 10
) -> tuple[list[R], ErrorCollector]:
    """Results in the order of the items, and the errors of those that failed."""
    errors = ErrorCollector()
    return list(process_concurrent(func, items, at_once=at_once, errors=errors)), errors


def run_concurrent_tasks(
    tasks: Mapping[str, Callable[[], R]], *, at_once: int = 10
) -> tuple[dict[str, R], dict[str, Exception]]:
    """Results and errors by the tasks' names; each name is in one of them."""
    errors = ErrorCollector(keep=len(tasks))
    done = process_concurrent(lambda name: (name, tasks[name]()), tasks, at_once=at_once, errors=errors)
    return dict(done), {failed.item: failed.error for failed in errors}


class ConcurrentBatcher(Generic[T]):
    """Gathers items into batches and writes these in threads, `at_once` at a time.

    `add` waits while all places are taken, so no more than `at_once` + 1 batches are held; batches end in any
    order. A batch that fails goes to `errors` with its items; without it, every later `add` and `flush`
    raises the first error. As a context manager it writes the rest at the end; after an error it waits for
    what has started and drops the rest.
    """

    def __init__(
        self,
        write: Callable[[list[T]], object],
        *,
        size: int = 100,
        at_once: int = 4,
        errors: ErrorCollector | None = None,
    ) -> None:
        check(at_once=at_once, size=size)
        self._write, self._size, self._at_once = write, size, at_once
        self._errors = ErrorCollector() if errors is None else errors
        self._raises = errors is None
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="batch")
        self._places = Semaphore(at_once)
        self._lock = Lock()
        self._batch: list[T] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def add(self, item: T) -> None:
        """Take an item; the one that makes a batch full has it written. Threads may add."""
        with self._lock:
            self._batch.append(item)
            if len(self._batch) >= self._size:
                self._send()
        self._raise_first()

    def flush(self) -> None:
        """Write what is left, and wait until everything is written."""
        with self._lock:
            if self._batch:
                self._send()
            for _ in range(self._at_once):  # whoever holds all places knows that nobody writes
                self._places.acquire()
            self._places.release(self._at_once)
        self._raise_first()

    def _send(self) -> None:
        batch, self._batch = self._batch, []
        self._places.acquire()
        self._pool.submit(copy_context().run, self._write_one, batch)

    def _write_one(self, batch: list[T]) -> None:
        try:
            with self._errors.catching(batch):
                self._write(batch)
        finally:
            self._places.release()

    def _raise_first(self) -> None:
        if self._raises:
            for first in self._errors:
                raise first.error


class Broken(Enum):
    """Stands for the item that an iterable raised instead of giving it."""

    ITEM = "item"


def _in_threads(
    func: Callable[[T], R], items: Iterable[T], at_once: int, errors: ErrorCollector | None
) -> Generator[R, None, None]:
    ahead: deque[tuple[T | Broken, Future[R]]] = deque()
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="concurrent")
    try:
        for item, future in _futures(pool, func, items):
            ahead.append((item, future))
            if len(ahead) >= AHEAD * at_once:
                yield from _waited(*ahead.popleft(), errors)
        while ahead:
            yield from _waited(*ahead.popleft(), errors)
    finally:
        pool.shutdown(cancel_futures=True)


def _futures(
    pool: ThreadPoolExecutor, func: Callable[[T], R], items: Iterable[T]
) -> Iterator[tuple[T | Broken, Future[R]]]:
    """Every item with its future; what the iterable itself raises comes in its turn, after what it gave."""
    try:
        for item in items:
            yield item, pool.submit(copy_context().run, func, item)
    except Exception as error:  # noqa: BLE001 - raised by whoever waits for the future
        broken: Future[R] = Future()
        broken.set_exception(error)
        yield Broken.ITEM, broken


def _waited(item: object, future: Future[R], errors: ErrorCollector | None) -> Iterator[R]:
    """The result; none where an error is collected."""
    with collecting(item, errors):
        yield future.result()


def collecting(item: object, errors: ErrorCollector | None) -> contextlib.AbstractContextManager[None]:
    """Where the item's error goes; a broken iterable always raises."""
    if errors is None or item is Broken.ITEM:
        return contextlib.nullcontext()
    return errors.catching(item)


def check(**numbers: int) -> None:
    """Raise ConfigurationError for a number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ConfigurationError(f"{name} is {number}, but has to be at least 1")
