"""The store in one process, in plain Python: for scripts, for tests, and to read what the Redis scripts do.

It forgets everything when the process ends, and other processes know nothing of it.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

from resilience.store import (
    GATE_FIRST_US,
    GATE_LEAST_US,
    GATE_MOST_US,
    LATE_US,
    LIVE_SEEN_US,
    SEAT_WAIT_US,
    TICKET_KEPT_US,
    Answer,
    Change,
    CircuitSpec,
    Delay,
    Event,
    Grant,
    Kind,
    Move,
    RateSpec,
    Reading,
    Recall,
    Report,
    Request,
    RetrySpec,
    Route,
    SeatSpec,
    Told,
    this_process,
)
from resilience.store.circuit import CircuitTable


def wall_clock_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


@dataclass(slots=True)
class _Gate:
    """Closed from `closed_us` to `until_us`; `strikes` counts the 429s in a row that named no wait."""

    closed_us: int = 0
    until_us: int = 0
    strikes: int = 0


@dataclass(slots=True)
class _Bucket:
    """A token bucket as the times to which it is used up (GCRA).

    `booked_us` counts the calls that started or have a slot, `started_us` only those that really started: a
    slot tells a call when to come, but what keeps the limit in every window is that nothing starts unless
    `started_us` has room. `backfill_us` is the pace of backfills while live work was seen (`live_us`).
    """

    booked_us: int
    started_us: int
    backfill_us: int = 0
    live_us: int = 0
    gate_us: int = 0


@dataclass(slots=True)
class _Ticket:
    issued_us: int
    end_us: int = 0
    slots: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class _Need:
    """What one call needs of one rate limit: it has to wait `wait_us` more, for a slot if it has none."""

    spec: RateSpec
    bucket: _Bucket
    cost: int
    room: int
    slot: int | None
    late: bool = False
    wait_us: int = 0


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
        self._buckets: dict[str, _Bucket] = {}
        self._gates: dict[str, _Gate] = {}
        self._seats: dict[str, dict[str, int]] = {}
        self._tickets: dict[str, _Ticket] = {}
        self._since: dict[str, int] = {}
        self._retries: dict[str, int] = {}

    def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        with self._lock:
            return self._admit(request, self._now_us())

    def settle(self, report: Report) -> tuple[Change, ...]:
        """See `Store.settle`."""
        with self._lock:
            return self._settle(report, self._now_us())

    def settle_and_admit(self, report: Report, request: Request) -> tuple[tuple[Change, ...], Answer]:
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

    def mark_fresh(self, apis: Iterable[str]) -> None:
        """See `Store.mark_fresh`."""
        with self._lock:
            for api in apis:
                self._since.setdefault(api, 1)

    def _gate(self, key: str) -> _Gate:
        return self._gates.get(key) or self._gates.setdefault(key, _Gate())

    def _taken(self, spec: SeatSpec) -> dict[str, int]:
        return self._seats.setdefault(spec.key, {})

    def _admit(self, request: Request, now: int) -> Answer:
        route = request.route
        changes = self._circuits.wake(route.circuits, now)
        answer = (
            self._circuits.refusal(request, now)
            or self._gate_delay(route, now)
            or self._seat_delay(request, now)
            or self._rates(request, now)
        )
        return replace(answer, changes=changes) if changes else answer

    def _rates(self, request: Request, now: int) -> Delay | Grant:
        needs = self._needs(request, self._circuits.slowdown(request.route.circuits, now), now)
        return self._rate_delay(request, needs, now) or self._start(request, needs, now)

    def _gate_delay(self, route: Route, now: int) -> Delay | None:
        for sharer, key in zip(route.gates, route.gate_keys, strict=True):
            until = self._gate(key).until_us
            if now < until:
                return Delay(until - now, None, "gate", sharer)
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

    def _needs(self, request: Request, slowdown: int, now: int) -> list[_Need]:
        """How long each rate limit makes this call wait."""
        slots = self._slots(request, now) if request.live and request.ticket else {}
        needs = []
        for spec in request.route.rates:
            bucket = self._bucket(spec, now)
            cost = cost_of(spec, request.weight) * slowdown
            room = max(spec.burst_us, cost)
            need = _Need(spec, bucket, cost, room, slots.get(spec.key))
            if need.slot is not None:
                self._wait_of_ticket(need, now)
            else:
                need.wait_us = max(bucket.booked_us, now) + cost - room - now
            if request.live:
                bucket.live_us = now
            elif spec.share < 1 and now - bucket.live_us < LIVE_SEEN_US:
                cost, room = backfill_pace(spec, cost)
                need.wait_us = max(need.wait_us, max(bucket.backfill_us, now) + cost - room - now)
            needs.append(need)
        return needs

    def _slots(self, request: Request, now: int) -> dict[str, int]:
        """The slots of a ticket, unless it is unknown or a gate has closed since."""
        ticket = self._tickets.get(request.ticket) if request.ticket else None
        closed = max((self._gate(key).closed_us for key in request.route.gate_keys), default=0)
        if ticket is None or ticket.end_us <= now or ticket.issued_us <= closed:
            return {}
        return ticket.slots

    @staticmethod
    def _wait_of_ticket(need: _Need, now: int) -> None:
        assert need.slot is not None
        if now < need.slot:
            need.wait_us = need.slot - now
            return
        late_us = now - need.slot
        need.late = late_us > need.spec.slack_us
        room = need.room + (0 if need.late else need.spec.slack_us)
        need.wait_us = max(need.bucket.started_us, now) + need.cost - room - now
        to_the_end = max(need.bucket.booked_us, now) + need.cost - need.room - now
        if need.wait_us > 0 and need.late and (late_us > LATE_US or to_the_end <= LATE_US):
            need.slot, need.wait_us = None, to_the_end

    def _bucket(self, spec: RateSpec, now: int) -> _Bucket:
        """A bucket found missing was empty when the store began to know; a gate leaves one empty."""
        bucket = self._buckets.get(spec.key)
        if bucket is None:
            empty = self._since.setdefault(spec.api, now) + spec.burst_us
            bucket = self._buckets[spec.key] = _Bucket(empty, empty + spec.slack_us)
        gate = self._gate(spec.gate)
        if gate.closed_us > bucket.gate_us:
            bucket.gate_us = gate.closed_us
            bucket.started_us = max(bucket.started_us, gate.until_us + spec.burst_us + spec.slack_us)
            bucket.booked_us = bucket.started_us - spec.slack_us
        return bucket

    def _rate_delay(self, request: Request, needs: list[_Need], now: int) -> Delay | None:
        binding = max(needs, key=lambda need: need.wait_us, default=None)
        if binding is None or binding.wait_us <= 0:
            return None
        if request.live and binding.slot is None:
            self._book(request, binding, now)
        ticket = (request.ticket or request.id) if request.live else None
        return Delay(binding.wait_us, ticket, "rate", binding.spec.name)

    def _book(self, request: Request, need: _Need, now: int) -> None:
        """Reserve a slot at the end of the queue."""
        bucket = need.bucket
        bucket.booked_us = max(bucket.booked_us, now) + need.cost
        slots = self._slots(request, now)
        slot = now + need.wait_us
        ticket = _Ticket(now, slot + TICKET_KEPT_US, {**slots, need.spec.key: slot})
        self._tickets[request.ticket or request.id] = ticket
        if len(self._tickets) % 1000 == 0:
            self._tickets = {id_: kept for id_, kept in self._tickets.items() if kept.end_us > now}

    def _start(self, request: Request, needs: list[_Need], now: int) -> Grant:
        eras, permits = self._circuits.lend(request.route.circuits, request.id, now)
        for seat in request.route.seats:
            self._taken(seat)[request.id] = now + seat.lease_us
        for need in needs:
            self._spend(need, now, live=request.live)
        if request.ticket:
            self._tickets.pop(request.ticket, None)
        slots = tuple((n.bucket.started_us, 0 if n.slot else n.bucket.booked_us) for n in needs)
        return Grant(request, now, eras, permits, slots, tuple(need.cost for need in needs))

    @staticmethod
    def _spend(need: _Need, now: int, *, live: bool) -> None:
        bucket = need.bucket
        bucket.started_us = max(bucket.started_us, now) + need.cost
        if need.slot is None:
            bucket.booked_us = max(bucket.booked_us, now) + need.cost
        slack_us = 0 if need.late else need.spec.slack_us
        bucket.booked_us = max(bucket.booked_us, bucket.started_us - slack_us)
        if not live and need.spec.share < 1:
            cost, room = backfill_pace(need.spec, need.cost)
            bucket.backfill_us = min(max(bucket.backfill_us, now) + cost, now + room)

    def _settle(self, report: Report, now: int) -> tuple[Change, ...]:
        request = report.grant.request
        changes = self._circuits.learn(report, now)
        for seat in request.route.seats:
            self._taken(seat).pop(request.id, None)
        for key in request.route.gate_keys:
            self._hear(report, self._gate(key), now)
        self._correct(report, now)
        return changes

    @staticmethod
    def _hear(report: Report, gate: _Gate, now: int) -> None:
        """Close the gate on a 429. The calls that were in flight when it closed tell nothing new."""
        news = report.grant.started_us >= gate.until_us
        if report.kind is Kind.SUCCESS and news:
            gate.strikes = 0
        if report.kind not in {Kind.THROTTLED, Kind.BANNED}:
            return
        until = 0
        if report.retry_after_us is not None:
            until = now + max(report.retry_after_us, GATE_LEAST_US)
        elif news:
            until = now + min(GATE_FIRST_US * 2**gate.strikes, GATE_MOST_US)
            gate.strikes = min(gate.strikes + 1, 10)
        if until > gate.until_us:
            gate.closed_us, gate.until_us = now, until

    def _correct(self, report: Report, now: int) -> None:
        """Believe a server that says less is left than we think; never one that says more.

        Until the server's window ends no more than `remaining` may start, so the bucket is set back as far as
        it would refill until then.
        """
        for told in report.told:
            spec = report.grant.request.route.rates[told.index]
            bucket = self._buckets.get(spec.key)
            used_up = now + used_up_in(spec, told)
            if bucket and used_up > max(bucket.started_us, now):
                bucket.started_us = used_up
                bucket.booked_us = max(bucket.booked_us, used_up - spec.slack_us)


def cost_of(spec: RateSpec, weight: float) -> int:
    """What a call uses up; weights count in whole units."""
    return math.ceil(weight) * spec.unit_us


def used_up_in(spec: RateSpec, told: Told) -> int:
    """How far from now a bucket is used up from which no more than what remains may start until the reset."""
    return spec.burst_us + spec.slack_us + told.reset_us - math.floor(told.remaining) * spec.unit_us


def backfill_pace(spec: RateSpec, cost: int) -> tuple[int, int]:
    """Cost and room of a backfill call in the share that live work leaves."""
    cost = math.ceil(cost / spec.share)
    return cost, max(math.ceil(spec.burst_us / spec.share), cost)
