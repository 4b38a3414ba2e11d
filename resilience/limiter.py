"""A limit and who shares it: as a part of what a guard asks, or on its own."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from types import TracebackType
from typing import Any, Self

from resilience.errors import ConfigurationError, StoreUnavailableError, Throttled
from resilience.guard import Ask, CallResult, Go, Guard, Kind, Lease, Refuse, Wait, kind_of, unheard
from resilience.guard_async import AsyncGuard
from resilience.headers import LONGEST_WAIT_S, Quota, quota_from, retry_after_s
from resilience.policy import AGES, MOMENT, Lane, Limit
from resilience.spec import spec_of
from resilience.statistics import statistics_of
from resilience.store import LimitReading, RateSpec, SeatSpec, Store
from resilience.store.memory import MemoryStore

DEFAULT_LEASE = timedelta(seconds=35)


class RateLimiter:
    """A limit of an API as one sharer has it: a host, an account, a symbol.

    `key` names the sharer: everyone who asks the same store with the same api, name and key shares what the
    limit allows. `weight_max` is the largest weight a call may have. `lease` is how long a call in flight
    holds its seat when its process dies; a call that takes longer than that is no longer counted.

    No window of any phase lets more than a token bucket through, whoever asks and whenever. Where the store
    was lost the bucket starts empty, a window counts as used up, and calls in flight have one lease to end.

    A guard asks it together with circuits and other limits. On its own it blocks until a call may start:

        limiter = RateLimiter("prices", "10/1s", store=RedisStore(url))
        limiter.wait()                      or: with limiter.acquire() as permit: …

    An `endpoint` has the same limit once more for itself, inside of the whole: its headers and 429s slow down
    no other endpoint. A call with `lane=Lane.BACKFILL` leaves the limit's `reserve` to live work, and has no
    place in the queue.

    What asks for a call, or reads, may raise `StoreUnavailableError`; after a call a store that is away is
    only logged.
    """

    def __init__(
        self,
        name: str = "unknown",
        limit: Limit | str = "10/1s",
        *,
        api: str = "local",
        key: str = "all",
        weight_max: float = 1,
        lease: timedelta = DEFAULT_LEASE,
        store: Store | None = None,
        sleep: Callable[[float], None] = time.sleep,
        sleep_async: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        limit = Limit(limit) if isinstance(limit, str) else limit
        if not 0 < weight_max <= limit.amount:
            raise ConfigurationError(
                f"limit {limit.spec!r} of {api}: a call of weight {weight_max:g} never fits"
            )
        if not MOMENT <= lease <= AGES:
            raise ConfigurationError(
                f"limit {limit.spec!r} of {api}: lease is {lease}, but has to be 1 millisecond … 366 days"
            )
        self.name, self.limit, self.api, self.key = name, limit, api, key
        self.weight_max = weight_max
        self.lease = lease
        self.spec = spec_of(limit, name=name, api=api, key=key, weight_max=weight_max, lease=lease)
        self.endpoints: dict[str, dict[str, Any]] = {}
        self._store, self._sleep, self._sleep_async = store, sleep, sleep_async
        self._parts: dict[str, RateLimiter] = {}
        self._last: Lease | None = None

    def __repr__(self) -> str:
        return f"RateLimiter({self.name!r}, {self.limit.spec!r}, api={self.api!r}, key={self.key!r})"

    @cached_property
    def guard(self) -> Guard:
        """What asks the store. A store of its own begins with the limiter, so nobody was calling before."""
        if self._store is None:
            self._store = MemoryStore()
            self._store.mark_fresh([self.api])
        return Guard(self._store)

    @cached_property
    def guard_async(self) -> AsyncGuard:
        """What asks the same store without blocking the loop."""
        return AsyncGuard(self.guard.store)

    def wait(
        self,
        weight: float = 1,
        timeout: float | None = None,
        *,
        endpoint: str | None = None,
        lane: Lane = Lane.LIVE,
    ) -> float:
        """Block until a call may start, and return how many seconds that took.

        Raises `Throttled` at once where it would take more than `timeout` seconds; no place is taken then.
        """
        self._check_no_seats()
        return self._enter(self._ask(weight, endpoint, lane), timeout, endpoint).waited_s

    async def wait_async(
        self,
        weight: float = 1,
        timeout: float | None = None,  # noqa: ASYNC109 - as the blocking one
        *,
        endpoint: str | None = None,
        lane: Lane = Lane.LIVE,
    ) -> float:
        """`wait`, without blocking the loop."""
        self._check_no_seats()
        return (await self._enter_async(self._ask(weight, endpoint, lane), timeout, endpoint)).waited_s

    def acquire(
        self,
        weight: float = 1,
        timeout: float | None = None,
        *,
        endpoint: str | None = None,
        lane: Lane = Lane.LIVE,
    ) -> "Permit":
        """Block like `wait`, for the block of a `with` statement: how that ends is learnt from."""
        return self._enter(self._ask(weight, endpoint, lane), timeout, endpoint)

    @asynccontextmanager
    async def acquire_async(
        self,
        weight: float = 1,
        timeout: float | None = None,  # noqa: ASYNC109
        *,
        endpoint: str | None = None,
        lane: Lane = Lane.LIVE,
    ) -> AsyncIterator["Permit"]:
        """`acquire` for an `async with` statement; a task that is cancelled gives its seat back."""
        async with await self._enter_async(self._ask(weight, endpoint, lane), timeout, endpoint) as permit:
            yield permit

    def try_acquire(
        self, weight: float = 1, *, endpoint: str | None = None, lane: Lane = Lane.LIVE
    ) -> "Permit | None":
        """A permit if a call may start now, and None if it has to wait; nothing is reserved."""
        try:
            return self._enter(self._ask(weight, endpoint, lane), 0, endpoint)
        except Throttled:
            return None

    async def try_acquire_async(
        self, weight: float = 1, *, endpoint: str | None = None, lane: Lane = Lane.LIVE
    ) -> "Permit | None":
        """`try_acquire`, without blocking the loop; the permit is for an `async with` statement."""
        try:
            return await self._enter_async(self._ask(weight, endpoint, lane), 0, endpoint)
        except Throttled:
            return None

    def parse_rate_limit_headers(
        self, headers: Mapping[str, str], endpoint: str | None = None
    ) -> Quota | None:
        """Tell the store what an answer's headers say is left; None where they say nothing of this limit.

        They make calls wait, and set the rate of an adaptive limit; they let no more through than the limit.
        Where they name a `Retry-After`, nobody calls for that long. This counts as a 429, so of the answer to
        one either its headers or `record_429` is told; a `Quota` of that wait is returned if they tell none.
        """
        quota, result = self._heard(headers, endpoint)
        if result is not None:
            self._learn(result, endpoint)
        return quota

    async def parse_rate_limit_headers_async(
        self, headers: Mapping[str, str], endpoint: str | None = None
    ) -> Quota | None:
        """`parse_rate_limit_headers`, without blocking the loop."""
        quota, result = self._heard(headers, endpoint)
        if result is not None:
            await self._learn_async(result, endpoint)
        return quota

    def record_429(self, retry_after: float | None = None, *, endpoint: str | None = None) -> None:
        """The server said no: nobody calls for `retry_after` seconds, or where it named none for a minute,
        doubled while they go on, 15 minutes at most. An adaptive rate is halved where it named none. More
        than a week is taken for a week.
        """
        self._learn(throttled(retry_after), endpoint)

    async def record_429_async(
        self, retry_after: float | None = None, *, endpoint: str | None = None
    ) -> None:
        """`record_429`, without blocking the loop."""
        await self._learn_async(throttled(retry_after), endpoint)

    def record_latency(self, seconds: float, *, endpoint: str | None = None) -> None:
        """A good answer took this long: an adaptive rate follows. `acquire` does it by itself."""
        self._learn(CallResult(Kind.SUCCESS, seconds), endpoint)

    def adjust_rate(self, factor: float, *, endpoint: str | None = None) -> None:
        """Run at this share of the declared rate from now on, in the whole fleet; 0.5 is half, 1 the way
        back.
        """
        part = self._part(endpoint)
        if not isinstance(part.spec, RateSpec):
            raise ConfigurationError(f"limit {self.limit.spec!r} has no rate to adjust")
        if not 0 < factor <= part.spec.start:
            raise ConfigurationError(
                f"limit {self.limit.spec!r}: a rate is adjusted by a factor of 0 … {part.spec.start:g} "
                f"and not {factor:g}; beyond that it would pass the limit"
            )
        self.guard.store.adjust(part.spec, factor)

    def read(self) -> LimitReading:
        """How the limit stands in the store, in one round trip."""
        return self.guard.store.limits([self.spec])[0]

    def get_stats(self) -> dict[str, Any]:
        """What the fleet did and waited, as JSON-safe numbers with their units; see `statistics.humanize`."""
        parts = [self, *self._parts.values()]
        readings = self.guard.store.limits([part.spec for part in parts])
        return statistics_of(
            self.name, self.limit, dict(zip([None, *self._parts], readings, strict=True)), self.endpoints
        )

    def _enter(self, ask: Ask, timeout: float | None, endpoint: str | None) -> "Permit":
        ticket, waited_s = None, 0.0
        while True:
            left_s = None if timeout is None else max(timeout - waited_s, 0)
            verdict = self.guard.admit(ask, ticket=ticket, patience_s=left_s)
            if isinstance(verdict, Go):
                return self._permit(verdict.lease, endpoint, waited_s)
            wait = self._must_wait(verdict, left_s)
            self._sleep(wait.seconds)
            waited_s += wait.seconds
            ticket = wait.ticket

    async def _enter_async(self, ask: Ask, timeout: float | None, endpoint: str | None) -> "Permit":  # noqa: ASYNC109
        ticket, waited_s = None, 0.0
        while True:
            left_s = None if timeout is None else max(timeout - waited_s, 0)
            verdict = await self.guard_async.admit(ask, ticket=ticket, patience_s=left_s)
            if isinstance(verdict, Go):
                return self._permit(verdict.lease, endpoint, waited_s)
            wait = self._must_wait(verdict, left_s)
            await self._sleep_async(wait.seconds)
            waited_s += wait.seconds
            ticket = wait.ticket

    def _permit(self, lease: Lease, endpoint: str | None, waited_s: float) -> "Permit":
        self._last = lease
        return Permit(self, lease, endpoint, waited_s)

    def _must_wait(self, verdict: Wait | Refuse, left_s: float | None) -> Wait:
        assert isinstance(verdict, Wait)
        if left_s is not None and verdict.seconds > left_s:
            raise Throttled(
                f"{self.name}: the next call may start in {verdict.seconds:.2f} s ({verdict.reason})",
                limit=verdict.key,
                retry_after_s=verdict.seconds,
            )
        return verdict

    def _check_no_seats(self) -> None:
        if isinstance(self.spec, SeatSpec):
            raise ConfigurationError(
                f"limit {self.limit.spec!r} counts calls until they end: use `with limiter.acquire():`"
            )

    def _ask(self, weight: float, endpoint: str | None, lane: Lane) -> Ask:
        limits = (self,) if endpoint is None else (self, self._part(endpoint))
        return Ask(self.api, (), limits, weight, Lane(lane))

    def _part(self, endpoint: str | None) -> "RateLimiter":
        if endpoint is None:
            return self
        if endpoint not in self._parts:
            self._parts[endpoint] = RateLimiter(
                self.name,
                self.limit,
                api=self.api,
                key=f"{self.key}/{endpoint}",
                weight_max=self.weight_max,
                lease=self.lease,
                store=self.guard.store,
            )
        return self._parts[endpoint]

    def _heard(
        self, headers: Mapping[str, str], endpoint: str | None
    ) -> tuple[Quota | None, CallResult | None]:
        """What headers say of this limit, and as the result of a call."""
        quota, wait_s = self._read(headers, endpoint), _asked_wait_s(headers)
        if wait_s:
            return quota or Quota(reset_s=wait_s), CallResult(Kind.THROTTLED, 0.0, wait_s, headers)
        return quota, None if quota is None else CallResult(Kind.SUCCESS, 0.0, headers=headers)

    def _read(self, headers: Mapping[str, str], endpoint: str | None) -> Quota | None:
        """What headers say, kept for the statistics."""
        quota = quota_from(headers, self.limit)
        if quota is not None:
            self.endpoints[endpoint or self.name] = {
                "limit": None if quota.limit is None else int(quota.limit),
                "remaining": None if quota.left is None else int(quota.left),
                "reset_s": quota.reset_s,
            }
        return quota

    def _learn(self, result: CallResult, endpoint: str | None) -> None:
        """Report what is known of a call without its lease; what is in flight when a gate closes is no
        news.
        """
        self.guard.settle_quietly(self._unasked(endpoint), result)

    async def _learn_async(self, result: CallResult, endpoint: str | None) -> None:
        await self.guard_async.settle_quietly(self._unasked(endpoint), result)

    def _unasked(self, endpoint: str | None) -> Lease:
        return self.guard.unasked(self._part(endpoint)._alone, after=self._last)  # noqa: SLF001

    @cached_property
    def _alone(self) -> Ask:
        return Ask(self.api, (), (self,))


class Permit:
    """A call that may start. Leaving the `with` block says how it ended, and gives back its seat.

    `waited_s` is how long it took to get it.
    """

    def __init__(self, limiter: RateLimiter, lease: Lease, endpoint: str | None, waited_s: float) -> None:
        self.waited_s = waited_s
        self._limiter, self._lease, self._endpoint = limiter, lease, endpoint
        self._began = time.perf_counter()
        self._settled = False

    def refund(self) -> None:
        """Nothing was sent: give back the seat, what a window counted, and a bucket's slot if it is the
        newest.
        """
        if not self._settled:
            self._settled = True
            try:
                self._limiter.guard.release(self._lease)
            except StoreUnavailableError as error:
                unheard(error)

    async def refund_async(self) -> None:
        """`refund`, without blocking the loop."""
        if not self._settled:
            self._settled = True
            try:
                await self._limiter.guard_async.release(self._lease)
            except StoreUnavailableError as error:
                unheard(error)

    def settle(self, result: CallResult) -> None:
        """Say how the call ended, where that is not an exception."""
        if self._settled:
            return
        self._settled = True
        alone = self._is_alone(result)
        told = replace(result, kind=Kind.IGNORED) if alone else result
        self._limiter.guard.settle_quietly(self._lease, told)
        if alone:
            self._limiter._learn(result, self._endpoint)  # noqa: SLF001

    async def settle_async(self, result: CallResult) -> None:
        """`settle`, without blocking the loop."""
        if self._settled:
            return
        self._settled = True
        alone = self._is_alone(result)
        told = replace(result, kind=Kind.IGNORED) if alone else result
        await self._limiter.guard_async.settle_quietly(self._lease, told)
        if alone:
            await self._limiter._learn_async(result, self._endpoint)  # noqa: SLF001

    def ended(self, error: BaseException | None) -> CallResult:
        """The result of a call that ended now, by what it raised."""
        result = CallResult.of(error, latency_s=time.perf_counter() - self._began)
        return replace(result, kind=kind_of(error))

    def _is_alone(self, result: CallResult) -> bool:
        """Whether it speaks of the endpoint only."""
        return self._endpoint is not None and result.kind is Kind.THROTTLED

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle(self.ended(error))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.settle_async(self.ended(error))


def throttled(retry_after: float | None) -> CallResult:
    """The result of a call to which the server said no, for so many seconds."""
    if retry_after is None:
        return CallResult(Kind.THROTTLED, 0.0)
    if not 0 <= retry_after < math.inf:
        raise ConfigurationError(f"retry_after is {retry_after}, but has to be seconds, 0 or more (or None)")
    return CallResult(Kind.THROTTLED, 0.0, retry_after_s=min(retry_after, LONGEST_WAIT_S))


def _asked_wait_s(headers: Mapping[str, str]) -> float | None:
    """What `Retry-After` says; the `Date` beside it is the server's own now."""
    named = {name: text for name, text in headers.items() if str(name).lower() in {"retry-after", "date"}}
    return retry_after_s(named)
