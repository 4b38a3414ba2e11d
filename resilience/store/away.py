"""What holds while the shared store does not answer: each process keeps to its share of every limit.

A share is the limit divided by the last known number of processes, kept in this process's memory. Buckets
start empty, a window begun before counts as used up, and calls in flight get one lease to end: what was
started before nobody here knows. A budget is shared by what is written down of it, so it needs a ledger.
A circuit, a gate or a slower rate that this process was told of stays as it was; all other circuits begin
closed, and each process opens its own.

Nothing is spent of a share until the store was asked a second time, `RETRY_S` later: by then every process
that calls has found it away. When it is back, the first that finds it so tells it what was spent and which
gates were closed here, and keeps it from admitting until every other process has found it too. This holds as
long as all of them lose the store together: a process that loses it alone, or that asks nothing until it is
back, adds to what the others do.
"""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from resilience.errors import PenstockError, StoreUnavailableError
from resilience.store import (
    Answer,
    Change,
    CircuitSpec,
    CircuitState,
    Closed,
    Delay,
    Denial,
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
    this_process,
)
from resilience.store.bucket import cost_of
from resilience.store.memory import MemoryStore, wall_clock_us

if TYPE_CHECKING:
    from resilience.store.asynchronous import AsyncStore

log = logging.getLogger(__name__)

RETRY_S = 2.0  # how often the store is tried while it is away
_MARGIN_S = 1.0
_SOONEST_US = 10_000  # while another thread asks whether it is back


class SharingStore:
    """A shared store, and this process's share of the limits while that does not answer.

    `processes` says how many share them; it is asked when the store goes away, and what it raises is raised
    as StoreUnavailableError. A route with a limit that stops, or whose share is nothing, raises that as well.
    `recall` says which circuits somebody forced: they stay forced while the store is away. `answers_within_s`
    is the shared store's timeout: after its return it admits nothing for that long and `RETRY_S` more, until
    every process must have found it.

    What calls report is learned here while the store is away. How circuits and limits of the fleet stand
    nobody knows then, and nobody can force them: that raises StoreUnavailableError.
    """

    def __init__(
        self,
        shared: Store,
        processes: Callable[[], int],
        *,
        recall: Recall | None = None,
        answers_within_s: float = 5.0,
        now_us: Callable[[], int] = wall_clock_us,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.shared = shared
        self.hold_us = round((answers_within_s + RETRY_S + _MARGIN_S) * 1e6)
        self._processes, self._now_us, self._clock = processes, now_us, clock
        self._recall = recall
        self._lock = threading.Lock()
        self._local: _Share | None = None
        self._retry_at = 0.0
        self._shut: dict[tuple[str, str], int] = {}
        self._opened: dict[CircuitSpec, int] = {}
        self._stretched: dict[RateSpec, float] = {}

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
        if self._local is not None or isinstance(report.grant.request.route, _ShareOfRoute):
            return self._settle_here(report, None)
        try:
            return self.shared.settle(report)
        except StoreUnavailableError as error:
            return self._settle_here(report, error)

    def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        if self._local is None and not isinstance(report.grant.request.route, _ShareOfRoute):
            try:
                settled, answer = self.shared.settle_and_admit(report, request)
                return settled, self._noted(request, answer)
            except StoreUnavailableError as error:
                return self._settle_here(report, error), self._admit_here(request, error)
        return self.settle(report), self.admit(request)

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

    def repay(
        self, debts: Sequence[tuple[LimitSpec, int]], hold_us: int, gates: Sequence[Closed] = ()
    ) -> None:
        """See `Store.repay`."""
        self.shared.repay(debts, hold_us, gates)

    def _noted(self, request: Request, answer: Answer) -> Answer:
        """Keep in mind what nobody could tell while the store is away."""
        if isinstance(answer, Grant):
            self._note_stretches(request, answer)
        elif isinstance(answer, Delay) and answer.reason in {"gate", "ban"}:
            self._shut[request.route.api, answer.key] = self._now_us() + answer.wait_us
        elif isinstance(answer, Denial) and answer.reason == CircuitState.OPEN:
            self._opened[request.route.circuits[answer.index]] = answer.until_us
        return answer

    def _note_stretches(self, request: Request, grant: Grant) -> None:
        for spec, cost in zip(request.route.rates, grant.costs, strict=True):
            usual = cost_of(spec, request.weight)
            if cost > usual:
                self._stretched[spec] = cost / usual
            elif self._stretched:
                self._stretched.pop(spec, None)

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
        share = self._share(error)
        route = share.route(request)
        if route is None:
            raise error or StoreUnavailableError(
                "the store is away, and this call has no share of its limits"
            )
        answer = share.store.admit(replace(request, route=route))
        if share.begun or not route.names or not isinstance(answer, Grant):
            return answer
        share.store.release(answer)
        wait_us = max(round((self._retry_at - self._clock()) * 1e6), _SOONEST_US)
        return Delay(wait_us, None, "store", route.names[0])

    def _share(self, error: StoreUnavailableError | None) -> "_Share":
        with self._lock:
            if error is not None:
                self._retry_at = self._clock() + RETRY_S
            return self._local or self._go_away(error)

    def _go_away(self, error: StoreUnavailableError | None) -> "_Share":
        try:
            count = max(1, self._processes())
        except PenstockError as unknown:
            raise StoreUnavailableError("nobody knows how many share the limits", cause=unknown) from error
        log.warning("%s; until it does, this process keeps to a share of 1/%d of the limits", error, count)
        share = _Share(count, self._now_us, self._recall, dict(self._stretched), self._clock() + RETRY_S)
        now, shut = self._now_us(), self._shut.items()
        gates = [Closed(api, sharer, until - now) for (api, sharer), until in shut if until > now]
        share.store.repay((), 0, gates)
        share.store.move([_still_open(spec, until) for spec, until in self._opened.items() if until > now])
        self._shut.clear()
        self._opened.clear()
        self._stretched.clear()
        self._local = share
        return share

    def _come_back(self) -> None:
        """Before anything is asked again, tell what was spent here."""
        share = self._local
        if share is None:
            return
        debts, gates = share.debts(), share.gates()
        try:
            if debts or gates:
                self.shared.repay(debts, self.hold_us, gates)
            else:
                self.shared.limits(())
        except StoreUnavailableError:
            # A thread may have asked before another found the store away, and fail only now.
            share.begun = share.begun or self._clock() >= share.begins_at
            raise
        with self._lock:
            if self._local is share:
                self._local = None
                log.warning("the store answers again")

    def _settle_here(self, report: Report, error: StoreUnavailableError | None) -> Settled:
        """Learn from a call, whoever admitted it. What the shared store lent ends by itself."""
        grant = report.grant
        share = self._local if error is None else self._share(error)
        if share is None:  # the store is back, and was told what was spent here
            return Settled()
        if isinstance(grant.request.route, _ShareOfRoute):
            return share.store.settle(report)
        route = share.route(grant.request)
        if route is None:
            return Settled()
        here = replace(grant, request=replace(grant.request, route=route))
        return share.store.settle(replace(report, grant=here))


def _still_open(spec: CircuitSpec, until_us: int) -> Move:
    return Move(spec, CircuitState.OPEN, this_process(), "open when the store went away", until_us)


class _ShareOfRoute(Route):
    """A route whose limits are one process's share."""

    @property
    def names(self) -> list[str]:
        """Of its limits."""
        limits: tuple[LimitSpec, ...] = (*self.rates, *self.seats, *self.windows)
        return [spec.name for spec in limits]


class _Share:
    """One process's part of the limits, and the store that keeps it."""

    def __init__(
        self,
        count: int,
        now_us: Callable[[], int],
        recall: Recall | None,
        stretched: Mapping[RateSpec, float],
        begins_at: float,
    ) -> None:
        self.store = MemoryStore(recall=recall, now_us=now_us)
        self.begins_at, self.begun = begins_at, False
        self._count, self._stretched = count, stretched
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
            stretch = self._stretched.get(spec, 1.0) if isinstance(spec, RateSpec) else 1.0
            self._parts[spec] = None if spec.stops else part_of(spec, self._count, stretch)
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

    def gates(self) -> list[Closed]:
        """What the servers closed meanwhile."""
        sharers = {(route.api, sharer) for route in self._routes for sharer in route.gates}
        found = (self.store.closed(api, sharer) for api, sharer in sorted(sharers))
        return [closed for closed in found if closed]


def part_of(spec: LimitSpec, count: int, stretch: float = 1.0) -> LimitSpec | None:
    """One of so many equal parts, in whole calls; None where that is nothing, as of a budget without a
    ledger. A rate that was slower than its limit stays so.
    """
    if isinstance(spec, RateSpec):
        amount = _amount(spec) // count
        if amount < 1:
            return None
        burst = min(spec.burst_us // spec.unit_us, amount)
        slower = max(spec.start, stretch)
        unit_us = math.ceil(spec.window_us * slower / max(amount - burst, 1 - 1e-6))
        return replace(spec, unit_us=unit_us, burst_us=burst * unit_us, slack_us=0, adaptive=False, start=1.0)
    if isinstance(spec, WindowSpec):
        amount = spec.amount // count
        return None if spec.saved or amount < 1 else replace(spec, amount=amount)
    return replace(spec, seats=spec.seats // count) if spec.seats >= count else None


def _amount(spec: RateSpec) -> int:
    """What a window lets through."""
    return (spec.window_us + spec.burst_us + spec.slack_us) // spec.unit_us
