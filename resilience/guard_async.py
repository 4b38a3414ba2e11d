"""The guard for asyncio programs: the same decisions, asked without blocking the loop."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from resilience import guard
from resilience.errors import StoreUnavailableError
from resilience.guard import Ask, CallResult, CircuitView, Go, Guard, Lease, Transition, Verdict
from resilience.store import Answer, Grant, Ledger, Request, Settled, Store

if TYPE_CHECKING:
    from resilience.breaker import CircuitBreaker


class AsyncGuard:
    """`Guard` for asyncio: the verbs, arguments and answers are the same, and both may share a store.

    A task that is cancelled while it asks holds nothing: permits and seats that it may have got go back. The
    slot of a rate limit counts as used then, for nobody knows what became of it. A `ledger` is asked in a
    thread.
    """

    def __init__(self, store: Store, ledger: Ledger | None = None) -> None:
        self.store = store.asynchronous
        self._guard = Guard(store, ledger)

    async def admit(self, ask: Ask, *, ticket: str | None = None, patience_s: float | None = None) -> Verdict:
        """See `Guard.admit`."""
        request = self._guard._request(ask, ticket, patience_s)
        try:
            answer = await self.store.admit(request)
            if isinstance(answer, Grant) and not answer.changes:  # as nearly always
                return Go(Lease(ask, answer))
            return await self._verdict(ask, request, answer)
        except asyncio.CancelledError:
            await self._give_back(request)
            raise

    async def settle(self, lease: Lease, result: CallResult) -> tuple[Transition, ...]:
        """See `Guard.settle`."""
        settled = await self.store.settle(guard._report(lease, result))
        if settled.bans:
            return await self._heard(lease, result, settled)
        return self._guard._heard(lease, result, settled)

    async def settle_quietly(self, lease: Lease, result: CallResult) -> tuple[Transition, ...]:
        """See `Guard.settle_quietly`."""
        try:
            return await self.settle(lease, result)
        except StoreUnavailableError as error:
            guard.unheard(error)
            return ()

    async def settle_and_admit(
        self, lease: Lease, result: CallResult, ask: Ask
    ) -> tuple[tuple[Transition, ...], Verdict]:
        """See `Guard.settle_and_admit`."""
        request = self._guard._request(ask, None)
        try:
            settled, answer = await self.store.settle_and_admit(guard._report(lease, result), request)
            told = await self._heard(lease, result, settled)
            return told, await self._verdict(ask, request, answer)
        except asyncio.CancelledError:
            await self._give_back(request)
            raise

    async def report(self, ask: Ask, result: CallResult, *, after: Lease | None = None) -> None:
        """See `Guard.report`."""
        await self.settle(self.unasked(ask, after=after), result)

    def unasked(self, ask: Ask, *, after: Lease | None = None) -> Lease:
        """See `Guard.unasked`; the store is not asked, so there is nothing to await."""
        return self._guard.unasked(ask, after=after)

    async def release(self, lease: Lease) -> None:
        """See `Guard.release`."""
        await self.store.release(lease.grant)

    async def circuits(self, breakers: Sequence["CircuitBreaker"]) -> dict[str, CircuitView]:
        """See `Guard.circuits`."""
        readings = await self.store.circuits([breaker.spec for breaker in breakers])
        return {
            breaker.circuit: guard.view_of(reading)
            for breaker, reading in zip(breakers, readings, strict=True)
        }

    async def _verdict(self, ask: Ask, request: Request, answer: Answer) -> Verdict:
        self._guard._tell(ask, answer.changes)
        while isinstance(answer, guard._WANTED):
            await asyncio.to_thread(self._guard._do, ask, answer)
            answer = await self.store.admit(request)
            self._guard._tell(ask, answer.changes)
        return guard._verdict(ask, answer)

    async def _heard(self, lease: Lease, result: CallResult, settled: Settled) -> tuple[Transition, ...]:
        if settled.bans and self._guard.ledger is not None:
            return await asyncio.to_thread(self._guard._heard, lease, result, settled)
        return self._guard._heard(lease, result, settled)

    async def _give_back(self, request: Request) -> None:
        """Nobody waits for the answer any more; it may still be a grant."""
        route = request.route
        unknown = Grant(
            request,
            0,
            eras=tuple(-1 for _ in route.circuits),
            permits=tuple(False for _ in route.circuits),
            slots=tuple((-1, -1) for _ in route.rates),
            costs=tuple(0 for _ in route.rates),
            periods=tuple(-1 for _ in route.windows),
        )
        with suppress(StoreUnavailableError):
            await self.store.release(unknown)
