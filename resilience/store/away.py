"""What holds while the shared store does not answer: each process keeps to its share of every limit.

A share is the limit divided by the last known number of processes, kept in this process's memory. Buckets
start empty, a window begun before counts as used up, and calls in flight get one lease to end: what was
started before nobody here knows. A budget is shared by what is written down of it, so it needs a ledger.
Circuits begin closed, and each process opens its own.

When the store is back, the first that finds it so tells it what was spent here, and keeps it from admitting
until every other process has found it too. This holds as long as all of them lose the store together.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from resilience.errors import PenstockError, StoreUnavailableError
from resilience.store import (
    Answer,
    Change,
    CircuitSpec,
    Delay,
    Event,
    Grant,
    LimitReading,
    LimitSpec,
    Move,
    RateSpec,
    Reading,
    Recall,
    Remembered,
    Report,
    Request,
    RetrySpec,
    Route,
    SeatSpec,
    Settled,
    Store,
    WindowSpec,
)
from resilience.store.memory import MemoryStore, wall_clock_us

if TYPE_CHECKING:
    from resilience.store.asynchronous import AsyncStore

log = logging.getLogger(__name__)

RETRY_S = 2.0  # how often the store is tried while it is away
HOLD_US = 3_000_000  # and for how long it admits nothing afterwards: longer, so that all have found it


class SharingStore:
    """A shared store, and this process's share of the limits while that does not answer.

    `processes` says how many share them; it is asked when the store goes away, and what it raises is raised
    as StoreUnavailableError. A route with a limit that stops, or whose share is nothing, raises that as well.
    `recall` says which circuits somebody forced: they stay forced while the store is away.
    """

    def __init__(
        self,
        shared: Store,
        processes: Callable[[], int],
        *,
        recall: Recall | None = None,
        now_us: Callable[[], int] = wall_clock_us,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shared = shared
        self._processes, self._now_us, self._clock = processes, now_us, clock
        self._recall = recall
        self._lock = threading.Lock()
        self._local: _Share | None = None
        self._retry_at = 0.0
        self._shut: dict[tuple[str, str], int] = {}

    def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        if self._is_away():
            return self._admit_here(request, None)
        try:
            self._come_back()
            return self._noted(request, self.shared.admit(request))
        except StoreUnavailableError as error:
            return self._admit_here(request, error)

    def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        if isinstance(report.grant.request.route, _ShareOfRoute):
            return self._settle_here(report)
        return self.shared.settle(report)

    def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        if self._local is None and not isinstance(report.grant.request.route, _ShareOfRoute):
            try:
                settled, answer = self.shared.settle_and_admit(report, request)
                return settled, self._noted(request, answer)
            except StoreUnavailableError as error:
                return Settled(), self._admit_here(request, error)
        try:
            settled = self.settle(report)
        except StoreUnavailableError:
            settled = Settled()  # permits and seats end by themselves
        return settled, self.admit(request)

    def release(self, grant: Grant) -> None:
        """See `Store.release`."""
        if not isinstance(grant.request.route, _ShareOfRoute):
            return self.shared.release(grant)
        return self._local.store.release(grant) if self._local else None

    def restore(self, api: str, remembered: Remembered) -> None:
        """See `Store.restore`."""
        (self._local.store if self._local else self.shared).restore(api, remembered)

    def allot(self, budget: WindowSpec, begin_us: int, amount: int) -> None:
        """See `Store.allot`."""
        (self._local.store if self._local else self.shared).allot(budget, begin_us, amount)

    def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`."""
        return self.shared.circuits(specs)

    def move(self, moves: Sequence[Move]) -> list[Change | None]:
        """See `Store.move`."""
        return self.shared.move(moves)

    def events(self, api: str, after: str = "0-0") -> list[Event]:
        """See `Store.events`."""
        return self.shared.events(api, after)

    def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""
        return self.shared.retry(spec, earned_us)

    def limits(self, specs: Sequence[LimitSpec]) -> list[LimitReading]:
        """See `Store.limits`."""
        return self.shared.limits(specs)

    def adjust(self, spec: RateSpec, factor: float) -> None:
        """See `Store.adjust`."""
        self.shared.adjust(spec, factor)

    def mark_fresh(self, apis: Iterable[str]) -> None:
        """See `Store.mark_fresh`."""
        self.shared.mark_fresh(apis)

    @property
    def asynchronous(self) -> "AsyncStore":
        """The shared store for asyncio programs: they stop while it is away."""
        return self.shared.asynchronous

    def repay(self, debts: Sequence[tuple[LimitSpec, int]], hold_us: int) -> None:
        """See `Store.repay`."""
        self.shared.repay(debts, hold_us)

    def _noted(self, request: Request, answer: Answer) -> Answer:
        """Keep in mind until when a gate is closed: nobody could tell while the store is away."""
        if isinstance(answer, Delay) and answer.reason in {"gate", "ban"}:
            self._shut[request.route.api, answer.key] = self._now_us() + answer.wait_us
        return answer

    def _is_away(self) -> bool:
        """Whether to keep to the share without asking. One thread at a time tries the store again."""
        if self._local is None:
            return False
        with self._lock:
            if self._clock() < self._retry_at:
                return True
            self._retry_at = self._clock() + RETRY_S
            return False

    def _admit_here(self, request: Request, error: StoreUnavailableError | None) -> Answer:
        with self._lock:
            if error is not None:
                self._retry_at = self._clock() + RETRY_S
            share = self._local or self._go_away(error)
        route = share.route(request)
        if route is None:
            raise error or StoreUnavailableError(
                "the store is away, and this call has no share of its limits"
            )
        return share.store.admit(replace(request, route=route))

    def _go_away(self, error: StoreUnavailableError | None) -> "_Share":
        try:
            count = max(1, self._processes())
        except PenstockError as unknown:
            raise StoreUnavailableError("nobody knows how many share the limits", cause=unknown) from error
        log.warning("%s; until it does, this process keeps to a share of 1/%d of the limits", error, count)
        self._local = _Share(count, self._now_us, self._recall)
        for (api, sharer), until_us in self._shut.items():
            self._local.store.shut(api, sharer, until_us)
        self._shut.clear()
        return self._local

    def _come_back(self) -> None:
        """Before anything is asked again, tell what was spent here."""
        share = self._local
        if share is None:
            return
        if debts := share.debts():
            self.shared.repay(debts, HOLD_US)
        else:
            self.shared.limits(())
        with self._lock:
            if self._local is share:
                self._local = None
                log.warning("the store answers again")

    def _settle_here(self, report: Report) -> Settled:
        share = self._local
        return share.store.settle(report) if share else Settled()


class _ShareOfRoute(Route):
    """A route whose limits are one process's share."""


class _Share:
    """One process's part of the limits, and the store that keeps it."""

    def __init__(self, count: int, now_us: Callable[[], int], recall: Recall | None) -> None:
        self.store = MemoryStore(recall=recall, now_us=now_us)
        self._count, self._now_us = count, now_us
        self._routes: dict[Route, _ShareOfRoute | None] = {}
        self._parts: dict[LimitSpec, LimitSpec | None] = {}

    def route(self, request: Request) -> _ShareOfRoute | None:
        """The share of a route; None where it stops, or where the call does not fit into it."""
        if request.route not in self._routes:
            self._routes[request.route] = self._route(request)
        route = self._routes[request.route]
        weight = math.ceil(request.weight)
        if route is None or any(weight > max(1, _amount(spec)) for spec in route.rates):
            return None
        return None if any(weight > spec.amount for spec in route.windows) else route

    def _route(self, request: Request) -> _ShareOfRoute | None:
        route = request.route
        rates = [part for spec in route.rates if isinstance(part := self._part(spec), RateSpec)]
        seats = [part for spec in route.seats if isinstance(part := self._part(spec), SeatSpec)]
        windows = [part for spec in route.windows if (part := self._window(spec, ledger=request.ledger))]
        if len(rates) + len(seats) + len(windows) < len((*route.rates, *route.seats, *route.windows)):
            return None
        limits = tuple(rates), tuple(seats), route.gate, tuple(windows)
        return _ShareOfRoute(route.api, route.circuits, *limits, route.banned)

    def _window(self, spec: WindowSpec, *, ledger: bool) -> WindowSpec | None:
        """A budget is not divided: every block that is written down is somebody's own."""
        if spec.saved and ledger:
            return None if spec.stops else spec
        part = self._part(spec)
        return part if isinstance(part, WindowSpec) else None

    def _part(self, spec: LimitSpec) -> LimitSpec | None:
        if spec not in self._parts:
            self._parts[spec] = None if spec.stops else part_of(spec, self._count)
        return self._parts[spec]

    def debts(self) -> list[tuple[LimitSpec, int]]:
        """What the store has to be told was spent: of buckets in its own µs, of all else that it was used."""
        owed = []
        for whole, part in self._parts.items():
            if part is None:
                continue
            if not isinstance(whole, RateSpec) or not isinstance(part, RateSpec):
                owed.append((whole, 0))
                continue
            units = self.store.debt(part) / part.unit_us
            owed.append((whole, math.ceil(units * whole.unit_us)))
        return owed


def part_of(spec: LimitSpec, count: int) -> LimitSpec | None:
    """One of so many equal parts, in whole calls; None where that is nothing, as of a budget without a
    ledger.
    """
    if isinstance(spec, RateSpec):
        amount = _amount(spec) // count
        if amount < 1:
            return None
        burst = min(spec.burst_us // spec.unit_us, amount)
        unit_us = math.ceil(spec.window_us * spec.start / max(amount - burst, 1 - 1e-6))
        return replace(spec, unit_us=unit_us, burst_us=burst * unit_us, slack_us=0, adaptive=False, start=1.0)
    if isinstance(spec, WindowSpec):
        amount = spec.amount // count
        return None if spec.saved or amount < 1 else replace(spec, amount=amount)
    return replace(spec, seats=spec.seats // count) if spec.seats >= count else None


def _amount(spec: RateSpec) -> int:
    """What a window lets through."""
    return (spec.window_us + spec.burst_us + spec.slack_us) // spec.unit_us
