"""Several calls at once as asyncio tasks, and never more than so many; see `concurrency`.

async with contextlib.aclosing(process_concurrent_async(fetch, symbols, at_once=5)) as prices:
    async for price in prices:
        print(price)
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable, Mapping
from typing import Generic, Self, TypeVar

from resilience.concurrency import AHEAD, Broken, check, collecting
from resilience.error_collector import ErrorCollector

T = TypeVar("T")
R = TypeVar("R")


async def process_concurrent_async(
    func: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    at_once: int = 10,
    errors: ErrorCollector | None = None,
) -> AsyncGenerator[R, None]:
    """`process_concurrent` for coroutine functions. Whoever stops early cancels what is under way.

    After a `break` that happens when the generator is closed: at once within `contextlib.aclosing`.
    """
    check(at_once=at_once)
    places = asyncio.Semaphore(at_once)
    ahead: deque[tuple[T | Broken, asyncio.Future[R]]] = deque()
    try:
        async for item, future in _tasks(func, items, places):
            ahead.append((item, future))
            if len(ahead) >= AHEAD * at_once:
                for result in await _oldest(ahead, errors):
                    yield result
        while ahead:
            for result in await _oldest(ahead, errors):
                yield result
    finally:
        for _, future in ahead:
            future.cancel()
        await asyncio.gather(*(future for _, future in ahead), return_exceptions=True)


def process_pages_concurrent_async(
    pages: Iterable[Iterable[T]] | AsyncIterable[Iterable[T]],
    func: Callable[[T], Awaitable[R]],
    *,
    at_once: int = 10,
    errors: ErrorCollector | None = None,
) -> AsyncGenerator[R, None]:
    """`process_pages_concurrent` for coroutine functions; the pages may come from an async generator."""

    async def items() -> AsyncGenerator[T, None]:
        async for page in _each(pages):
            for item in page:
                yield item

    return process_concurrent_async(func, items(), at_once=at_once, errors=errors)


async def gather_with_errors_async(
    func: Callable[[T], Awaitable[R]], items: Iterable[T] | AsyncIterable[T], *, at_once: int = 10
) -> tuple[list[R], ErrorCollector]:
    """`gather_with_errors` for coroutine functions."""
    errors = ErrorCollector()
    done = process_concurrent_async(func, items, at_once=at_once, errors=errors)
    return [result async for result in done], errors


async def run_concurrent_tasks_async(
    tasks: Mapping[str, Callable[[], Awaitable[R]]], *, at_once: int = 10
) -> tuple[dict[str, R], dict[str, Exception]]:
    """`run_concurrent_tasks` for coroutine functions."""
    errors = ErrorCollector(keep=len(tasks))

    async def run(name: str) -> tuple[str, R]:
        return name, await tasks[name]()

    done = process_concurrent_async(run, tasks, at_once=at_once, errors=errors)
    return {name: result async for name, result in done}, {each.item: each.error for each in errors}


class AsyncConcurrentBatcher(Generic[T]):
    """`ConcurrentBatcher` for coroutine functions; after an error it cancels what is under way."""

    def __init__(
        self,
        write: Callable[[list[T]], Awaitable[object]],
        *,
        size: int = 100,
        at_once: int = 4,
        errors: ErrorCollector | None = None,
    ) -> None:
        check(at_once=at_once, size=size)
        self._write, self._size = write, size
        self._errors = ErrorCollector() if errors is None else errors
        self._raises = errors is None
        self._places = asyncio.Semaphore(at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._batch: list[T] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def add(self, item: T) -> None:
        """Take an item; the one that makes a batch full has it written."""
        self._batch.append(item)
        if len(self._batch) >= self._size:
            await self._send()
        self._raise_first()

    async def flush(self) -> None:
        """Write what is left, and wait until everything is written."""
        if self._batch:
            await self._send()
        await asyncio.gather(*self._tasks)
        self._raise_first()

    async def _send(self) -> None:
        batch, self._batch = self._batch, []
        await self._places.acquire()
        task = asyncio.create_task(self._write_one(batch))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._places.release()

    async def _write_one(self, batch: list[T]) -> None:
        with self._errors.catching(batch):
            await self._write(batch)

    def _raise_first(self) -> None:
        if self._raises:
            for first in self._errors:
                raise first.error


async def _tasks(
    func: Callable[[T], Awaitable[R]], items: Iterable[T] | AsyncIterable[T], places: asyncio.Semaphore
) -> AsyncGenerator[tuple[T | Broken, "asyncio.Future[R]"], None]:
    async def bounded(item: T) -> R:
        async with places:
            return await func(item)

    try:
        async for item in _each(items):
            yield item, asyncio.create_task(bounded(item))
    except Exception as error:  # noqa: BLE001 - as above
        broken: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        broken.set_exception(error)
        yield Broken.ITEM, broken


async def _each(items: Iterable[T] | AsyncIterable[T]) -> AsyncGenerator[T, None]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


async def _oldest(
    ahead: "deque[tuple[T | Broken, asyncio.Future[R]]]", errors: ErrorCollector | None
) -> list[R]:
    """The result that is next in order; none where an error is collected."""
    item, future = ahead[0]
    await asyncio.wait([future])  # awaiting the future itself, a cancelled caller would cancel it first
    ahead.popleft()
    with collecting(item, errors):
        return [future.result()]
    return []
