"""The store in one process, in plain Python: for scripts, for tests, and to read what the Redis scripts do.

It forgets everything when the process ends, and other processes know nothing of it.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from threading import Lock

from resilience.store import (
    SEAT_WAIT_US,
    TICKET_KEPT_US,
    Answer,
    Ban,
    Change,
    CircuitSpec,
    Closed,
    Delay,
    Event,
    Grant,
    Kind,
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
    Unrestored,
    Unwritten,
    WindowSpec,
    keys,
    this_process,
)
from resilience.store.asynchronous import AsyncMemoryStore
from resilience.store.bucket import Bucket, Need, Pace, cost_of
from resilience.store.circuit import CircuitTable
from resilience.store.gate import Gate
from resilience.store.reading import reading_of
from resilience.store.window import Window


def wall_clock_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


_NOTHING_SETTLED = Settled()
_NOBODY: frozenset[str] = frozenset()
_SUCCESS = Kind.SUCCESS  # looking it up is slow in Python 3.11
_TELLING = frozenset({Kind.SUCCESS, Kind.THROTTLED, Kind.BANNED})
_PACING = {Kind.THROTTLED, Kind.BANNED}


@dataclass(slots=True)
class _Ticket:
    issued_us: int
    end_us: int = 0
    slots: dict[str, int] = field(default_factory=dict)


class MemoryStore:
    """The shared state of one process. Thread-safe; nothing here waits or does I/O."""

    def __init__(
        self,
        *,
        recall: Recall | None = None,
        actor: str | None = None,
        now_us: Callable[[], int] = wall_clock_us,
    ) -> None:
        self._now_us = now_us
        self._lock = Lock()
        self._circuits = CircuitTable(actor or this_process(), recall)
        self._buckets: dict[str, Bucket] = {}
        self._paces: dict[str, Pace] = {}
        self._windows: dict[str, Window] = {}
        self._gates: dict[str, Gate] = {}
        self._seats: dict[str, dict[str, int]] = {}
        self._tickets: dict[str, _Ticket] = {}
        self._since: dict[str, int] = {}
        self._restored: set[str] = set()
        self._retries: dict[str, int] = {}

    def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        with self._lock:
            return self._admit(request, self._now_us())

    def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        with self._lock:
            return self._settle(report, self._now_us())

    def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        with self._lock:
            now = self._now_us()
            return self._settle(report, now), self._admit(request, now)

    def release(self, grant: Grant) -> None:
        """See `Store.release`."""
        route, id_ = grant.request.route, grant.request.id
        with self._lock:
            self._circuits.take_back(route.circuits, id_)
            for seat in route.seats:
                self._taken(seat).pop(id_, None)
            for spec, begin in zip(route.windows, grant.periods, strict=True):
                window = self._windows.get(spec.key)
                if window and window.begin_us == begin:
                    window.used -= math.ceil(grant.request.weight)
            for rate, slot, cost in zip(route.rates, grant.slots, grant.costs, strict=True):
                bucket = self._buckets.get(rate.key)
                if bucket and bucket.started_us == slot[0]:
                    bucket.started_us -= cost
                    if bucket.booked_us == slot[1]:
                        bucket.booked_us -= cost

    def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`."""
        with self._lock:
            now = self._now_us()
            return [self._circuits.read(spec, now) for spec in specs]

    def move(self, moves: Sequence[Move]) -> list[Change | None]:
        """See `Store.move`."""
        with self._lock:
            now = self._now_us()
            return [self._circuits.move(move, now) for move in moves]

    def events(self, api: str, after: str = "0-0") -> list[Event]:
        """See `Store.events`."""
        with self._lock:
            return self._circuits.log.after(api, after)

    def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""
        with self._lock:
            now = self._now_us()
            used = max(self._retries.get(spec.key, 0) - earned_us, now) + spec.unit_us
            allowed = used <= now + spec.room_us
            self._retries[spec.key] = used if allowed else used - spec.unit_us
            return allowed

    def limits(self, specs: Sequence[LimitSpec]) -> list[LimitReading]:
        """See `Store.limits`."""
        with self._lock:
            now = self._now_us()
            return [reading_of(spec, self._state(spec), self._gate(spec.gate), now) for spec in specs]

    def adjust(self, spec: RateSpec, factor: float) -> None:
        """See `Store.adjust`."""
        with self._lock:
            self._pace(spec).adjust(spec, factor, self._now_us())

    def restore(self, api: str, remembered: Remembered) -> None:
        """See `Store.restore`."""
        with self._lock:
            now = self._now_us()
            self._restored.add(api)
            for ban in remembered.bans:
                self._gate(keys.gate(api, ban.sharer)).restore(ban.until_us, ban.count, now)
            for spent in remembered.budgets:
                self._windows.setdefault(spent.key, Window(-1, 0)).restore(spent)

    def allot(self, budget: WindowSpec, begin_us: int, amount: int) -> None:
        """See `Store.allot`."""
        with self._lock:
            window = self._window(budget, self._now_us())
            window.allot(budget, begin_us, amount)
            self._windows[budget.key] = window

    @property
    def asynchronous(self) -> AsyncMemoryStore:
        """The same store for asyncio programs."""
        return AsyncMemoryStore(self)

    def repay(
        self, debts: Sequence[tuple[LimitSpec, int]], hold_us: int, gates: Sequence[Closed] = ()
    ) -> None:
        """See `Store.repay`."""
        with self._lock:
            now = self._now_us()
            for closed in gates:
                self._gate(keys.gate(closed.api, closed.sharer)).take_over(closed, now)
            for spec, debt in debts:
                if isinstance(spec, SeatSpec):
                    self._since[spec.api] = now
                elif isinstance(spec, WindowSpec):
                    begin, end = spec.bounds(now, now)
                    window = self._windows.setdefault(spec.key, Window(begin, end))
                    window.turn(begin, end)
                    window.used = spec.amount
                else:
                    bucket = self._buckets.setdefault(spec.key, Bucket(0, 0, self._pace(spec)))
                    empty = now + hold_us + spec.burst_us + spec.slack_us
                    bucket.started_us = max(bucket.started_us, empty) + debt
                    bucket.booked_us = max(bucket.booked_us, bucket.started_us - spec.slack_us)

    def closed(self, api: str, sharer: str) -> Closed | None:
        """How a gate stands, where it is closed."""
        with self._lock:
            now, gate = self._now_us(), self._gates.get(keys.gate(api, sharer))
            if gate is None or gate.until_us <= now:
                return None
            return Closed(api, sharer, gate.until_us - now, max(gate.banned_us - now, 0), gate.bans)

    def debt(self, spec: RateSpec) -> int:
        """How far a bucket is used up, in µs."""
        with self._lock:
            bucket = self._buckets.get(spec.key)
            return max(0, bucket.started_us - self._now_us()) if bucket else 0

    def mark_fresh(self, apis: Iterable[str]) -> None:
        """See `Store.mark_fresh`."""
        with self._lock:
            for api in apis:
                self._since.setdefault(api, 1)

    def _gate(self, key: str) -> Gate:
        return self._gates.get(key) or self._gates.setdefault(key, Gate())

    def _taken(self, spec: SeatSpec) -> dict[str, int]:
        return self._seats.setdefault(spec.key, {})

    def _pace(self, spec: RateSpec) -> Pace:
        return self._paces.get(spec.key) or self._paces.setdefault(spec.key, Pace())

    def _state(self, spec: LimitSpec) -> Bucket | Window | list[int] | None:
        if isinstance(spec, SeatSpec):
            return list(self._taken(spec).values())
        if isinstance(spec, WindowSpec):
            return self._windows.get(spec.key)
        return self._buckets.get(spec.key) or Bucket(0, 0, self._pace(spec))

    def _admit(self, request: Request, now: int) -> Answer:
        route = request.route
        if request.ledger and route.api not in self._restored:
            return Unrestored()
        changes = self._circuits.wake(route.circuits, now)
        answer = (
            self._circuits.refusal(request, now)
            or self._gate_delay(route, now)
            or self._seat_delay(request, now)
            or self._window_delay(request, now)
            or self._rates(request, now)
        )
        return replace(answer, changes=changes) if changes else answer

    def _rates(self, request: Request, now: int) -> Answer:
        needs = self._needs(request, self._circuits.slowdown(request.route.circuits, now), now)
        return (
            self._rate_delay(request, needs, now)
            or self._unwritten(request, now)
            or self._start(request, needs, now)
        )

    def _gate_delay(self, route: Route, now: int) -> Delay | None:
        for index, key in enumerate(route.gate_keys):
            gate = self._gates.get(key)
            if gate is not None and now < gate.until_us:
                reason = "ban" if now < gate.banned_us else "gate"
                return Delay(gate.until_us - now, None, reason, route.gates[index])
        return None

    def _seat_delay(self, request: Request, now: int) -> Delay | None:
        for spec in request.route.seats:
            since = self._since.setdefault(spec.api, now)
            if now < since + spec.lease_us:
                return Delay(since + spec.lease_us - now, request.ticket, "seats", spec.name)
            taken = self._taken(spec)
            for id_ in [id_ for id_, end in taken.items() if end <= now]:
                del taken[id_]
            if len(taken) >= spec.seats:
                return Delay(SEAT_WAIT_US, request.ticket, "seats", spec.name)
        return None

    def _window_delay(self, request: Request, now: int) -> Delay | None:
        for spec in request.route.windows:
            window = self._window(spec, now)
            if request.live and spec.share < 1:
                window.live_us = now
                self._windows[spec.key] = window
            if not window.fits(spec, math.ceil(request.weight), now, live=request.live):
                reason = "budget" if spec.saved else "window"
                return Delay(window.end_us - now, request.ticket, reason, spec.name)
        return None

    def _window(self, spec: WindowSpec, now: int) -> Window:
        """The window as it stands. One that the store has not known from its beginning counts as used up;
        a budget is what is written down.
        """
        begin, end = spec.bounds(now, now)
        window = self._windows.get(spec.key)
        if window is None:
            known = spec.saved or self._since.setdefault(spec.api, now) <= begin
            return Window(begin, end, 0 if known else spec.amount)
        window.turn(begin, end)
        return window

    def _unwritten(self, request: Request, now: int) -> Unwritten | None:
        if not request.ledger:
            return None
        for spec in request.route.windows:
            window = self._window(spec, now)
            if spec.saved and (wanted := window.unwritten(spec, math.ceil(request.weight))):
                return Unwritten(spec, window.begin_us, wanted)
        return None

    def _needs(self, request: Request, slowdown: int, now: int) -> list[Need]:
        """How long each rate limit makes this call wait."""
        slots = self._slots(request, now) if request.live and request.ticket else {}
        needs = []
        for spec in request.route.rates:
            bucket = self._bucket(spec, now)
            cost = math.ceil(cost_of(spec, request.weight) * slowdown * bucket.pace.stretch(spec, now))
            need = Need(spec, bucket, cost, slots.get(spec.key))
            need.ask(now, live=request.live)
            needs.append(need)
        return needs

    def _slots(self, request: Request, now: int) -> dict[str, int]:
        """The slots of a ticket, unless it is unknown or a gate has closed since."""
        ticket = self._tickets.get(request.ticket) if request.ticket else None
        closed = max((self._gate(key).closed_us for key in request.route.gate_keys), default=0)
        if ticket is None or ticket.end_us <= now or ticket.issued_us <= closed:
            return {}
        return ticket.slots

    def _bucket(self, spec: RateSpec, now: int) -> Bucket:
        """A bucket found missing was empty when the store began to know; a gate leaves one empty."""
        bucket = self._buckets.get(spec.key)
        if bucket is None:
            empty = self._since.setdefault(spec.api, now) + spec.burst_us
            bucket = self._buckets[spec.key] = Bucket(empty, empty + spec.slack_us, self._pace(spec))
        bucket.heed(self._gate(spec.gate), spec)
        return bucket

    def _rate_delay(self, request: Request, needs: list[Need], now: int) -> Delay | None:
        binding = max(needs, key=lambda need: need.wait_us, default=None)
        if binding is None or binding.wait_us <= 0:
            return None
        slots = self._slots(request, now) if request.live else {}
        if request.live and binding.slot is None and binding.wait_us <= request.patience_us:
            self._book(request, binding, slots, now)
            slots = {binding.spec.key: 0}
        ticket = (request.ticket or request.id) if slots else None
        return Delay(binding.wait_us, ticket, "rate", binding.spec.name)

    def _book(self, request: Request, need: Need, slots: dict[str, int], now: int) -> None:
        """Reserve a slot at the end of the queue."""
        bucket = need.bucket
        bucket.booked_us = max(bucket.booked_us, now) + need.cost
        bucket.waited_us += need.wait_us
        slot = now + need.wait_us
        ticket = _Ticket(now, slot + TICKET_KEPT_US, {**slots, need.spec.key: slot})
        self._tickets[request.ticket or request.id] = ticket
        if len(self._tickets) % 1000 == 0:
            self._tickets = {id_: kept for id_, kept in self._tickets.items() if kept.end_us > now}

    def _start(self, request: Request, needs: list[Need], now: int) -> Grant:
        eras, permits = self._circuits.lend(request.route.circuits, request.id, now)
        for seat in request.route.seats:
            self._taken(seat)[request.id] = now + seat.lease_us
        windows = [self._window(spec, now) for spec in request.route.windows]
        for spec, window in zip(request.route.windows, windows, strict=True):
            window.used += math.ceil(request.weight)
            window.calls += 1
            self._windows[spec.key] = window
        for need in needs:
            need.spend(now, live=request.live)
        if request.ticket:
            self._tickets.pop(request.ticket, None)
        return Grant(
            request,
            now,
            eras,
            permits,
            tuple([(n.bucket.started_us, 0 if n.slot else n.bucket.booked_us) for n in needs]),
            tuple([need.cost for need in needs]),
            tuple([window.begin_us for window in windows]),
        )

    def _settle(self, report: Report, now: int) -> Settled:
        request = report.grant.request
        route = request.route
        if not report.grant.started_us:  # nobody knows when: it is news unless its gate is closed
            report = replace(report, grant=replace(report.grant, started_us=now))
        changes = self._circuits.learn(report, now)
        for seat in route.seats:
            self._taken(seat).pop(request.id, None)
        bans, cut = self._hear(report, now)
        if route.is_adaptive or report.kind in _PACING:
            self._learn_pace(report, cut, now)
        self._correct(report, now)
        return Settled(changes, bans) if changes or bans else _NOTHING_SETTLED

    def _learn_pace(self, report: Report, cut: AbstractSet[str], now: int) -> None:
        told = {each.index: each for each in report.told}
        for index, spec in enumerate(report.grant.request.route.rates):
            self._pace(spec).learn(spec, report, told.get(index), now, cut=spec.sharer in cut)

    def _hear(self, report: Report, now: int) -> tuple[tuple[Ban, ...], AbstractSet[str]]:
        """Close the gates; which bans that has made, and who was told of a limit that nobody knew."""
        route = report.grant.request.route
        if report.kind is _SUCCESS and not self._has_strikes(route):
            return (), _NOBODY
        bans: list[Ban] = []
        cut: set[str] = set()
        if report.kind not in _TELLING:
            return (), cut
        concerned = None if report.kind is Kind.BANNED else route.heard
        concerned_by = zip(route.gates, route.gate_keys, route.strikes, strict=True)
        for sharer, key, strikes in itertools.islice(concerned_by, concerned):
            gate = self._gate(key)
            banned = gate.banned_us
            if gate.hear(report, now, *strikes):
                cut.add(sharer)
            if gate.banned_us != banned:
                bans.append(Ban(sharer, gate.banned_us, gate.bans))
        return tuple(bans), cut

    def _has_strikes(self, route: Route) -> bool:
        for key in route.gate_keys:
            gate = self._gates.get(key)
            if gate is not None and gate.strikes:
                return True
        return False

    def _correct(self, report: Report, now: int) -> None:
        route = report.grant.request.route
        for told in report.told:
            if told.index < len(route.rates):
                spec = route.rates[told.index]
                if bucket := self._buckets.get(spec.key):
                    bucket.correct(spec, told, now)
            else:
                window = route.windows[told.index - len(route.rates)]
                if window.key in self._windows:
                    self._window(window, now).correct(window, told.remaining)
