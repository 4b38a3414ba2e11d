"""How well the circuits of a program are, in one answer; and probes that find out where nobody calls.

monitor = HealthMonitor(circuits, [Probe(circuits.get("klines", api="binance"), ping)])
monitor.start()                      # a thread; `await monitor.watch()` in an asyncio program
get_system_health(circuits)          # {"healthy": True, "status": "degraded", "circuits": {…}, …}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from resilience.circuits import Circuits
from resilience.limiter import RateLimiter
from resilience.policy import Limit
from resilience.statistics import rate_of
from resilience.store import CircuitState, LimitReading

DEGRADED_BELOW = 0.95  # share of successes in the circuit's window
FAILED_BELOW = 0.5


class CollectorStatus(StrEnum):
    """How well something is, from best to worst."""

    HEALTHY = "healthy"
    DEGRADED = "degraded"
    FAILED = "failed"
    CIRCUIT_OPEN = "circuit_open"


class Detail(StrEnum):
    """Why it stands as it does, where its calls do not say."""

    PAUSED = "paused"  # somebody holds the circuit open
    RATE_LIMITED = "rate_limited"  # the API wants to hear nothing for now, or had to say so of late


_WORST_LAST = list(CollectorStatus)
_HEALTHY = frozenset({CollectorStatus.HEALTHY, CollectorStatus.DEGRADED})


@dataclass(frozen=True, slots=True)
class Health:
    """How well one circuit is. `facts` is all that its `get_status` says.

    `health_score` is the share of successes since the circuit is known: after a bad day it stays low.
    `health_recent` is that of the policy's window, and what `status` goes by.
    """

    name: str
    status: CollectorStatus
    detail: Detail | None
    health_score: float
    health_recent: float
    facts: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, name: str, facts: Mapping[str, Any]) -> Self:
        """The health that a circuit's `get_status` speaks of."""
        paused = facts["state"] == CircuitState.FORCED_OPEN
        status = _status(CircuitState(facts["state"]), facts["health_recent"])
        return cls(
            name,
            status,
            Detail.PAUSED if paused else None,
            facts["health_score"],
            facts["health_recent"],
            facts,
        )

    @property
    def healthy(self) -> bool:
        """Whether calls are worth making: healthy or degraded."""
        return self.status in _HEALTHY

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts."""
        return {
            "healthy": self.healthy,
            "status": self.status.value,
            "detail": self.detail and self.detail.value,
            "health_score": self.health_score,
            "health_recent": self.health_recent,
            "circuit_breaker": dict(self.facts),
        }


def _status(state: CircuitState, recent: float) -> CollectorStatus:
    if state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}:
        return CollectorStatus.CIRCUIT_OPEN
    if recent < FAILED_BELOW:
        return CollectorStatus.FAILED
    if state is CircuitState.HALF_OPEN or recent < DEGRADED_BELOW:
        return CollectorStatus.DEGRADED
    return CollectorStatus.HEALTHY


def health(circuits: Circuits) -> dict[str, Health]:
    """How well each circuit is, by `api/name`, in one message to the store."""
    return {name: Health.of(name, facts) for name, facts in circuits.statuses().items()}


def get_system_health(circuits: Circuits, limiters: Iterable[RateLimiter] = ()) -> dict[str, Any]:
    """Circuits and limits of a program in one JSON-safe answer, with two messages to their store.

    It is healthy while one of its circuits is; `status` is then degraded at worst, for what is there goes on.
    Limits go by `api/name/key`: those of an API that wants to hear nothing for now are `rate_limited`, and so
    are its circuits. Raises StoreUnavailableError where the store does not answer: then nothing is known.
    """
    kept = list(limiters)
    readings = circuits.store.limits([limiter.spec for limiter in kept]) if kept else []
    told = [(limiter, _limit(limiter.limit, seen)) for limiter, seen in zip(kept, readings, strict=True)]
    limited = {limiter.api for limiter, facts in told if facts["limited_until"]}
    found = {
        name: replace(each, detail=Detail.RATE_LIMITED)
        if each.detail is None and each.facts["api"] in limited
        else each
        for name, each in health(circuits).items()
    }
    status = _together(each.status for each in found.values())
    return {
        "healthy": status in _HEALTHY,
        "status": status.value,
        "detail": Detail.RATE_LIMITED.value if limited else None,
        "circuits": {name: each.to_dict() for name, each in found.items()},
        "limits": {f"{limiter.api}/{limiter.name}/{limiter.key}": facts for limiter, facts in told},
    }


def _limit(limit: Limit, seen: LimitReading) -> dict[str, Any]:
    until_us = max(seen.gate_until_us, seen.backoff_until_us)
    return {
        "limited_until": _iso(until_us),
        "banned": seen.banned,
        "rate_per_s": rate_of(limit, seen.stretch),
        "left": seen.left,
        "waiting": seen.waiting,
        "calls": seen.calls,
        "violations": seen.violations,
    }


def _iso(us: int) -> str | None:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat().replace("+00:00", "Z") if us else None


def _together(statuses: Iterable[CollectorStatus]) -> CollectorStatus:
    found = sorted(statuses, key=_WORST_LAST.index)
    if not found or found[-1] is CollectorStatus.HEALTHY:
        return CollectorStatus.HEALTHY
    return CollectorStatus.DEGRADED if found[0] in _HEALTHY else found[-1]
