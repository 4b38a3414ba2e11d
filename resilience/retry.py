"""Calls that are made again: how long between them, how often, and when to stop.

    @retry                                            # 4 calls in all, for errors that say `recoverable`
    def fetch(): ...

    @retry(RetryPolicy(attempts=5, jitter="equal"), on=(OSError,), deadline_s=30)
    async def fetch(): ...

    retry(deadline_s=30).call(fetch, "BTCUSDT")       # in place; `await ….call_async(fetch)` for a coroutine

A retry holds its thread (or its coroutine) while it waits; whoever must not be held goes back to a queue, as
the units of a run do.
"""

import asyncio
import functools
import inspect
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, TypeVar, overload

import pybreaker

from resilience.errors import ConfigurationError, Refused, RetryExhaustedError, StoreUnavailableError
from resilience.policy import RetryPolicy
from resilience.store import RetrySpec, Store
from resilience.store.memory import MemoryStore

log = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
_NETWORK = (ConnectionError, TimeoutError)
On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]


@dataclass(frozen=True, slots=True)
class Retrying:
    """The `attempt`-th call of at most `attempts` failed, and after `wait_s` there will be another."""

    name: str
    attempt: int
    attempts: int
    wait_s: float
    error: Exception = field(repr=False)


class RetryBudget:
    """How many calls of a whole fleet may be retries: a `share` of its first calls, and always `least_per_s`.

    When everything fails, retries multiply the load on a service that is ill already. What is not used is
    saved, up to what `saved_s` of `least_per_s` come to. The idea and the numbers are those of Finagle's
    RetryBudget; ours is kept in a store for everybody who names the same `api` and `name`.

    It costs nothing until a call fails: each process counts its first calls, and says so when it next asks
    for a retry. While the store is away every retry is allowed: the policy's `attempts` still bound them.
    """

    def __init__(
        self,
        name: str = "all",
        *,
        api: str = "local",
        share: float = 0.2,
        least_per_s: float = 10.0,
        saved_s: float = 10.0,
        store: Store | None = None,
    ) -> None:
        if not 0 <= share <= 1:
            raise ConfigurationError(f"RetryBudget: share is {share}, but has to lie in 0 … 1")
        if not 0.001 <= least_per_s <= 1e6:
            raise ConfigurationError(
                f"RetryBudget: least_per_s is {least_per_s}, but has to lie in 0.001 … 1000000"
            )
        if not (saved_s <= 3600 and least_per_s * saved_s >= 1):
            raise ConfigurationError(
                f"RetryBudget: saved_s is {saved_s}, but has to be an hour at most and, times least_per_s "
                f"({least_per_s}), at least one retry"
            )
        unit_us = round(1e6 / least_per_s)
        self.spec = RetrySpec(api, name, unit_us, round(saved_s * least_per_s) * unit_us)
        self.store = store or MemoryStore()
        self._earned_us = share * unit_us
        self._calls = 0
        self._lock = Lock()

    def deposit(self) -> None:
        """Count a first call."""
        with self._lock:
            self._calls += 1

    def withdraw(self) -> bool:
        """Whether one more call may be a retry; if so, it is spent."""
        try:
            return self.store.retry(self.spec, self._earned())
        except StoreUnavailableError as error:
            log.warning("retries are not counted: %s", error)
            return True

    async def withdraw_async(self) -> bool:
        """`withdraw`, without blocking the loop."""
        try:
            return await self.store.asynchronous.retry(self.spec, self._earned())
        except StoreUnavailableError as error:
            log.warning("retries are not counted: %s", error)
            return True

    def _earned(self) -> int:
        with self._lock:
            calls, self._calls = self._calls, 0
        return min(round(calls * self._earned_us), self.spec.room_us)


class Retry:
    """Makes a call again while its error is worth it: as a decorator, by `call`, or by `call_async`.

    `on` says which errors: classes, or a function that is given the error. Without it their class decides
    (`recoverable`); of errors that do not say, the builtin ConnectionError and TimeoutError are worth it.
    A call that was refused (`CircuitOpenError`, `Throttled`) was none, and is never repeated here; nor is one
    that was cancelled. A wait that the server names is never shortened.

    The last error is raised as it is, or with `wrap` as the cause of a `RetryExhaustedError`. No wait is
    begun that would end more than `deadline_s` after the first call began. `on_retry` hears of each retry
    before its wait, and is awaited where it is a coroutine function; what it raises is only logged. `clock`,
    `sleep`, `sleep_async` and `rng` are there for tests.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        *,
        on: On | None = None,
        deadline_s: float | None = None,
        budget: RetryBudget | None = None,
        on_retry: Callable[[Retrying], object] | None = None,
        wrap: bool = False,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
        sleep_async: Callable[[float], Awaitable[object]] = asyncio.sleep,
        rng: Callable[[], float] = random.random,
    ) -> None:
        if deadline_s is not None and not deadline_s > 0:
            raise ConfigurationError(f"retry: deadline_s is {deadline_s}, but has to be above 0 (or None)")
        self.policy = policy or RetryPolicy()
        self.budget = budget
        self.deadline_s = deadline_s
        self.wrap = wrap
        self.on = on
        self.on_retry = on_retry
        self.clock, self.sleep, self.sleep_async, self.rng = clock, sleep, sleep_async, rng

    def __call__(self, func: F) -> F:
        """Decorate a function or a coroutine function."""
        self.check(func, awaited=inspect.iscoroutinefunction(func))
        if inspect.iscoroutinefunction(func):

            @functools.wraps(func)
            async def retried_async(*args: Any, **kwargs: Any) -> Any:
                return await self.call_async(func, *args, **kwargs)

            return retried_async  # type: ignore[return-value]

        @functools.wraps(func)
        def retried(*args: Any, **kwargs: Any) -> Any:
            return self.call(func, *args, **kwargs)

        return retried  # type: ignore[return-value]

    def call(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call `func` until it returns, or raise what it raised last."""
        self.check(func, awaited=False)
        calls = _Calls(self, func)
        while True:
            try:
                return called(func, *args, **kwargs)
            except Exception as error:
                wait_s = calls.wait_after(error)
                if wait_s is None or not (self.budget is None or self.budget.withdraw()):
                    calls.give_up(error)
                    raise
                calls.announce(error, wait_s)
            self.sleep(wait_s)

    async def call_async(self, func: Callable[..., Awaitable[T]], *args: Any, **kwargs: Any) -> T:
        """`call` for a coroutine function."""
        self.check(func, awaited=True)
        calls = _Calls(self, func)
        while True:
            try:
                return await func(*args, **kwargs)
            except Exception as error:
                wait_s = calls.wait_after(error)
                if wait_s is None or not (self.budget is None or await self.budget.withdraw_async()):
                    calls.give_up(error)
                    raise
                await calls.announce_async(error, wait_s)
            await self.sleep_async(wait_s)

    def check(self, func: Callable[..., Any], *, awaited: bool) -> None:
        """Raise ConfigurationError for a function whose end cannot be seen in this form."""
        if inspect.isgeneratorfunction(func) or inspect.isasyncgenfunction(func):
            raise ConfigurationError(
                f"{_name(func)} is a generator: a retry would yield again what was taken already"
            )
        if not awaited and inspect.iscoroutinefunction(func):
            raise _not_awaited(func)
        if not awaited and inspect.iscoroutinefunction(self.on_retry):
            raise ConfigurationError(f"on_retry is a coroutine function, and {_name(func)} is not awaited")

    def wants(self, error: Exception) -> bool:
        """Whether another call could end better."""
        if isinstance(error, (Refused, pybreaker.CircuitBreakerError)):
            return False
        if self.on is None:
            return bool(getattr(error, "recoverable", isinstance(error, _NETWORK)))
        if isinstance(self.on, (type, tuple)):
            return isinstance(error, self.on)
        return self.on(error)


class _Calls:
    """The calls that one retry has made so far; knows neither how to call nor how to wait."""

    def __init__(self, owner: Retry, func: Callable[..., Any]) -> None:
        self.owner, self.name = owner, _name(func)
        self.attempt = 0
        self.wanted = False
        self.began = owner.clock()
        if owner.budget is not None:
            owner.budget.deposit()

    def wait_after(self, error: Exception) -> float | None:
        """Count a call that failed, and say how long to wait for the next; None if there is none."""
        owner = self.owner
        self.attempt += 1
        self.wanted = owner.wants(error)
        if not self.wanted or self.attempt >= owner.policy.attempts:
            return None
        retry_after_s = getattr(error, "retry_after_s", None)
        wait_s = owner.policy.wait_s(self.attempt, retry_after_s, rng=owner.rng)
        if owner.deadline_s is not None and self._elapsed_s() + wait_s > owner.deadline_s:
            return None
        return wait_s

    def announce(self, error: Exception, wait_s: float) -> None:
        """Log the retry, and tell whoever listens; that must not change what becomes of the call."""
        retrying = self._logged(error, wait_s)
        try:
            if self.owner.on_retry is not None:
                self.owner.on_retry(retrying)
        except Exception:
            log.exception("on_retry of %s failed", self.name)

    async def announce_async(self, error: Exception, wait_s: float) -> None:
        """`announce`, and who listens is awaited if need be."""
        retrying = self._logged(error, wait_s)
        try:
            heard = None if self.owner.on_retry is None else self.owner.on_retry(retrying)
            if inspect.isawaitable(heard):
                await heard
        except Exception:
            log.exception("on_retry of %s failed", self.name)

    def _logged(self, error: Exception, wait_s: float) -> Retrying:
        retrying = Retrying(self.name, self.attempt, self.owner.policy.attempts, wait_s, error)
        log.warning(
            "%s failed (%s: %s), call %d of %d; again in %.2f s",
            *(self.name, type(error).__name__, error, self.attempt, retrying.attempts, wait_s),
        )
        return retrying

    def give_up(self, error: Exception) -> None:
        """Say how many calls there were, where the error itself does not."""
        told = f"{self.name}: {self.attempt} calls in {self._elapsed_s():.1f} s failed"
        if self.owner.wrap and self.wanted:
            raise RetryExhaustedError(
                f"{told}, the last with {error}", attempts=self.attempt, cause=error
            ) from error
        if self.attempt > 1:
            error.add_note(told)

    def _elapsed_s(self) -> float:
        return self.owner.clock() - self.began


@overload
def retry(policy: F, /) -> F: ...
@overload
def retry(policy: RetryPolicy | None = None, **options: Any) -> Retry: ...
def retry(policy: Any = None, **options: Any) -> Any:
    """A `Retry` with these options; given nothing but a function, the function retried."""
    if policy is None or isinstance(policy, RetryPolicy):
        return Retry(policy, **options)
    return Retry(**options)(policy)


def called(func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """What `func` returns. A coroutine is no result: it has not begun, and nobody here would await it."""
    result = func(*args, **kwargs)
    if inspect.iscoroutine(result):
        result.close()
        raise _not_awaited(func)
    return result


def _not_awaited(func: Callable[..., Any]) -> ConfigurationError:
    return ConfigurationError(f"{_name(func)} makes a coroutine: await the form that ends in _async")


def _name(func: Callable[..., Any]) -> str:
    func = func.func if isinstance(func, functools.partial) else func
    return getattr(func, "__qualname__", None) or repr(func)
