"""Several ways to the same data, the best one first, with a circuit each.

accounts = Tiers("accounts", {"mcp": from_mcp, "sdk": from_sdk, "rest": from_rest})
accounts.call("4711")                  # `await accounts.call_async("4711")` for coroutine functions
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import AllTiersFailedError, CircuitOpenError, ConfigurationError, PenstockError
from resilience.fallback import On, rule_of
from resilience.policy import BreakerPolicy

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

LOOK_AGAIN_S = 10.0  # an open circuit is asked again after this, in case somebody has closed it by hand


class _MistakeError(PenstockError):
    """A mistake in the program, which says nothing about the service."""

    def __init__(self, error: Exception) -> None:
        super().__init__(cause=error)
        self.error = error


@dataclass(slots=True)
class _Tier(Generic[T]):
    name: str
    func: Callable[..., T]
    breaker: CircuitBreaker
    away_until: float = 0.0
    error: Exception | None = None


class Tiers(Generic[T]):
    """Ways to the same data, the best first, with a circuit each: `name.tier` of `api`.

    A call goes to the best tier that is not known to be away, and down from there while errors fall. A tier
    whose circuit has opened is left alone until the circuit is half-open; then a call probes it, and when the
    circuit closes everybody is back on the better tier. A tier that asked for a wait is left alone for as
    long as it said.

    The circuits are those of `circuits`, in memory unless it has another store; what is remembered here is
    only when to ask again. `on` replaces the rule `falls`; an error that does not fall is raised as it is,
    and a mistake opens no circuit. Where all tiers fail or are away: AllTiersFailedError with the `errors` of
    each. Threads and asyncio tasks may share one.
    """

    def __init__(
        self,
        name: str,
        tiers: Mapping[str, Callable[..., T]],
        *,
        api: str = "local",
        policy: BreakerPolicy | None = None,
        circuits: Circuits | None = None,
        on: On | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if len(tiers) < 2:
            raise ConfigurationError(f"{name} has {len(tiers)} tiers, but needs at least 2")
        self.name = name
        self._falls = rule_of(on)
        self._clock = clock
        registry = Circuits() if circuits is None else circuits
        self._tiers = [
            _Tier(tier, func, registry.get(f"{name}.{tier}", api=api, policy=policy))
            for tier, func in tiers.items()
        ]
        self._used = self._tiers[0]

    @property
    def tier(self) -> str:
        """The tier that answered last; the best one before the first call."""
        return self._used.name

    def call(self, *args: Any, **kwargs: Any) -> T:
        """Call the best tier that works, with these arguments."""
        errors: dict[str, Exception] = {}
        for tier in self._at_hand(errors):
            try:
                result = tier.breaker.call(self._attempt, tier.func, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - raised again unless it falls
                failure = error
            else:
                self._worked(tier)
                return result
            self._failed(tier, failure, errors)
        raise self._all_failed(errors)

    async def call_async(self: "Tiers[Awaitable[R]]", *args: Any, **kwargs: Any) -> R:
        """`call` for tiers that are coroutine functions."""
        errors: dict[str, Exception] = {}
        for tier in self._at_hand(errors):
            try:
                result: R = await tier.breaker.call_async(self._attempt_async, tier.func, *args, **kwargs)
            except Exception as error:  # noqa: BLE001 - raised again unless it falls
                failure = error
            else:
                self._worked(tier)
                return result
            self._failed(tier, failure, errors)
        raise self._all_failed(errors)

    def _at_hand(self, errors: dict[str, Exception]) -> Iterator[_Tier[T]]:
        """The tiers to try, the best first; of those that are away it tells why."""
        for tier in self._tiers:
            if tier.error is not None and self._clock() < tier.away_until:
                errors[tier.name] = tier.error
            else:
                yield tier

    def _failed(self, tier: _Tier[T], error: Exception, errors: dict[str, Exception]) -> None:
        if isinstance(error, _MistakeError):
            raise error.error
        if not self._falls(error):
            raise error
        errors[tier.name] = error
        tier.error, tier.away_until = error, self._clock() + self._wait_s(error)

    def _wait_s(self, error: Exception) -> float:
        """How long the tier need not be asked."""
        if isinstance(error, CircuitOpenError):
            retry_at = error.retry_at or datetime.fromtimestamp(0, UTC)
            return min(retry_at.timestamp() - self._clock(), LOOK_AGAIN_S)
        return getattr(error, "retry_after_s", None) or 0.0

    def _worked(self, tier: _Tier[T]) -> None:
        tier.error = None
        if tier is not self._used:
            log.warning("%s: from tier %s to tier %s", self.name, self._used.name, tier.name)
            self._used = tier

    def _attempt(self, func: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Tell the breaker of a mistake what it is: a failure would open the circuit, a success close it."""
        try:
            return func(*args, **kwargs)
        except Exception as error:
            if self._is_mistake(error):
                raise _MistakeError(error) from error
            raise

    async def _attempt_async(self, func: Callable[..., Awaitable[R]], *args: Any, **kwargs: Any) -> R:
        try:
            return await func(*args, **kwargs)
        except Exception as error:
            if self._is_mistake(error):
                raise _MistakeError(error) from error
            raise

    def _is_mistake(self, error: Exception) -> bool:
        return not isinstance(error, PenstockError) and not self._falls(error)

    def _all_failed(self, errors: Mapping[str, Exception]) -> AllTiersFailedError:
        told = "; ".join(f"{tier}: {type(error).__name__}: {error}" for tier, error in errors.items())
        return AllTiersFailedError(f"{self.name}: every tier failed: {told}", errors=errors)
