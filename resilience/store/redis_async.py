"""The store in Redis for asyncio programs: the same scripts, asked without blocking the loop.

All tasks of an event loop share one connection. redis-py opens it (addresses, TLS, passwords), then its
transport is used directly: questions go out as they come, and replies come back in their order. A task that
is cancelled leaves its reply to be thrown away.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from contextvars import Context
from time import monotonic
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
        self._last: Link | None = None  # as a rule there is but one loop

    async def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        found = request.route.wire
        command = found.admit(request, self.store._asker)
        reply = await self._ask(command)
        if isinstance(reply, Exception):
            reply = await self._ask_again(scripts.ADMIT, command, reply)
        if isinstance(reply, bytes):
            return found.granted(request, reply)
        return await self._answer(request, reply)

    async def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        command = report.grant.request.route.wire.settle(report, self.store._asker)
        reply = await self._ask(command)
        if isinstance(reply, Exception):
            reply = await self._ask_again(scripts.SETTLE, command, reply)
        return self.store._settled(report, reply)

    async def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        command = report.grant.request.route.wire.settle_and_admit(report, request, self.store._asker)
        reply = await self._run(scripts.SETTLE_AND_ADMIT, command)
        if isinstance(reply, bytes):
            return self.store._settled(report, 0), request.route.wire.granted(request, reply)
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
        self._last = None
        if opening := self._opening.pop(loop, None):
            with suppress(RedisError):
                (await opening).close()

    async def _answer(self, request: Request, reply: Any) -> Answer:
        if isinstance(reply, bytes) or reply[0] != scripts.LOST:
            return self.store._answer(request, reply)
        await asyncio.to_thread(self.store._restore, request.route.circuits)
        return self.store._after(reply, await self.admit(request))

    async def _run(self, script: Script, command: bytes) -> Any:
        reply = await self._ask(command)
        if isinstance(reply, Exception):
            reply = await self._ask_again(script, command, reply)
        return reply

    def _ask(self, command: bytes) -> Awaitable[Any]:
        """The reply, or an exception in its place."""
        link = self._last
        if link is None or link.closed or link.loop is not asyncio.get_running_loop():
            return self._ask_anew(command)
        return link.ask(command)

    async def _ask_anew(self, command: bytes) -> Any:
        try:
            self._last = link = await self._link(asyncio.get_running_loop())
        except RedisError as error:
            return error
        return await link.ask(command)

    async def _ask_again(self, script: Script, command: bytes, said: Exception) -> Any:
        """The reply after all: of a Redis that did not know the script, or was started anew."""
        if isinstance(said, RedisConnectionError):
            # A connection dies with the server that held it; a new one tells whether it is back.
            said = await self._ask_anew(command)
        if isinstance(said, NoScriptError):
            said = await self._ask_anew(script.whole(command))
        if isinstance(said, Exception):
            raise StoreUnavailableError(f"Redis did not answer: {said}", cause=said) from said
        return said

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


class Reply:
    """What a task awaits after a question: a future as asyncio knows it, for one task, awaited at once.

    A future of asyncio's own wakes its task in the next turn of the loop, before which the loop asks the
    kernel for news once more: a fifth of an awaited question. This one can wake it in the same turn.

    What befell the question is said, not raised, so that whoever asks has to look only where it is no reply.
    """

    __slots__ = ("_asyncio_future_blocking", "_context", "_loop", "_said", "_wake", "done", "due_at")

    def __init__(self, loop: asyncio.AbstractEventLoop, due_at: float) -> None:
        self._loop, self.due_at = loop, due_at
        self._asyncio_future_blocking = False  # by this a task knows a future
        self.done = False
        self._wake: Callable[[Reply], object] | None = None
        self._context: Context | None = None
        self._said: Any = None

    def __await__(self) -> Generator["Reply", None, Any]:
        if not self.done:
            self._asyncio_future_blocking = True
            yield self
        return self._said

    def get_loop(self) -> asyncio.AbstractEventLoop:
        """The loop that its task has to run in."""
        return self._loop

    def add_done_callback(self, wake: Callable[["Reply"], object], *, context: Context) -> None:
        """What the task that awaits it wants to be called with it."""
        self._wake, self._context = wake, context

    def result(self) -> Any:
        """The reply, or an exception in its place. Raises CancelledError where its task is cancelled."""
        if isinstance(self._said, asyncio.CancelledError):
            raise self._said
        return self._said

    def cancel(self, msg: Any | None = None) -> bool:
        """Its task is cancelled: the reply is not wanted any more."""
        return self.end(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))

    def end(self, said: Any, *, at_once: bool = False) -> bool:
        """This is what became of it, if nothing has yet. `at_once` only where no task runs."""
        if self.done:
            return False
        self.done, self._said = True, said
        if self._context is None or self._wake is None:  # its task has not come to await it
            return True
        if at_once:
            self._context.run(self._wake, self)
        else:
            self._loop.call_soon(self._wake, self, context=self._context)
        return True


class Link(asyncio.BufferedProtocol):
    """A connection on which any number of tasks ask at once. A reply later than `timeout_s` ends it."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.loop = asyncio.get_running_loop()
        self._parser = hiredis.Reader(replyError=error_of)
        self._buffer = bytearray(_AT_ONCE)
        self._asked: deque[Reply] = deque()
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

    def ask(self, command: bytes) -> Reply:
        """Send a command. Its reply, which may be an exception, has to be awaited at once."""
        reply = Reply(self.loop, monotonic() + self._timeout_s)
        self._asked.append(reply)
        self._transport.write(command)
        if self._timer is None:
            self._timer = self.loop.call_later(self._timeout_s, self._check)
        return reply

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002
        """Where replies are put; asyncio's own would be a new one of 256 KiB every time."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Hand each reply to whoever asked first.

        Who asked alone goes on at once: the loop calls this, so no task runs. Where several did, one that
        ends the loop must not leave the others without their replies.
        """
        self._parser.feed(self._buffer, 0, nbytes)  # type: ignore[arg-type] # the stub knows no bytearray
        while (said := self._parser.gets()) is not False:
            reply = self._asked.popleft()
            reply.end(said, at_once=not self._asked)

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
        left_s = self._asked[0].due_at - monotonic()
        if left_s <= 0:
            self._end(RedisTimeoutError("Timeout reading from socket"))
        else:
            self._timer = self.loop.call_later(left_s, self._check)

    def _end(self, error: Exception) -> None:
        self.closed = True
        if self._timer is not None:
            self._timer.cancel()
        self._transport.abort()
        self._connection._reader = self._connection._writer = None  # nothing is left to close
        while self._asked:
            self._asked.popleft().end(error)
