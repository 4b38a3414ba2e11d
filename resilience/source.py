"""One source of data as any program calls it: its circuit, its limits and its retries under one name.

    binance = Source("binance", limits=["1200/1m"], retry=RetryPolicy(max_retries=5))
    rows = binance.retry_with_backoff(exchange.fetch_ohlcv, "BTC/USDT")  # of any client, with any errors

    shop = Source("shop", on=(requests.ConnectionError, requests.Timeout))  # no other is retried

    @with_resilience("binance", limits=["1200/1m"])
    def klines(symbol): ...

Limits and circuit are asked before each real call and told how it ended; the retry is outside of them, and
ends where the circuit refuses. For a circuit that counts only how the whole retry ended, put a breaker above
a retry: `@breaker` over `@retry`.
"""

import asyncio
import copy
import functools
import inspect
import math
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeVar

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits, circuits
from resilience.errors import ConfigurationError, Throttled
from resilience.guard import (
    Ask,
    CallResult,
    CircuitState,
    CircuitView,
    Go,
    Guard,
    Kind,
    Lease,
    Refuse,
    Wait,
)
from resilience.limiter import RateLimiter, throttled
from resilience.policy import BreakerPolicy, Lane, Limit, RetryPolicy
from resilience.retry import On, Retry, called
from resilience.store.memory import MemoryStore

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

# What a program does wrong by itself; no service mends that.
_MISTAKES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    ImportError,
    LookupError,
    MemoryError,
    NameError,
    NotImplementedError,
    RecursionError,
    ReferenceError,
    StopAsyncIteration,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
    Warning,
)
_PACING = frozenset({Kind.THROTTLED, Kind.BANNED})


class Source:
    """A source of data: everybody who names the same one in the same store shares its circuit and its limits.

    `circuit` is a name in the registry `known` (its store is the source's), or a breaker of your own, with
    its `exclude`. An error that is not ours counts as a failure of the service, as every breaker's users
    expect; ours say so themselves.

    `on` says which errors are retried, as that of a `Retry`. Without it those that say so (`recoverable`),
    and of errors that say nothing those that the circuit counts as a failure, such as the errors of any HTTP
    client; but no mistake, such as a TypeError or a ValueError.

    `limits` are texts, `Limit`s shared by all who call the source, or `RateLimiter`s. A call waits
    `patience_s` at most for its limits, then raises `Throttled`; behind an open circuit it raises
    `CircuitOpenError` at once. `weight` is what a call counts in them: more than a hundredth of a limit needs
    its `burst` to be as large. With `lane=Lane.BACKFILL` calls leave each limit's `reserve` to live work.

    Where the store is away no call begins (`StoreUnavailableError`); after a call that is only logged.
    """

    def __init__(
        self,
        name: str,
        *,
        circuit: str | CircuitBreaker = "all",
        breaker: BreakerPolicy | None = None,
        limits: Sequence[str | Limit | RateLimiter] = (),
        retry: RetryPolicy | Retry | None = None,
        on: On | None = None,
        weight: float = 1,
        lane: Lane = Lane.LIVE,
        patience_s: float = 60.0,
        known: Circuits = circuits,
        sleep: Callable[[float], object] = time.sleep,
        sleep_async: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if isinstance(circuit, CircuitBreaker) and breaker is not None:
            raise ConfigurationError(f"source {name}: a CircuitBreaker brings its own policy")
        if not 0 <= patience_s < math.inf:
            raise ConfigurationError(f"source {name}: patience_s is {patience_s}, but has to be 0 or more")
        self.name = name
        self.circuit = (
            circuit if isinstance(circuit, CircuitBreaker) else known.get(circuit, api=name, policy=breaker)
        )
        self.guard: Guard = self.circuit.guard
        self.guard_async = self.circuit.guard_async
        made = retry if isinstance(retry, Retry) else Retry(retry, sleep=sleep, sleep_async=sleep_async)
        self.retry = self._retrying(made, on)
        self.patience_s = patience_s
        api = self.circuit.api
        shared = tuple(_limiter(limit, api) for limit in limits)
        self.ask = Ask(api, (self.circuit,), shared, weight, Lane(lane))
        self.guard.unasked(self.ask)  # says at once if the weight does not fit
        if isinstance(self.guard.store, MemoryStore):
            self.guard.store.mark_fresh([api])  # nobody else can have called with it
        self._sleep, self._sleep_async = sleep, sleep_async
        self._counts = _Counts()

    def __repr__(self) -> str:
        return f"Source({self.name!r}, circuit={self.circuit.circuit!r})"

    def __call__(self, func: F) -> F:
        """Decorate a function or a coroutine function: each call of it is `retry_with_backoff`."""
        self.retry.check(func, awaited=inspect.iscoroutinefunction(func))
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def resilient_async(*args: Any, **kwargs: Any) -> Any:
                return await self.retry_with_backoff_async(func, *args, **kwargs)

            return resilient_async  # type: ignore[return-value]

        @functools.wraps(func)
        def resilient(*args: Any, **kwargs: Any) -> Any:
            return self.retry_with_backoff(func, *args, **kwargs)

        return resilient  # type: ignore[return-value]

    def retry_with_backoff(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` again and again while its error is worth it; raises the last error."""
        self.retry.check(func, awaited=False)
        made = 0

        @functools.wraps(func)
        def attempt(*args: Any, **kwargs: Any) -> T:
            nonlocal made
            with self.calling(again=made > 0):
                made += 1
                return called(func, *args, **kwargs)

        return self.retry.call(attempt, *args, **kwargs)

    async def retry_with_backoff_async(
        self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any
    ) -> T:
        """`retry_with_backoff` for a coroutine function."""
        self.retry.check(func, awaited=True)
        made = 0

        @functools.wraps(func)
        async def attempt(*args: Any, **kwargs: Any) -> T:
            nonlocal made
            async with self.calling_async(again=made > 0):
                made += 1
                return await func(*args, **kwargs)

        return await self.retry.call_async(attempt, *args, **kwargs)

    @contextmanager
    def calling(
        self, *, again: bool = False, weight: float | None = None, lane: Lane | None = None
    ) -> Iterator[None]:
        """The block of a `with` statement as one call: it begins when limits and circuit let it.

        `again` counts it as a retry; `weight` and `lane` are the source's unless they are given.
        """
        lease = self._enter(self._ask(weight, lane))
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self.guard.settle_quietly(lease, self._ended(error, began, again=again))
            raise
        self.guard.settle_quietly(lease, self._ended(None, began, again=again))

    @asynccontextmanager
    async def calling_async(
        self, *, again: bool = False, weight: float | None = None, lane: Lane | None = None
    ) -> AsyncIterator[None]:
        """`calling` for `async with`; a task that is cancelled gives back what it held."""
        lease = await self._enter_async(self._ask(weight, lane))
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            await self.guard_async.settle_quietly(lease, self._ended(error, began, again=again))
            raise
        await self.guard_async.settle_quietly(lease, self._ended(None, began, again=again))

    def check_circuit_breaker(self) -> bool:
        """Whether the circuit would let a call through now; only looks."""
        return _lets_through(self.circuit.view)

    async def check_circuit_breaker_async(self) -> bool:
        """`check_circuit_breaker`, without blocking the loop."""
        views = await self.guard_async.circuits([self.circuit])
        return _lets_through(views[self.circuit.circuit])

    def record_rate_limit(self, retry_after: float | None = None) -> None:
        """The server wants to hear nothing for `retry_after` seconds: nobody calls who shares its limits.

        None is a minute, doubled while it goes on.
        """
        self.guard.settle_quietly(self.guard.unasked(self.ask), throttled(retry_after))

    async def record_rate_limit_async(self, retry_after: float | None = None) -> None:
        """`record_rate_limit`, without blocking the loop."""
        await self.guard_async.settle_quietly(self.guard_async.unasked(self.ask), throttled(retry_after))

    def record_success(self) -> None:
        """A call that was made without this object went well."""
        self._counts.add(None)
        self.circuit.record_success()

    async def record_success_async(self) -> None:
        """`record_success`, without blocking the loop."""
        self._counts.add(None)
        await self.circuit.record_success_async()

    def record_failure(self, error: BaseException | None = None) -> None:
        """A call that was made without this object failed; what its class says decides whether it counts.

        A RateLimitError or a BannedError holds back everybody who shares the limits.
        """
        self._counts.add(error or Exception("unknown"))
        self.circuit.record_failure(error)
        if self._paces(error):
            self.guard.settle_quietly(self.guard.unasked(self._limits), CallResult.of(error, latency_s=0.0))

    async def record_failure_async(self, error: BaseException | None = None) -> None:
        """`record_failure`, without blocking the loop."""
        self._counts.add(error or Exception("unknown"))
        await self.circuit.record_failure_async(error)
        if self._paces(error):
            lease = self.guard_async.unasked(self._limits)
            await self.guard_async.settle_quietly(lease, CallResult.of(error, latency_s=0.0))

    def get_health_status(self) -> dict[str, Any]:
        """The circuit (as its `get_status`) and what this process has called, as JSON.

        `calls` are those that were really made, `retries` and `failures` of them; `refused` were not made.
        """
        return {
            "source": self.name,
            "circuit": self.circuit.get_status(),
            **self._counts.told(),
        }

    def reset(self) -> None:
        """Close the circuit, and count anew."""
        self.circuit.close()
        self._counts = _Counts()

    def _retrying(self, retry: Retry, on: On | None) -> Retry:
        """The retry with the source's `on`; one of somebody's own stays as it is."""
        if retry.on is None:
            retry = copy.copy(retry)
            retry.on = self._is_worth_it if on is None else on
        elif on is not None:
            raise ConfigurationError(f"source {self.name}: the Retry says already which errors are worth it")
        return retry

    def _is_worth_it(self, error: Exception) -> bool:
        """What the error says itself; where it says nothing, whether the service has failed."""
        said = getattr(error, "recoverable", None)
        if said is not None:
            return bool(said)
        return not isinstance(error, _MISTAKES) and self.circuit.kind_of(error) is Kind.FAILURE

    @property
    def _limits(self) -> Ask:
        """Everybody who is held back by a 429; what the circuit hears of one it hears elsewhere."""
        return replace(self.ask, circuits=())

    def _paces(self, error: BaseException | None) -> bool:
        return error is not None and self.circuit.kind_of(error) in _PACING

    def _ask(self, weight: float | None, lane: Lane | None) -> Ask:
        if weight is None and lane is None:
            return self.ask
        own = self.ask
        return replace(
            own,
            weight=own.weight if weight is None else weight,
            lane=own.lane if lane is None else Lane(lane),
        )

    def _enter(self, ask: Ask) -> Lease:
        ticket, left_s = None, self.patience_s
        while True:
            verdict = self.guard.admit(ask, ticket=ticket, patience_s=left_s)
            if isinstance(verdict, Go):
                return verdict.lease
            ticket, wait_s = self._must_wait(verdict, left_s)
            self._sleep(wait_s)
            left_s -= wait_s

    async def _enter_async(self, ask: Ask) -> Lease:
        ticket, left_s = None, self.patience_s
        while True:
            verdict = await self.guard_async.admit(ask, ticket=ticket, patience_s=left_s)
            if isinstance(verdict, Go):
                return verdict.lease
            ticket, wait_s = self._must_wait(verdict, left_s)
            await self._sleep_async(wait_s)
            left_s -= wait_s

    def _must_wait(self, verdict: Wait | Refuse, left_s: float) -> tuple[str | None, float]:
        """The ticket and the wait; raises what stands against waiting."""
        if isinstance(verdict, Wait) and verdict.reason != "half_open" and verdict.seconds <= left_s:
            return verdict.ticket, verdict.seconds
        self._counts.refuse()
        if isinstance(verdict, Wait) and verdict.reason != "half_open":
            raise Throttled(
                f"{self.name}: the next call may start in {verdict.seconds:.2f} s ({verdict.reason})",
                limit=verdict.key,
                retry_after_s=verdict.seconds,
            )
        raise self.circuit.refusal(verdict)

    def _ended(self, error: BaseException | None, began: float, *, again: bool) -> CallResult:
        self._counts.add(error, again=again)
        result = CallResult.of(error, latency_s=time.perf_counter() - began)
        return result if error is None else replace(result, kind=self.circuit.kind_of(error))


def with_resilience(name: str, **options: Any) -> Callable[[F], F]:
    """Decorate a function of the source `name`: its circuit is called after the function.

    The options are those of `Source`. A function that is not asked for anything else has three retries and
    one of the circuits in `resilience.circuits.circuits`.
    """

    def decorate(func: F) -> F:
        return Source(name, **{"circuit": func.__name__, **options})(func)

    return decorate


class _Counts:
    """What became of the calls of one process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.calls = self.retries = self.failures = self.refused = 0
        self.last_error: str | None = None
        self.last_error_at: datetime | None = None

    def add(self, error: BaseException | None, *, again: bool = False) -> None:
        with self._lock:
            self.calls += 1
            self.retries += again
            if error is not None:
                self.failures += 1
                self.last_error, self.last_error_at = type(error).__name__, datetime.now(UTC)

    def refuse(self) -> None:
        with self._lock:
            self.refused += 1

    def told(self) -> dict[str, Any]:
        with self._lock:
            at = self.last_error_at
            return {
                "calls": self.calls,
                "retries": self.retries,
                "failures": self.failures,
                "refused": self.refused,
                "last_error": self.last_error,
                "last_error_at": at and at.isoformat().replace("+00:00", "Z"),
            }


def _lets_through(view: CircuitView) -> bool:
    return view.state in {CircuitState.CLOSED, CircuitState.DISABLED} or view.free_permits > 0


def _limiter(limit: str | Limit | RateLimiter, api: str) -> RateLimiter:
    if isinstance(limit, RateLimiter):
        return limit
    limit = Limit(limit) if isinstance(limit, str) else limit
    if not isinstance(limit.per, str):
        raise ConfigurationError(f"limit {limit.spec!r} of {api}: a function in per= needs a RateLimiter")
    return RateLimiter(limit.spec, limit, api=api, key=limit.per)
