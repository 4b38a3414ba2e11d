"""What goes to Redis and what comes back: the commands for a call and its end, and what the replies say."""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Any
from weakref import ref

from resilience.store import (
    DAY_US,
    SLICES,
    Answer,
    Change,
    CircuitSpec,
    CircuitState,
    Delay,
    Denial,
    Event,
    Grant,
    Kind,
    LimitReading,
    LimitSpec,
    RateSpec,
    Reading,
    Report,
    Request,
    Route,
    SeatSpec,
    Told,
    Unrestored,
    Unwritten,
    WindowSpec,
    keys,
)
from resilience.store.bucket import Bucket, Pace, cost_of, spread_of, used_up_in
from resilience.store.circuit import is_slow
from resilience.store.gate import Gate
from resilience.store.layout import BUCKET, GATE, WINDOW
from resilience.store.reading import reading_of
from resilience.store.scripts import (
    ADMIT,
    GO,
    KINDS,
    REFUSE,
    RESTORE,
    SETTLE,
    SETTLE_AND_ADMIT,
    STATES,
    WRITE,
    Names,
    numbers,
)
from resilience.store.window import Window

DAY_MS = DAY_US // 1000
_WEIGHTS_KEPT = 64
# Looking them up is slow in Python 3.11.
_SUCCESS, _BANNED, _THROTTLED = Kind.SUCCESS, Kind.BANNED, Kind.THROTTLED
_ASKED = struct.Struct("<dd")
_MOMENT = struct.Struct("<d")
_NOTHING_LEARNED = numbers((0, 0, 0))  # no bucket learns; no window and no bucket was told of
_NOTHING_TOLD = numbers((0, 0))
_NO_WINDOWS = numbers((0,))

Numbers = tuple[float, ...]


def flat(*values: Iterable[float]) -> Numbers:
    """One after the other."""
    return tuple(chain.from_iterable(values))


def moment(now_us: int) -> bytes:
    """The time, which all numbers of a script begin with; 0 is that of Redis."""
    return _MOMENT.pack(now_us)


class Wire:
    """The commands of a route: what of them never changes is packed once.

    With `recalls` a circuit of which nothing is known is recalled before anything else. `about_us` is the
    time by our own clock; it only has to tell yesterday from tomorrow. A command says `when`, packed by
    `moment`, and who asks, packed by `bulk`.
    """

    def __init__(self, route: Route, *, recalls: bool, about_us: Callable[[], int]) -> None:
        self._route = ref(route)  # the store keeps this as long as the route lives, which it must not prolong
        self._recalls, self._about_us = 8 * recalls, about_us
        self._circuits, self._has_windows = len(route.circuits), bool(route.windows)
        circuits, events = circuit_keys(route.circuits), keys.events(route.api)
        seats, windows = [spec.key for spec in route.seats], [spec.key for spec in route.windows]
        buckets, heard = [spec.key for spec in route.rates], route.gate_keys[: route.heard]
        policies = flat(*map(policy, route.circuits))

        once = (events, keys.since(route.api), keys.restored(route.api))
        asked = Names.of((*once, *circuits, *route.gate_keys, *seats, *windows, *buckets))
        self.asked = Names(asked.number + 1, asked.packed)  # the ticket, which is new every time, is the last
        self._ticket = keys.ticket(route.api, "").encode()
        self._asked_head = ADMIT.head(self.asked, texts=1)
        lent = flat(*((spec.seats, spec.lease_us) for spec in route.seats))
        known = _since_ttl(route), len(route.circuits), *policies
        self._terms = numbers((*known, len(route.gates), len(seats), *lent))
        self._rates: dict[float, bytes] = {}
        eras, costs, periods = len(route.circuits), len(buckets), len(windows)
        self._granted = struct.Struct(f"<{1 + eras + costs + periods + 2 * costs}q")
        self._parts = 1 + eras, 1 + eras + costs, 1 + eras + costs + periods
        self._no_permits = (False,) * eras

        self._learning = [spec for spec in route.rates if spec.adaptive]
        self._learned = Names.of((events, *circuits, *heard, *seats, *[spec.key for spec in self._learning]))
        self._learned_of_429 = Names.of((events, *circuits, *heard, *seats, *buckets))
        self._learned_of_ban = Names.of((events, *circuits, *route.gate_keys, *seats, *buckets))
        self._learned_head = SETTLE.head(self._learned, texts=1)
        self._page_head = SETTLE_AND_ADMIT.head(self._learned, self.asked, texts=2)
        self._ended = struct.Struct(f"<{5 + len(route.circuits)}d")
        self._heard = numbers((*policies, *_gates(route.strikes[: route.heard]), len(seats)))
        self._heard_of_ban = numbers((*policies, *_gates(route.strikes), len(seats)))

    @property
    def route(self) -> Route:
        """The route, which whoever asks holds."""
        route = self._route()
        assert route is not None
        return route

    def admit(self, request: Request, when: bytes, actor: bytes) -> bytes:
        """May a call start?"""
        id_, ticket, figures = request.id.encode(), self.ticket_of(request), self.asks(request)
        return b"%b$%d\r\n%b\r\n%b$%d\r\n%b%b\r\n$%d\r\n%b\r\n" % (
            *(self._asked_head, len(ticket), ticket, actor),
            *(len(when) + len(figures), when, figures, len(id_), id_),
        )

    def settle(self, report: Report, when: bytes, actor: bytes) -> bytes:
        """How a call ended."""
        names, figures = self._says(report)
        head = self._learned_head if names is self._learned else SETTLE.head(names, texts=1)
        id_ = report.grant.request.id.encode()
        return b"%b%b$%d\r\n%b%b\r\n$%d\r\n%b\r\n" % (
            *(head, actor, len(when) + len(figures), when, figures, len(id_), id_),
        )

    def settle_and_admit(
        self, report: Report, after: "Wire", request: Request, when: bytes, actor: bytes
    ) -> bytes:
        """How a call ended; and may the next one start, which passes `after`?"""
        names, said = self._says(report)
        if names is self._learned and after is self:
            head = self._page_head
        else:
            head = SETTLE_AND_ADMIT.head(names, after.asked, texts=2)
        figures = when + said + after.asks(request)
        ticket, id_, next_id = after.ticket_of(request), report.grant.request.id.encode(), request.id.encode()
        return b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            *(head, len(ticket), ticket, actor, len(figures), figures),
            *(len(id_), id_, len(next_id), next_id),
        )

    def granted(
        self,
        request: Request,
        packed: bytes,
        permits: Sequence[int] | None = None,
        changes: tuple[Change, ...] = (),
    ) -> Grant:
        """What `admit` said of a call that may start."""
        found = self._granted.unpack(packed)
        costs_at, periods_at, slots_at = self._parts
        slots = found[slots_at:]
        return Grant(
            request,
            found[0],
            found[1:costs_at],
            self._no_permits if permits is None else tuple(map(bool, permits)),
            tuple(zip(slots[::2], slots[1::2], strict=True)),
            found[costs_at:periods_at],
            found[periods_at:slots_at],
            changes,
        )

    def ticket_of(self, request: Request) -> bytes:
        """The key of its ticket."""
        return self._ticket + (request.ticket or request.id).encode()

    def asks(self, request: Request) -> bytes:
        """The numbers of a call that wants to start."""
        flags = (request.ticket is not None) + 2 * request.live + 4 * request.ledger + self._recalls
        rates = self._rates.get(request.weight) or self._rates_of(request.weight)
        windows = self._windows_of(request.weight) if self._has_windows else _NO_WINDOWS
        return b"%b%b%b%b" % (_ASKED.pack(request.patience_us, flags), self._terms, windows, rates)

    def _rates_of(self, weight: float) -> bytes:
        if len(self._rates) >= _WEIGHTS_KEPT:
            self._rates.clear()
        route, rates = self.route, self.route.rates
        packed = numbers((len(rates), *flat(*(_bucket(route, spec, weight) for spec in rates))))
        self._rates[weight] = packed
        return packed

    def _windows_of(self, weight: float) -> bytes:
        windows, cost, about_us = self.route.windows, math.ceil(weight), self._about_us()
        return numbers((len(windows), *flat(*(window_terms(spec, cost, about_us) for spec in windows))))

    def _says(self, report: Report) -> tuple[Names, bytes]:
        """The names and numbers of a call's end."""
        kind, told = report.kind, report.told
        retry_after_us = -1 if report.retry_after_us is None else report.retry_after_us
        ended = self._ended.pack(
            0 if kind is _SUCCESS else KINDS[kind],
            report.grant.started_us,
            retry_after_us,
            report.latency_us,
            self._circuits,
            *_marks(report),
        )
        names, heard, specs = self._learned, self._heard, self._learning
        if kind is _THROTTLED:
            names, specs = self._learned_of_429, list(self.route.rates)
        elif kind is _BANNED:
            names, heard, specs = self._learned_of_ban, self._heard_of_ban, list(self.route.rates)
        if not told and not specs:
            return names, b"%b%b%b" % (ended, heard, _NOTHING_LEARNED)
        route = self.route
        paces = numbers((len(specs), *_paces(route, specs, told)))
        if not told:
            return names, b"%b%b%b%b" % (ended, heard, paces, _NOTHING_TOLD)
        listed, said = _told(route, told, self._about_us())
        more = Names.of(listed)
        both = Names(names.number + more.number, names.packed + more.packed)
        return both, b"%b%b%b%b" % (ended, heard, paces, said)


def _since_ttl(route: Route) -> int:
    lengths = [*[spec.window_us for spec in route.rates], *[spec.length_us for spec in route.windows], 0]
    return max(8 * DAY_MS, 2 * max(lengths) // 1000)


def policy(spec: CircuitSpec) -> Numbers:
    """A circuit's slices and policy (circuit.lua)."""
    return (
        *(spec.window_us // SLICES, spec.failures, spec.rate, spec.min_calls, spec.open_us, spec.growth),
        *(spec.open_max_us, spec.probes, spec.successes, spec.lease_us, spec.step_us, spec.slow_rate),
        *(spec.throttles, spec.throttles_fail, spec.strict),
    )


def _gates(strikes: Sequence[tuple[int, int]]) -> Numbers:
    return (len(strikes), *flat(*strikes))


def _bucket(route: Route, spec: RateSpec, weight: float) -> Numbers:
    gate, cost = route.gates.index(spec.sharer) + 1, cost_of(spec, weight)
    return gate, cost, spec.burst_us, spec.slack_us, spec.share, ttl_ms(spec.window_us), spec.start


def window_terms(spec: WindowSpec, cost: int, about_us: int) -> Numbers:
    """A window and what the call needs of it (window.lua)."""
    edges = spec.calendar(about_us) if spec.calendar else ()
    terms = spec.amount, spec.length_us, spec.share, spec.saved, spec.block, cost, ttl_ms(spec.length_us)
    return *terms, len(edges), *edges


def _paces(route: Route, specs: Sequence[RateSpec], told: Sequence[Told]) -> Numbers:
    """What these buckets learn."""
    said = {route.rates[each.index]: each for each in told if each.index < len(route.rates)}
    terms: list[Numbers] = []
    for spec in specs:
        heard = said.get(spec)
        wanted = (spread_of(spec, heard), heard.reset_us) if heard and heard.reset_us else (0, 0)
        gate = route.gates.index(spec.sharer) + 1
        terms.append((spec.start, gate, spec.adaptive, spec.most, spec.cut, *wanted, ttl_ms(spec.window_us)))
    return flat(*terms)


def _told(route: Route, told: Sequence[Told], about_us: int) -> tuple[list[str], bytes]:
    """The keys and numbers of what the server told of limits."""
    count = len(route.rates)
    rates = [(route.rates[each.index], each) for each in told if each.index < count]
    windows = [(route.windows[each.index - count], each) for each in told if each.index >= count]
    corrected = (
        (*window_terms(spec, 0, about_us), spec.amount - math.floor(each.remaining)) for spec, each in windows
    )
    used_up = ((used_up_in(spec, each), spec.slack_us, ttl_ms(spec.window_us)) for spec, each in rates)
    said = numbers((len(windows), *flat(*corrected), len(rates), *flat(*used_up)))
    return [spec.key for spec, _ in windows] + [spec.key for spec, _ in rates], said


def circuit_keys(specs: Iterable[CircuitSpec]) -> list[str]:
    """Each circuit's own and its permits'."""
    return [key for spec in specs for key in (spec.key, keys.permits(spec.api, spec.name))]


def move_keys(spec: CircuitSpec) -> tuple[str, str, str]:
    """All that is kept of a circuit."""
    return spec.key, keys.permits(spec.api, spec.name), keys.override(spec.api, spec.name)


def ttl_ms(window_us: int) -> int:
    """How long a limit is kept if nobody asks."""
    return max(DAY_MS, math.ceil(window_us / 1000))


def _marks(report: Report) -> list[int]:
    """Era, slowness and permit of each circuit (learn.lua)."""
    grant, marks = report.grant, []
    for spec, era, permit in zip(grant.request.route.circuits, grant.eras, grant.permits, strict=True):
        mark = 16 * era + 16 + permit
        if is_slow(spec, report):
            mark += 2
        if report.kind is not _SUCCESS:
            mark += _told_to(spec, report)
        marks.append(mark)
    return marks


def _told_to(spec: CircuitSpec, report: Report) -> int:
    kind = report.kind_for(spec)
    return 0 if kind is report.kind else 4 if kind is Kind.FAILURE else 8


def released(grant: Grant) -> tuple[list[str], Numbers]:
    """Keys and numbers of what goes back (release.lua)."""
    route = grant.request.route
    sets = [keys.permits(spec.api, spec.name) for spec in route.circuits]
    sets += [spec.key for spec in route.seats]
    windows, buckets = [spec.key for spec in route.windows], [spec.key for spec in route.rates]
    cost = math.ceil(grant.request.weight)
    counted = flat((len(windows),), *((begin, cost) for begin in grant.periods))
    slots = [(*slot, cost) for slot, cost in zip(grant.slots, grant.costs, strict=True)]
    return [*sets, *windows, *buckets], (len(sets), *counted, *flat((len(buckets),), *slots))


def answer_of(wire: Wire, request: Request, reply: list[Any], actor: str) -> Answer:
    """What `admit` said, where it is more than that the call may start."""
    verdict, now, listed, *rest = reply
    changes = changes_of(actor, now, listed)
    if verdict == GO:
        packed, permits = rest
        return wire.granted(request, packed, permits, changes)
    if verdict == REFUSE:
        index, state, until_us, failures = rest
        return Denial(index, STATES[state].value, until_us, failures, changes)
    if verdict == RESTORE:
        return Unrestored(changes)
    if verdict == WRITE:
        index, begin, wanted = rest
        return Unwritten(request.route.windows[index], begin, wanted, changes)
    wait_us, with_ticket, reason, index = rest
    ticket = (request.ticket or request.id) if with_ticket else None
    return Delay(wait_us, ticket, reason.decode(), _key(request.route, reason.decode(), index), changes)


def _key(route: Route, reason: str, index: int) -> str:
    match reason:
        case "half_open":
            return route.circuits[index].name
        case "gate" | "ban":
            return route.gates[index]
        case "window" | "budget":
            return route.windows[index].name
        case "seats":
            return route.seats[index].name
        case _:
            return route.rates[index].name


def limit_reading(spec: LimitSpec, packed_gate: bytes, kept: Any, now: int) -> LimitReading:
    """How a limit stands (limits.lua)."""
    told = GATE.read(packed_gate)
    gate = Gate(int(told["closed"]), int(told["till"]), banned_us=int(told["banned"]))
    gate.violations = int(told["violations"])
    if isinstance(spec, SeatSpec):
        return reading_of(spec, [int(float(end)) for end in kept], gate, now)
    if isinstance(spec, WindowSpec):
        seen = WINDOW.read(kept)
        window = Window(int(seen["begin"]), 0, int(seen["used"]), calls=int(seen["calls"]))
        return reading_of(spec, window, gate, now)
    seen = BUCKET.read(kept)
    pace = Pace(
        *(seen["factor"], seen["cut"], int(seen["cut_at"]), int(seen["step"])),
        *(seen["spread"], int(seen["spread_end"]), int(seen["violations"]), int(seen["adjustments"])),
        *(seen["least"], seen["greatest"]),
    )
    bucket = Bucket(int(seen["booked"]), int(seen["started"]), pace, gate_us=int(seen["gate"]))
    bucket.calls, bucket.waited_us = int(seen["calls"]), int(seen["waited"])
    return reading_of(spec, bucket, gate, now)


def changes_of(actor: str, now: int, listed: Sequence[Any]) -> tuple[Change, ...]:
    """The transitions that a script tells."""
    each = zip(listed[::4], listed[1::4], listed[2::4], listed[3::4], strict=True)
    return tuple(
        Change(index, STATES[old], STATES[new], reason.decode(), now, actor)
        for index, old, new, reason in each
    )


def circuit_reading(state: int, *rest: Any) -> Reading:
    """How a circuit stands (view.lua)."""
    seen: list[Any] = [value.decode() if isinstance(value, bytes) else value for value in rest]
    return Reading(STATES[max(state, 0)], *seen)


def event_of(id_: bytes, listed: list[bytes]) -> Event:
    """A transition in the stream."""
    told = {name.decode(): value.decode() for name, value in zip(listed[::2], listed[1::2], strict=True)}
    old, new = CircuitState(told["old"]), CircuitState(told["new"])
    return Event(id_.decode(), told["circuit"], old, new, told["reason"], int(told["at"]), told["actor"])
