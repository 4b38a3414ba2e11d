"""Probes that find out how a service is where nobody calls it.

monitor = HealthMonitor(circuits, [Probe(circuits.get("klines", api="binance"), ping)])
monitor.start()                      # a thread; `await monitor.watch()` in an asyncio program
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from threading import Event, Thread
from typing import NoReturn, Self

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import ConfigurationError, PenstockError, StoreUnavailableError
from resilience.fallback import with_timeout
from resilience.guard import Ask, CallResult, Go, Guard, Kind, Lease
from resilience.health import Health, health
from resilience.limiter import RateLimiter
from resilience.policy import Lane, Limit
from resilience.store.memory import MemoryStore

log = logging.getLogger(__name__)

BUDGET = Limit("4/1m")


@dataclass(frozen=True, slots=True)
class Probe:
    """A call that costs little and shows whether a service answers. `limits` are those its calls count in.

    `call` is a function, or a coroutine function for a monitor that is watched in an event loop.
    """

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
        """Check in this event loop until cancelled; probes that are plain functions run in threads."""
        while True:
            with self._round():
                await self.check_async()
            await asyncio.sleep(self._every_s)

    def check(self) -> dict[str, Health]:
        """Probe once, and say how well every circuit is. Raises StoreUnavailableError."""
        last = self._last or health(self._circuits)
        for ask, call in self._probes:
            if inspect.iscoroutinefunction(call):
                raise ConfigurationError(f"the probe of {_circuit(ask)} has to be awaited: use `check_async`")
            if lease := self._admit(ask):
                with self._settling(lease):
                    call()
        return self._compare(last)

    async def check_async(self) -> dict[str, Health]:
        """`check` for an event loop."""
        last = self._last or await asyncio.to_thread(health, self._circuits)
        for ask, call in self._probes:
            if lease := await asyncio.to_thread(self._admit, ask):
                async with self._settling_async(lease):
                    await (call() if inspect.iscoroutinefunction(call) else asyncio.to_thread(call))
        return await asyncio.to_thread(self._compare, last)

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._round():
                self.check()
            self._stopped.wait(self._every_s)

    @contextmanager
    def _round(self) -> Iterator[None]:
        try:
            yield
        except StoreUnavailableError as error:
            log.warning("health is not known: %s", error)
        except Exception:
            log.exception("a round of health checks failed")

    def _admit(self, ask: Ask) -> Lease | None:
        verdict = self._guard.admit(ask)
        if isinstance(verdict, Go):
            return verdict.lease
        log.debug("no probe of %s: %s", _circuit(ask), verdict.reason)
        return None

    @contextmanager
    def _settling(self, lease: Lease) -> Iterator[None]:
        """Report how a probe ended, whatever it was."""
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            self._guard.settle_quietly(lease, _ended(error, began))
            if not isinstance(error, Exception):
                raise
        else:
            self._guard.settle_quietly(lease, _ended(None, began))

    @asynccontextmanager
    async def _settling_async(self, lease: Lease) -> AsyncIterator[None]:
        """`_settling`, in a thread as everything else that is asked of the store here."""
        began = time.perf_counter()
        try:
            yield
        except BaseException as error:
            await asyncio.to_thread(self._guard.settle_quietly, lease, _ended(error, began))
            if not isinstance(error, Exception):
                raise
        else:
            await asyncio.to_thread(self._guard.settle_quietly, lease, _ended(None, began))

    def _compare(self, last: Mapping[str, Health]) -> dict[str, Health]:
        found = self._last = health(self._circuits)
        for name, now in found.items():
            before = last.get(name)
            if before is not None and before.status is not now.status:
                self._tell(before, now)
        return found

    def _tell(self, before: Health, now: Health) -> None:
        log.warning("%s was %s and is %s", now.name, before.status, now.status)
        if self._on_change is not None:
            self._on_change(before, now)


def _ended(error: BaseException | None, began: float) -> CallResult:
    """What a probe says of the service. One that broke off says nothing, and any other error a failure."""
    result = CallResult.of(error, latency_s=time.perf_counter() - began)
    unknown = isinstance(error, Exception) and not isinstance(error, PenstockError)
    return replace(result, kind=Kind.FAILURE) if unknown else result


def _circuit(ask: Ask) -> str:
    return ask.circuits[0].circuit


def _ask(probe: Probe, budget: Limit) -> Ask:
    breaker = probe.breaker
    own = RateLimiter("health", budget, api=breaker.api, key="health")
    return Ask(breaker.api, (breaker,), (*probe.limits, own), lane=Lane.BACKFILL)
