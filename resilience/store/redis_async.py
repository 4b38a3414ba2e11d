"""The store in Redis for asyncio programs: the same scripts, asked without blocking the loop.

All tasks of an event loop share one connection. redis-py opens it (addresses, TLS, passwords), then its
transport is used directly: questions go out as they come, and replies come back in their order. A task that
is cancelled leaves its reply to be thrown away.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
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
)
from resilience.store.line import error_of
from resilience.store.redis import RedisStore
from resilience.store.scripts import Script

_AT_ONCE = 65_536


class AsyncRedisStore:
    """A `RedisStore` as asyncio programs ask it: see `resilience.store.asynchronous.AsyncStore`.

    What happens before and after a call goes over the loop's own connection. What is rare (reading circuits,
    restoring what Redis has lost) is done by the blocking store in a thread.
    """

    def __init__(self, store: RedisStore, url: str, timeout_s: float) -> None:
        self.store = store
        self._pool = open_pool(url, timeout_s)
        self._timeout_s = timeout_s
        self._opening: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Task[Link]] = WeakKeyDictionary()
        self._links: WeakKeyDictionary[asyncio.AbstractEventLoop, Link] = WeakKeyDictionary()

    async def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        found = request.route.wire
        reply = await self._run(scripts.ADMIT, found.admit(request, self.store._asker))
        if isinstance(reply, bytes):
            return found.granted(request, reply)
        return await self._answer(request, reply)

    async def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        command = report.grant.request.route.wire.settle(report, self.store._asker)
        reply = await self._run(scripts.SETTLE, command)
        return self.store._settled(report, reply)

    async def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        found = request.route.wire
        command = report.grant.request.route.wire.settle_and_admit(report, request, self.store._asker)
        reply = await self._run(scripts.SETTLE_AND_ADMIT, command)
        if isinstance(reply, bytes):
            return self.store._settled(report, 0), found.granted(request, reply)
        settled, admitted = reply
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
        loop = asyncio.get_running_loop()
        self._links.pop(loop, None)
        if opening := self._opening.pop(loop, None):
            with suppress(RedisError):
                (await opening).close()

    async def _answer(self, request: Request, reply: Any) -> Answer:
        if isinstance(reply, bytes) or reply[0] != scripts.LOST:
            return self.store._answer(request, reply)
        await asyncio.to_thread(self.store._restore, request.route.circuits)
        return self.store._after(reply, await self.admit(request))

    async def _run(self, script: Script, command: bytes) -> Any:
        reply = await self._command(command)
        if isinstance(reply, Exception):
            if isinstance(reply, NoScriptError):
                reply = await self._command(script.whole(command))
            if isinstance(reply, Exception):
                raise StoreUnavailableError(f"Redis did not answer: {reply}", cause=reply) from reply
        return reply

    async def _command(self, command: bytes) -> Any:
        loop = asyncio.get_running_loop()
        try:
            try:
                link = self._links.get(loop)
                if link is None or link.closed:
                    link = await self._link(loop)
                return await link.ask(command)
            except RedisTimeoutError:
                raise
            except RedisConnectionError:
                # A connection dies with the server that held it; a new one tells whether it is back.
                return await (await self._link(loop)).ask(command)
        except RedisError as error:
            raise StoreUnavailableError(f"Redis did not answer: {error}", cause=error) from error

    async def _link(self, loop: asyncio.AbstractEventLoop) -> "Link":
        """The connection of this loop; whoever comes while it is being opened waits for the same one."""
        link = self._links.get(loop)
        if link is not None and not link.closed:
            return link
        opening = self._opening.get(loop)
        if opening is None or opening.done():
            opening = self._opening[loop] = loop.create_task(Link.open(self._pool, self._timeout_s))
        link = self._links[loop] = await asyncio.shield(opening)
        return link


def open_pool(url: str, timeout_s: float) -> ConnectionPool:
    """What makes connections to this URL; they wait for nothing longer than that."""
    return ConnectionPool.from_url(
        url,
        protocol=2,
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


class Link(asyncio.BufferedProtocol):
    """A connection on which any number of tasks ask at once. A reply later than `timeout_s` ends it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(replyError=error_of)
        self._buffer = bytearray(_AT_ONCE)
        self._asked: deque[tuple[asyncio.Future[Any], float]] = deque()  # with when it is due
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

    def ask(self, command: bytes) -> asyncio.Future[Any]:
        """Send a command; the future gets its reply, which may be an exception."""
        future, due_at = self._loop.create_future(), self._loop.time() + self._timeout_s
        self._asked.append((future, due_at))
        self._transport.write(command)
        if self._timer is None:
            self._timer = self._loop.call_at(due_at, self._check)
        return future

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        """Where replies are put; asyncio's own would be a new one of 256 KiB every time."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand each reply to whoever asked first."""
        self._parser.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type] # the stub knows no bytearray
        while (reply := self._parser.gets()) is not False:
            future, _ = self._asked.popleft()
            if not future.done():
                future.set_result(reply)

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
        _, due_at = self._asked[0]
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
            future, _ = self._asked.popleft()
            if not future.done():
                future.set_exception(error)
