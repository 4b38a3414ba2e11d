"""What to have when a call fails or takes too long: another way, or a default; see also `tiers`.

    @with_fallback(price_of_yesterday)
    @with_timeout(5)
    def price(symbol): ...

    @try_or_default(0)
    async def followers(name): ...

All of them work for functions and for coroutine functions. None of them hides a mistake: only an error that
says something about a service, or that a call was refused, lets the next way be tried (`falls`).
"""

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable
from concurrent.futures import Future, wait
from contextvars import copy_context
from threading import Thread
from typing import Any, TypeVar

import pybreaker

from resilience.errors import (
    AllTiersFailedError,
    ApiTimeoutError,
    ConfigurationError,
    PenstockError,
    Refused,
    RetryExhaustedError,
    Scope,
)

log = logging.getLogger(__name__)

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])
On = type[Exception] | tuple[type[Exception], ...] | Callable[[Exception], bool]

_NOTHING: Any = object()


def falls(error: Exception) -> bool:
    """Whether an error lets the next way be tried.

    It does where it says something about the service (our classes by their `scope`, the builtin TimeoutError
    and ConnectionError) or that the call was refused (an open circuit, a limit without room). All else is
    raised: an answer about this one request, such as NotFoundError, which no other way would improve;
    credentials that are wrong; and a mistake such as TypeError, which must not hide behind a second source.
    """
    if isinstance(error, RetryExhaustedError) and isinstance(error.cause, Exception):
        return falls(error.cause)
    if isinstance(error, PenstockError):
        return error.scope is Scope.SERVICE or isinstance(error, (Refused, AllTiersFailedError))
    return isinstance(error, (TimeoutError, ConnectionError, pybreaker.CircuitBreakerError))


def with_fallback(*others: Callable[..., Any], on: On | None = None) -> Callable[[F], F]:
    """Decorate a function so that others, given the same arguments, are tried where it fails.

    No circuits: each call begins with the function itself. Where all of them fail: AllTiersFailedError.
    """
    rule = rule_of(on)

    def decorate(func: F) -> F:
        ways: tuple[Callable[..., Any], ...] = (func, *others)

        @functools.wraps(func)
        def tried(*args: Any, **kwargs: Any) -> Any:
            errors: dict[str, Exception] = {}
            for way in ways:
                try:
                    return way(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - raised again unless it falls
                    _keep(errors, _name(way), error, rule)
            raise AllTiersFailedError(errors=errors)

        @functools.wraps(func)
        async def tried_async(*args: Any, **kwargs: Any) -> Any:
            errors: dict[str, Exception] = {}
            for way in ways:
                try:
                    return await way(*args, **kwargs)
                except Exception as error:  # noqa: BLE001 - raised again unless it falls
                    _keep(errors, _name(way), error, rule)
            raise AllTiersFailedError(errors=errors)

        return _either(func, tried, tried_async)

    return decorate


def with_timeout(seconds: float, *, default: Any = _NOTHING) -> Callable[[F], F]:
    """Decorate a function so that it takes `seconds` at most; then ApiTimeoutError, or the `default`.

    A coroutine is cancelled. A function runs in a thread of its own, which cannot be stopped: the caller goes
    on, and what it does has to end by itself. So give the call that waits a timeout too.
    """
    if not seconds > 0:
        raise ConfigurationError(f"with_timeout: seconds is {seconds}, but has to be above 0")

    def decorate(func: F) -> F:
        def late() -> Any:
            if default is _NOTHING:
                raise ApiTimeoutError(f"{_name(func)} took longer than {seconds:g} s")
            return default

        @functools.wraps(func)
        def timed(*args: Any, **kwargs: Any) -> Any:
            future = _in_thread(func, *args, **kwargs)
            return future.result() if wait([future], seconds).done else late()

        @functools.wraps(func)
        async def timed_async(*args: Any, **kwargs: Any) -> Any:
            try:
                async with asyncio.timeout(seconds) as timeout:
                    return await func(*args, **kwargs)
            except TimeoutError:
                if not timeout.expired():
                    raise
            return late()

        return _either(func, timed, timed_async)

    return decorate


def try_or_default(default: Any, *, on: On | None = None) -> Callable[[F], F]:
    """Decorate a function so that it returns `default` where its error falls; `on=Exception` for any."""
    rule = rule_of(on)

    def decorate(func: F) -> F:
        def excused(error: Exception) -> Any:
            if not rule(error):
                raise error
            log.warning("%s failed (%s: %s): the default it is", _name(func), type(error).__name__, error)
            return default

        @functools.wraps(func)
        def tried(*args: Any, **kwargs: Any) -> Any:
            try:
                return func(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - raised again unless the rule excuses it
                return excused(error)

        @functools.wraps(func)
        async def tried_async(*args: Any, **kwargs: Any) -> Any:
            try:
                return await func(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - as above
                return excused(error)

        return _either(func, tried, tried_async)

    return decorate


def _in_thread(func: Callable[..., T], *args: Any, **kwargs: Any) -> "Future[T]":
    # No pool: it would keep the process from ending until the last of its threads is through.
    future: Future[T] = Future()
    context = copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(func, *args, **kwargs))
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            future.set_exception(error)

    Thread(target=run, name=_name(func), daemon=True).start()
    return future


def _keep(
    errors: dict[str, Exception], name: str, error: Exception, rule: Callable[[Exception], bool]
) -> None:
    if not rule(error):
        raise error
    log.warning("%s failed (%s: %s)", name, type(error).__name__, error)
    errors[name if name not in errors else f"{name} {len(errors) + 1}"] = error


def rule_of(on: On | None) -> Callable[[Exception], bool]:
    """The rule that `on` stands for; `falls` where nothing is given."""
    if on is None:
        return falls
    if isinstance(on, (type, tuple)):
        return lambda error: isinstance(error, on)
    return on


def _either(func: F, plain: Callable[..., Any], coroutine: Callable[..., Any]) -> F:
    return coroutine if inspect.iscoroutinefunction(func) else plain  # type: ignore[return-value]


def _name(func: Callable[..., Any]) -> str:
    return getattr(func, "__qualname__", None) or repr(func)
