"""The store in Redis for asyncio programs: the same scripts, asked without blocking the loop.

All tasks of an event loop share one connection. redis-py opens it (addresses, TLS, passwords), then its
transport is used directly: questions go out as they come, and replies come back in their order. A task that
is cancelled leaves its reply to be thrown away.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Any, Self
from weakref import WeakKeyDictionary

import hiredis
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from resilience.errors import StoreUnavailableError
from resilience.store import (
    Answer,
    CircuitSpec,
    Grant,
    Reading,
    Report,
    Request,
    RetrySpec,
    Settled,
    scripts,
    wire,
)
from resilience.store.line import error_of
from resilience.store.redis import RedisStore
from resilience.store.scripts import Script


class AsyncRedisStore:
    """A `RedisStore` as asyncio programs ask it: see `resilience.store.asynchronous.AsyncStore`.

    What happens before and after a call goes over the loop's own connection. What is rare (reading circuits,
    restoring what Redis has lost) is done by the blocking store in a thread.
    """

    def __init__(self, store: RedisStore, url: str, timeout_s: float) -> None:
        self.store = store
        self._pool = open_pool(url, timeout_s)
        self._timeout_s = timeout_s
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Future[Link]] = WeakKeyDictionary()

    async def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        return await self._answer(request, await self._run(scripts.ADMIT, self.store._admit_command(request)))

    async def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        reply = await self._run(scripts.SETTLE, self.store._settle_command(report))
        return self.store._settled(report, reply)

    async def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        command = self.store._settle_and_admit_command(report, request)
        settled, admitted = wire.both_of(await self._run(scripts.SETTLE_AND_ADMIT, command))
        return self.store._settled(report, settled), await self._answer(request, admitted)

    async def release(self, grant: Grant) -> None:
        """See `Store.release`."""
        await self._run(scripts.RELEASE, self.store._release_command(grant))

    async def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""
        return bool(await self._run(scripts.RETRY, self.store._retry_command(spec, earned_us)))

    async def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`."""
        return await asyncio.to_thread(self.store.circuits, specs)

    async def close(self) -> None:
        """Close the connection of this loop; the next question opens one again."""
        if opening := self._links.pop(asyncio.get_running_loop(), None):
            (await opening).close()

    async def _answer(self, request: Request, reply: Any) -> Answer:
        if isinstance(reply, bytes) or reply[0] != scripts.LOST:
            return self.store._answer(request, reply)
        await asyncio.to_thread(self.store._restore, request.route.circuits)
        return self.store._after(reply, await self.admit(request))

    async def _run(self, script: Script, command: bytes) -> Any:
        reply = await self._command(command)
        if isinstance(reply, NoScriptError):
            reply = await self._command(script.whole(command))
        if isinstance(reply, Exception):
            raise StoreUnavailableError(f"Redis did not answer: {reply}", cause=reply) from reply
        return reply

    async def _command(self, command: bytes) -> Any:
        try:
            try:
                return (await (await self._link()).ask([command]))[0]
            except RedisTimeoutError:
                raise
            except RedisConnectionError:
                # A connection dies with the server that held it; a new one tells whether it is back.
                return (await (await self._link()).ask([command]))[0]
        except RedisError as error:
            raise StoreUnavailableError(f"Redis did not answer: {error}", cause=error) from error

    async def _link(self) -> "Link":
        """The connection of this loop; whoever comes while it is being opened waits for the same one."""
        loop = asyncio.get_running_loop()
        opening = self._links.get(loop)
        if opening is None or (opening.done() and (opening.exception() or opening.result().closed)):
            opening = self._links[loop] = loop.create_task(Link.open(self._pool, self._timeout_s))
        return opening.result() if opening.done() else await asyncio.shield(opening)


def open_pool(url: str, timeout_s: float) -> ConnectionPool:
    """What makes connections to this URL; they wait for nothing longer than that."""
    return ConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


class _Question:
    """Commands that were sent together, and the replies that have come so far."""

    __slots__ = ("due_at", "future", "missing", "replies")

    def __init__(self, future: asyncio.Future[list[Any]], commands: int, due_at: float) -> None:
        self.future, self.missing, self.due_at = future, commands, due_at
        self.replies: list[Any] = []


class Link(asyncio.Protocol):
    """A connection on which any number of tasks ask at once. A reply later than `timeout_s` ends it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(replyError=error_of)
        self._asked: deque[_Question] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._connection: Any = None
        self._transport: Any = None
        self.closed = False

    @classmethod
    async def open(cls, pool: ConnectionPool, timeout_s: float) -> Self:
        """Connect as the pool would, and take the connection over. Raises redis-py's exceptions."""
        connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
        await connection.connect()
        link = cls(timeout_s)
        link._connection = connection  # its writer would close the transport with itself
        link._transport = connection._writer.transport
        link._transport.set_protocol(link)
        return link

    def ask(self, commands: list[bytes]) -> asyncio.Future[list[Any]]:
        """Send commands; the future gets their replies, an error reply as an exception among them."""
        question = _Question(self._loop.create_future(), len(commands), self._loop.time() + self._timeout_s)
        self._asked.append(question)
        self._transport.write(b"".join(commands))
        if self._timer is None:
            self._timer = self._loop.call_at(question.due_at, self._check)
        return question.future

    def data_received(self, data: bytes) -> None:
        """Hand each reply to whoever asked first."""
        self._parser.feed(data)
        while (reply := self._parser.gets()) is not False:
            question = self._asked[0]
            question.replies.append(reply)
            question.missing -= 1
            if not question.missing:
                self._asked.popleft()
                if not question.future.done():
                    question.future.set_result(question.replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Redis is gone, or we are: nobody gets a reply any more."""
        self._end(RedisConnectionError(f"the connection was lost: {exc or 'closed'}"))

    def close(self) -> None:
        """Close the connection; what was asked fails."""
        self._end(RedisConnectionError("the connection was closed"))

    def _check(self) -> None:
        """One timer for the oldest question: questions are many, and late replies are rare."""
        self._timer = None
        if not self._asked:
            return
        due_at = self._asked[0].due_at
        if due_at <= self._loop.time():
            self._end(RedisTimeoutError("Timeout reading from socket"))
        else:
            self._timer = self._loop.call_at(due_at, self._check)

    def _end(self, error: Exception) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # nothing is left to close
        while self._asked:
            future = self._asked.popleft().future
            if not future.done():
                future.set_exception(error)
