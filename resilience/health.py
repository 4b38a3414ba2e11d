"""How well the circuits of a program are, in one answer; and probes that find out where nobody calls.

monitor = HealthMonitor(circuits, [Probe(circuits.get("klines", api="binance"), ping)])
monitor.start()                      # a thread; `await monitor.watch()` in an asyncio program
get_system_health(circuits)          # {"healthy": True, "status": "degraded", "circuits": {…}, …}
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from threading import Event, Thread
from typing import Any, NoReturn, Self

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import ConfigurationError, PenstockError, StoreUnavailableError
from resilience.fallback import with_timeout
from resilience.guard import Ask, CallResult, Go, Guard, Kind
from resilience.limiter import RateLimiter
from resilience.policy import Lane, Limit
from resilience.statistics import rate_of
from resilience.store import CircuitState, LimitReading
from resilience.store.memory import MemoryStore

log = logging.getLogger(__name__)

DEGRADED_BELOW = 0.95  # share of successes in the circuit's window
FAILED_BELOW = 0.5
BUDGET = Limit("4/1m")


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


@dataclass(frozen=True, slots=True)
class Probe:
    """A call that costs little and shows whether a service answers. `limits` are those its calls count in."""

    breaker: CircuitBreaker
    call: Callable[[], object]
    limits: tuple[RateLimiter, ...] = ()


class HealthMonitor:
    """Probes services every `every_s` seconds, and tells when the health of a circuit changes.

    A probe passes the circuit and the limits as any call does, and besides a budget of its own that the whole
    fleet shares, per API: where there is no room it is left out, and it never takes a place that live work
    waits for. Behind an open circuit nothing is called; of a half-open one a probe takes a permit, so that a
    service that nobody calls is found well again. A probe that takes longer than `timeout_s` has failed.

    `check` is one round, for programs with a scheduler of their own. While the store is away a round tells
    nothing and the next one tries again.
    """

    def __init__(
        self,
        circuits: Circuits,
        probes: Sequence[Probe],
        *,
        every_s: float = 30.0,
        timeout_s: float = 10.0,
        budget: Limit = BUDGET,
        on_change: Callable[[Health, Health], object] | None = None,
    ) -> None:
        if not every_s > 0:
            raise ConfigurationError(f"HealthMonitor: every_s is {every_s}, but has to be above 0")
        self._circuits, self._every_s, self._on_change = circuits, every_s, on_change
        self._guard = Guard(circuits.store)
        if isinstance(circuits.store, MemoryStore):
            circuits.store.mark_fresh({probe.breaker.api for probe in probes})  # nobody else can have called
        self._probes = [(_ask(probe, budget), with_timeout(timeout_s)(probe.call)) for probe in probes]
        self._last: dict[str, Health] = {}
        self._stopped = Event()
        self._thread: Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Check in a thread from now on."""
        if self._thread is None:
            self._stopped.clear()
            self._thread = Thread(target=self._run, name="health", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread, after the round that is under way."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    async def watch(self) -> NoReturn:
        """Check in a thread of the event loop's until cancelled."""
        while True:
            await asyncio.to_thread(self._round)
            await asyncio.sleep(self._every_s)

    def check(self) -> dict[str, Health]:
        """Probe once, and say how well every circuit is. Raises StoreUnavailableError."""
        last = self._last or health(self._circuits)
        for ask, call in self._probes:
            self._probe(ask, call)
        found = self._last = health(self._circuits)
        for name, now in found.items():
            before = last.get(name)
            if before is not None and before.status is not now.status:
                self._tell(before, now)
        return found

    def _run(self) -> None:
        while not self._stopped.is_set():
            self._round()
            self._stopped.wait(self._every_s)

    def _round(self) -> None:
        try:
            self.check()
        except StoreUnavailableError as error:
            log.warning("health is not known: %s", error)
        except Exception:
            log.exception("a round of health checks failed")

    def _probe(self, ask: Ask, call: Callable[[], object]) -> None:
        verdict = self._guard.admit(ask)
        if not isinstance(verdict, Go):
            log.debug("no probe of %s: %s", ask.circuits[0].circuit, verdict.reason)
            return
        began, failure = time.perf_counter(), None
        try:
            call()
        except Exception as error:  # noqa: BLE001 - what it says of the service is what was asked for
            failure = error
        latency_s = time.perf_counter() - began
        result = CallResult.of(failure, latency_s=latency_s)
        if failure is not None and not isinstance(failure, PenstockError):
            result = replace(
                result, kind=Kind.FAILURE
            )  # a probe that breaks has not shown a service that answers
        self._guard.settle(verdict.lease, result)

    def _tell(self, before: Health, now: Health) -> None:
        log.warning("%s was %s and is %s", now.name, before.status, now.status)
        if self._on_change is not None:
            self._on_change(before, now)


def _ask(probe: Probe, budget: Limit) -> Ask:
    breaker = probe.breaker
    own = RateLimiter("health", budget, api=breaker.api, key="health")
    return Ask(breaker.api, (breaker,), (*probe.limits, own), lane=Lane.BACKFILL)
