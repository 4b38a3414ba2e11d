"""What goes to Redis and what comes back: the commands for a call and its end, and what the replies say."""

import math
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, TypeVar
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
from resilience.store.gate import Gate
from resilience.store.layout import BUCKET, GATE, WINDOW
from resilience.store.memory import wall_clock_us
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
_KEPT = 64
# Looking them up is slow in Python 3.11.
_SUCCESS, _BANNED, _THROTTLED = Kind.SUCCESS, Kind.BANNED, Kind.THROTTLED
_ASKED = struct.Struct("<dd")
_MOMENT = struct.Struct("<d")
_NOTHING_LEARNED = numbers((0, 0, 0))  # no bucket learns; no window and no bucket was told of
_NOTHING_TOLD = numbers((0, 0))
_NO_WINDOWS = numbers((0,))

Numbers = tuple[float, ...]
K = TypeVar("K")
V = TypeVar("V")


def flat(*values: Iterable[float]) -> Numbers:
    """One after the other."""
    return tuple(chain.from_iterable(values))


def moment(now_us: int) -> bytes:
    """The time, which all numbers of a script begin with; 0 is that of Redis."""
    return _MOMENT.pack(now_us)


_BY_REDIS = moment(0)


@dataclass(frozen=True, slots=True, eq=False)
class Asker:
    """Who asks: the name, packed by `bulk`, and where the time comes from if not from Redis.

    With `recalls` a circuit of which nothing is known is recalled before anything else.
    """

    name: bytes
    recalls: bool = False
    now_us: Callable[[], int] | None = None

    def when(self) -> bytes:
        """What the numbers of a script begin with."""
        return _BY_REDIS if self.now_us is None else moment(self.now_us())

    def about_us(self) -> int:
        """The time by our own clock; it only has to tell yesterday from tomorrow."""
        return wall_clock_us() if self.now_us is None else self.now_us()


class Asked(NamedTuple):
    """The command by which a call wants to start: what stands before the last part of its ticket's name, and
    between that and its id; and the numbers, which are the end of the latter.
    """

    head: bytes
    middle: bytes
    figures: bytes


class Wire:
    """The commands of a route: what of them never changes is packed once.

    What happens for every call stands in few functions: where many processes share the caches of a core, each
    that is entered costs more than what it does.
    """

    def __init__(self, route: Route) -> None:
        self._route = ref(route)  # the route keeps this, and is not to wait for the garbage collector
        self._circuits, self._has_windows = len(route.circuits), bool(route.windows)
        circuits, events = circuit_keys(route.circuits), keys.events(route.api)
        seats, windows = [spec.key for spec in route.seats], [spec.key for spec in route.windows]
        buckets, heard = [spec.key for spec in route.rates], route.gate_keys[: route.heard]
        policies = flat(*map(policy, route.circuits))

        once = (events, keys.since(route.api), keys.restored(route.api))
        asked = Names.of((*once, *circuits, *route.gate_keys, *seats, *windows, *buckets))
        self.names = Names(asked.number + 1, asked.packed)  # the ticket, which is new every time, is the last
        self.ticket = keys.ticket(route.api, "").encode()
        self._asked_head = ADMIT.head(self.names, texts=1)
        lent = flat(*((spec.seats, spec.lease_us) for spec in route.seats))
        known = _since_ttl(route), len(route.circuits), *policies
        self._terms = numbers((*known, len(route.gates), len(seats), *lent))
        self._asked: dict[tuple[object, ...], Asked] = {}
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
        self._page_head = SETTLE_AND_ADMIT.head(self._learned, self.names, texts=2)
        self._ended = struct.Struct(f"<{5 + eras}d")
        self._settled: dict[tuple[object, ...], tuple[bytes, bytes]] = {}
        self._heard = numbers((*policies, *_gates(route.strikes[: route.heard]), len(seats)))
        self._heard_of_ban = numbers((*policies, *_gates(route.strikes), len(seats)))

    @property
    def route(self) -> Route:
        """The route, which whoever asks holds."""
        route = self._route()
        assert route is not None
        return route

    def admit(self, request: Request, by: Asker) -> bytes:
        """May a call start?"""
        id_ = request.id.encode()
        kind = by, request.patience_us, request.live, request.ledger, request.weight, len(id_)
        if request.ticket is None and (asked := self._asked.get(kind)):
            return b"%b%b%b%b\r\n" % (asked.head, id_, asked.middle, id_)
        asked, ticket = self.asks(request, by), request.ticket.encode() if request.ticket else id_
        return b"%b%b%b%b\r\n" % (asked.head, ticket, asked.middle, id_)

    def settle(self, report: Report, by: Asker) -> bytes:
        """How a call ended."""
        id_, ended = report.grant.request.id.encode(), self._end(report)
        kind = by, len(id_)
        plain = report.kind is _SUCCESS and not report.told and not self._learning and by.now_us is None
        if plain and (around := self._settled.get(kind)):
            return b"%b%b%b%b\r\n" % (around[0], ended, around[1], id_)
        names, rest = self._says(report, by)
        head = self._learned_head if names is self._learned else SETTLE.head(names, texts=1)
        when = by.when()
        before = b"%b%b$%d\r\n%b" % (head, by.name, len(when) + len(ended) + len(rest), when)
        after = b"%b\r\n$%d\r\n" % (rest, len(id_))
        if plain:
            _keep(self._settled, kind, (before, after))
        return b"%b%b%b%b\r\n" % (before, ended, after, id_)

    def settle_and_admit(self, report: Report, request: Request, by: Asker) -> bytes:
        """How a call ended; and may the next one start, whose route may be another?"""
        names, rest = self._says(report, by)
        after = request.route.wire
        if names is self._learned and after is self:
            head = self._page_head
        else:
            head = SETTLE_AND_ADMIT.head(names, after.names, texts=2)
        figures = b"%b%b%b%b" % (by.when(), self._end(report), rest, after.asks(request, by).figures)
        id_, next_id = report.grant.request.id.encode(), request.id.encode()
        ticket = after.ticket + (request.ticket.encode() if request.ticket else next_id)
        return b"%b$%d\r\n%b\r\n%b$%d\r\n%b\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
            *(head, len(ticket), ticket, by.name, len(figures), figures),
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
        slots = iter(found[slots_at:])
        return Grant(
            request,
            found[0],
            found[1:costs_at],
            self._no_permits if permits is None else tuple(map(bool, permits)),
            tuple(zip(slots, slots)),  # noqa: B905 - each takes what follows
            found[costs_at:periods_at],
            found[periods_at:slots_at],
            changes,
        )

    def asks(self, request: Request, by: Asker) -> Asked:
        """What a call that wants to start is asked with, but for its id and ticket."""
        id_, ticketed = request.id.encode(), request.ticket is not None
        kind = by, request.patience_us, request.live, request.ledger, request.weight, len(id_)
        if not ticketed and (asked := self._asked.get(kind)):
            return asked
        weight, when = request.weight, by.when()
        flags = ticketed + 2 * request.live + 4 * request.ledger + 8 * by.recalls
        windows = self._windows_of(weight, by.about_us()) if self._has_windows else _NO_WINDOWS
        rates = self._rates.get(weight) or self._rates_of(weight)
        figures = b"%b%b%b%b" % (_ASKED.pack(request.patience_us, flags), self._terms, windows, rates)
        ticket = request.ticket.encode() if request.ticket else id_
        asked = Asked(
            b"%b$%d\r\n%b" % (self._asked_head, len(self.ticket) + len(ticket), self.ticket),
            b"\r\n%b$%d\r\n%b%b\r\n$%d\r\n" % (by.name, len(when) + len(figures), when, figures, len(id_)),
            figures,
        )
        if not ticketed and not self._has_windows and by.now_us is None:  # windows end, and time goes on
            _keep(self._asked, kind, asked)
        return asked

    def _rates_of(self, weight: float) -> bytes:
        route, rates = self.route, self.route.rates
        packed = numbers((len(rates), *flat(*(_bucket(route, spec, weight) for spec in rates))))
        _keep(self._rates, weight, packed)
        return packed

    def _windows_of(self, weight: float, about_us: int) -> bytes:
        windows, cost = self.route.windows, math.ceil(weight)
        return numbers((len(windows), *flat(*(window_terms(spec, cost, about_us) for spec in windows))))

    def _says(self, report: Report, by: Asker) -> tuple[Names, bytes]:
        """The names of a call's end, and its numbers after those of `_end`."""
        kind, told, names, heard, specs = report.kind, report.told, self._learned, self._heard, self._learning
        if kind is _THROTTLED:
            names, specs = self._learned_of_429, list(self.route.rates)
        elif kind is _BANNED:
            names, heard, specs = self._learned_of_ban, self._heard_of_ban, list(self.route.rates)
        if not told and not specs:
            return names, heard + _NOTHING_LEARNED
        route = self.route
        paces = numbers((len(specs), *_paces(route, specs, told)))
        if not told:
            return names, b"%b%b%b" % (heard, paces, _NOTHING_TOLD)
        listed, said = _told(route, told, by.about_us())
        more = Names.of(listed)
        both = Names(names.number + more.number, names.packed + more.packed)
        return both, b"%b%b%b" % (heard, paces, said)

    def _end(self, report: Report) -> bytes:
        """The first numbers of a call's end."""
        kind, grant = report.kind, report.grant
        marks = []  # era, slowness and permit of each circuit (learn.lua)
        for spec, era, permit in zip(grant.request.route.circuits, grant.eras, grant.permits, strict=True):
            mark = 16 * era + 16 + permit
            if 0 < spec.slow_us < report.latency_us:
                mark += 2
            if kind is not _SUCCESS:
                mark += _told_to(spec, report)
            marks.append(mark)
        return self._ended.pack(
            0 if kind is _SUCCESS else KINDS[kind],
            grant.started_us,
            -1 if report.retry_after_us is None else report.retry_after_us,
            report.latency_us,
            self._circuits,
            *marks,
        )


def _keep(kept: dict[K, V], key: K, value: V) -> None:
    """Remember it, and not too much."""
    if len(kept) >= _KEPT:
        kept.clear()
    kept[key] = value


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
