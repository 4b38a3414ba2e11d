"""A guard, its store and their clock, for tests on every store, blocking or awaited. The clock is the test's own."""

import asyncio
from datetime import UTC, datetime, timedelta

from resilience.breaker import CircuitBreaker
from resilience.errors import RateLimitError, ServerError
from resilience.guard import Ask, CallResult, CircuitState, Go, Guard, Refuse, Wait
from resilience.guard_async import AsyncGuard
from resilience.limiter import RateLimiter
from resilience.policy import BreakerPolicy, Limit
from resilience.store.redis import RedisStore

CLOSED, OPEN, HALF_OPEN = CircuitState.CLOSED, CircuitState.OPEN, CircuitState.HALF_OPEN
GOOD = CallResult.of(None, latency_s=0.1)
BAD = CallResult.of(ServerError(), latency_s=0.1)


class Awaited:
    """An AsyncGuard whose questions are awaited one by one, in a loop of their own."""

    def __init__(self, store):
        self.guard, self.loop = AsyncGuard(store), asyncio.new_event_loop()

    def __getattr__(self, question):
        ask = getattr(self.guard, question)
        return lambda *parts, **words: self.loop.run_until_complete(ask(*parts, **words))

    def close(self):
        self.loop.run_until_complete(self.guard.store.close())
        self.loop.close()


class World:
    """A guard, its store and their clock."""

    def __init__(self, make_store, make_guard=Guard):
        self.now_us = 1_700_000_000_000_000
        self.make_store, self.make_guard, self.guard = make_store, make_guard, None
        self.remember(None)

    def remember(self, recall):
        """Ask this about circuits that the store does not know."""
        self.close()
        self.store = self.make_store(now_us=lambda: self.now_us, recall=recall)
        self.guard = self.make_guard(self.store)

    def lose(self):
        """The store forgets everything."""
        if isinstance(self.store, RedisStore):
            self.store._command(("FLUSHALL",))
        else:
            self.remember(None)

    def close(self):
        if isinstance(self.guard, Awaited):
            self.guard.close()
        if self.guard and isinstance(self.store, RedisStore):
            self.store.close()

    def sleep(self, seconds):
        self.now_us += round(seconds * 1e6)

    @property
    def now(self):
        return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=self.now_us)

    def circuit(self, name="klines", *, listeners=(), **policy):
        return CircuitBreaker(
            name=name, api="binance", policy=BreakerPolicy(**policy), store=self.store, listeners=listeners
        )

    def ask(self, *parts, **words):
        circuits = tuple(part for part in parts if isinstance(part, CircuitBreaker))
        limits = tuple(part for part in parts if isinstance(part, RateLimiter))
        return Ask("binance", circuits, limits, **words)

    def go(self, *parts, ticket=None, **words):
        verdict = self.guard.admit(self.ask(*parts, **words), ticket=ticket)
        assert isinstance(verdict, Go), verdict
        return verdict.lease

    def wait(self, *parts, ticket=None, **words):
        verdict = self.guard.admit(self.ask(*parts, **words), ticket=ticket)
        assert isinstance(verdict, Wait), verdict
        return verdict

    def refuse(self, *parts):
        verdict = self.guard.admit(self.ask(*parts))
        assert isinstance(verdict, Refuse), verdict
        return verdict

    def settle(self, lease, result):
        return [(change.old, change.new) for change in self.guard.settle(lease, result)]

    def call(self, *parts, result=GOOD, **words):
        return self.settle(self.go(*parts, **words), result)

    def trip(self, circuit):
        for _ in range(5):
            self.call(circuit, result=BAD)

    def state(self, circuit):
        return self.guard.circuits([circuit])[circuit.circuit].state


def limit(spec, *, key="ip", weight_max=1, lease=35, **words):
    lease = timedelta(seconds=lease)
    return RateLimiter(spec, Limit(spec, **words), api="binance", key=key, weight_max=weight_max, lease=lease)


def throttled(retry_after_s=None):
    return CallResult.of(RateLimitError(retry_after_s=retry_after_s), latency_s=0.1)
