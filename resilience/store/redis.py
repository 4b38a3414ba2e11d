"""The store in Redis: every decision is one script, on the clock of Redis.

A command costs ten times more in the client than in Redis, so a connection is used directly: a write and a
read per decision. Losing a connection is healed once; if Redis is away, `StoreUnavailableError` says so.
"""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.resources import files
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import hiredis
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from resilience import store
from resilience.errors import StoreUnavailableError
from resilience.store import (
    DAY_US,
    FORCED_US,
    SLICES,
    Answer,
    Ban,
    Change,
    CircuitSpec,
    CircuitState,
    Closed,
    Delay,
    Denial,
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
    Told,
    Unrestored,
    Unwritten,
    WindowSpec,
    keys,
    this_process,
)
from resilience.store.bucket import Bucket, Pace, cost_of, spread_of, used_up_in
from resilience.store.circuit import is_slow
from resilience.store.gate import Gate
from resilience.store.memory import wall_clock_us
from resilience.store.reading import reading_of
from resilience.store.window import Window

if TYPE_CHECKING:
    from resilience.store.redis_async import AsyncRedisStore

_CONSTANTS = (
    "LATE_US",
    "TICKET_KEPT_US",
    "LIVE_SEEN_US",
    "PERMIT_WAIT_US",
    "SEAT_WAIT_US",
    "GATE_LEAST_US",
    "EVENTS_KEPT",
    "BAN_FIRST_US",
    "BAN_MOST_US",
    "DAY_US",
    "QUIET_US",
    "RECOVERY_US",
    "LATENCY_US",
    "SLOW_US",
    "FAST_US",
    "KEPT_FACTOR_US",
    "BUDGET_KEPT_US",
)
_DAY_MS = DAY_US // 1000
_STATES = {state.value.encode(): state for state in CircuitState}


# A command, or a part of one: what hiredis packs.
_Words = tuple[str | float, ...]


def _flat(*values: Iterable[str | float]) -> _Words:
    return tuple(chain.from_iterable(values))


class _Script(NamedTuple):
    by_sha: _Words
    by_source: _Words


def _compose(parts: Sequence[str], call: str) -> _Script:
    """A script is the constants of `resilience.store`, its parts one after the other, and a call."""
    constants = [f"local {name} = {getattr(store, name)}" for name in _CONSTANTS]
    constants.append(f"local DAY_MS, FORCED_MS = {_DAY_MS}, {FORCED_US // 1000}")
    folder = files("resilience.store") / "lua"
    bodies = [(folder / f"{part}.lua").read_text(encoding="utf-8") for part in parts]
    source = "\n".join([*constants, *bodies, call])
    sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()
    return _Script(("EVALSHA", sha), ("EVAL", source))


_COMMON = ("wire", "circuit", "gate", "pace", "window")
_ADMIT = _compose((*_COMMON, "bucket", "admit"), "return admit()")
_SETTLE = _compose((*_COMMON, "learn", "settle"), "return settle()")
_SETTLE_AND_ADMIT = _compose(
    (*_COMMON, "bucket", "learn", "settle", "admit"), "local settled = settle()\nreturn {settled, admit()}"
)
_RELEASE = _compose(("wire", "release"), "return release()")
_MOVE = _compose(("wire", "circuit", "move"), "return move()")
_VIEW = _compose(("wire", "circuit", "view"), "return view()")
_RETRY = _compose(("wire", "retry"), "return retry()")
_LIMITS = _compose(("wire", "gate", "limits"), "return limits()")
_ADJUST = _compose(("wire", "pace", "adjust"), "return adjust()")
_RESTORE = _compose(("wire", "gate", "restore"), "return restore()")
_REPAY = _compose(("wire", "gate", "window", "repay"), "return repay()")
_ALLOT = _compose(("wire", "window", "allot"), "return allot()")

_NOTHING = (0,)
_NOTHING_TOLD = (0, 0)
_WEIGHTS_KEPT = 64


class _Wire:
    """What of a route's keys and arguments never changes, packed once."""

    def __init__(self, route: Route) -> None:
        self._route = ref(route)  # the store keeps this as long as the route lives, which it must not prolong
        circuits, seats = _circuit_keys(route.circuits), [spec.key for spec in route.seats]
        buckets = [spec.key for spec in route.rates]
        self.admit_keys = (
            *(keys.since(route.api), keys.restored(route.api), *circuits, *route.gate_keys, *seats),
            *([spec.key for spec in route.windows]),
            *buckets,
        )
        heard, events = route.gate_keys[: route.heard], keys.events(route.api)
        self.events_key = events
        self.learning = [spec for spec in route.rates if spec.adaptive]
        self.settle_keys = (events, *circuits, *heard, *seats, *[spec.key for spec in self.learning])
        self.throttled_keys = (events, *circuits, *heard, *seats, *buckets)
        self.banned_keys = (events, *circuits, *route.gate_keys, *seats, *buckets)
        self.policies = _flat((len(route.circuits),), *map(_policy, route.circuits))
        self.seats = _flat(
            (len(route.gates), len(seats)), *((spec.seats, spec.lease_us) for spec in route.seats)
        )
        self.sizes = (*_gates(route.strikes[: route.heard]), len(seats))
        self.banned_sizes = (*_gates(route.strikes), len(seats))
        longest_us = max((spec.window_us for spec in route.rates), default=0)
        longest_us = max(longest_us, *[spec.length_us for spec in route.windows], 0)
        self.since_ttl = max(8 * _DAY_MS, 2 * longest_us // 1000)
        self._weights: dict[float, _Words] = {}

    @property
    def route(self) -> Route:
        """The route, which whoever asks holds."""
        route = self._route()
        assert route is not None
        return route

    def rates(self, weight: float) -> _Words:
        """The buckets' arguments for a call of this weight."""
        if weight not in self._weights:
            if len(self._weights) >= _WEIGHTS_KEPT:
                self._weights.clear()
            self._weights[weight] = _flat(
                (len(self.route.rates),), *(_bucket(self.route, spec, weight) for spec in self.route.rates)
            )
        return self._weights[weight]

    def windows(self, weight: float, about_us: int) -> _Words:
        """The windows' arguments."""
        if not self.route.windows:
            return _NOTHING
        cost = math.ceil(weight)
        return _flat(
            (len(self.route.windows),), *(_window(spec, cost, about_us) for spec in self.route.windows)
        )


class RedisStore:
    """The state that a fleet shares.

    `url` as redis-py takes it (redis, rediss, unix). A reply later than `timeout_s` counts as none.
    `recall` is asked about a circuit of which Redis knows nothing, before anything is admitted; what it
    raises reaches whoever asked. `actor` is who transitions are put down to, by default host and pid.
    `now_us` replaces the clock of Redis, for tests. Thread-safe, and safe to use after a fork.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 5.0,
        recall: Recall | None = None,
        actor: str | None = None,
        now_us: Callable[[], int] | None = None,
    ) -> None:
        self._pool = ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            retry=Retry(NoBackoff(), 0),
            max_connections=2**31,
        )
        self._url, self._timeout_s = url, timeout_s
        self._now_us = now_us
        self._recall = recall
        self._named, self._actor = actor, actor or this_process()
        self._stamp = ("", self._actor)
        self._idle: deque[Any] = deque()
        self._pid = os.getpid()
        self._wires: WeakKeyDictionary[Route, _Wire] = WeakKeyDictionary()

    def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        wire = self._wire(request.route)
        args = self._admit_args(wire, request)
        return self._answer(request, self._run(_ADMIT, _admit_keys(wire, request), args))

    def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        wire = self._wire(report.grant.request.route)
        reply = self._run(_SETTLE, _settle_keys(wire, report), self._settle_args(wire, report))
        return self._settled(report, *reply)

    def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        before, after = self._wire(report.grant.request.route), self._wire(request.route)
        settled, admitted = self._run(
            _SETTLE_AND_ADMIT,
            (*_settle_keys(before, report), *_admit_keys(after, request)),
            (*self._settle_args(before, report), *self._admit_args(after, request)),
        )
        return self._settled(report, *settled), self._answer(request, admitted)

    def release(self, grant: Grant) -> None:
        """See `Store.release`."""
        self._run(_RELEASE, *_released(grant))

    def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`. One message to Redis, whatever number of APIs they belong to."""
        seen = self._view(specs)
        lost = [spec for spec in specs if not seen[spec.key][0]]
        if self._recall and lost:
            self._restore(lost)
            seen = self._view(specs)
        return [_reading(*seen[spec.key]) for spec in specs]

    def _view(self, specs: Sequence[CircuitSpec]) -> dict[str, list[Any]]:
        by_api: dict[str, list[CircuitSpec]] = {}
        for spec in specs:
            by_api.setdefault(spec.api, []).append(spec)
        replies = self._run_all(
            (
                _VIEW,
                tuple([key for spec in asked for key in _move_keys(spec)]),
                _flat((len(asked),), *map(_policy, asked)),
            )
            for asked in by_api.values()
        )
        asked = [spec.key for several in by_api.values() for spec in several]
        return dict(zip(asked, [seen for reply in replies for seen in reply], strict=True))

    def move(self, moves: Sequence[Move]) -> list[Change | None]:
        """See `Store.move`. One message to Redis, whatever their number."""
        replies = self._run_all((*_move(move), move.by) for move in moves)
        changes = [_changes(move.by, *reply)[0] for move, reply in zip(moves, replies, strict=True)]
        return [change if change.old is not change.new else None for change in changes]

    def events(self, api: str, after: str = "0-0") -> list[Event]:
        """See `Store.events`."""
        entries = self._command(("XRANGE", keys.events(api), f"({after}", "+"))
        return [_event(*entry) for entry in entries]

    def _restore(self, specs: Iterable[CircuitSpec]) -> None:
        """Bring back what was decided about circuits of which Redis knows nothing."""
        assert self._recall
        moves = []
        for spec in specs:
            decided = self._recall(spec.api, spec.name)
            if decided:
                moves.append(Move(spec, decided.state, decided.by, decided.why, decided.until_us))
            else:
                moves.append(Move(spec, CircuitState.CLOSED, self._actor, "nothing was decided"))
        self._run_all((*_move(move, only_if_missing=True), move.by) for move in moves)

    def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""
        return bool(self._run(_RETRY, *_retried(spec, earned_us)))

    def limits(self, specs: Sequence[LimitSpec]) -> list[LimitReading]:
        """See `Store.limits`. Nothing to be read is a question whether Redis is there."""
        if not specs:
            self._command(("PING",))
        readings: dict[LimitSpec, LimitReading] = {}
        for api in dict.fromkeys(spec.api for spec in specs):
            asked = [spec for spec in specs if spec.api == api]
            names = [name for spec in asked for name in (spec.gate, spec.key)]
            args = (len(asked), *[int(isinstance(spec, SeatSpec)) for spec in asked])
            now, *seen = self._run(_LIMITS, tuple(names), args)
            for spec, gate, kept in zip(asked, seen[::2], seen[1::2], strict=True):
                readings[spec] = _limit_reading(spec, gate, kept, now)
        return [readings[spec] for spec in specs]

    def adjust(self, spec: RateSpec, factor: float) -> None:
        """See `Store.adjust`."""
        self._run(_ADJUST, (spec.key,), (spec.start, factor))

    def restore(self, api: str, remembered: Remembered) -> None:
        """See `Store.restore`."""
        gates = [keys.gate(api, ban.sharer) for ban in remembered.bans]
        names = (keys.restored(api), *gates, *[spent.key for spent in remembered.budgets])
        bans = _flat((len(gates),), *((ban.until_us, ban.count) for ban in remembered.bans))
        budgets = ((spent.begin_us, spent.amount) for spent in remembered.budgets)
        self._run(_RESTORE, names, (*bans, *_flat((len(remembered.budgets),), *budgets)))

    def allot(self, budget: WindowSpec, begin_us: int, amount: int) -> None:
        """See `Store.allot`."""
        args = (*_window(budget, 0, self._about_us()), begin_us, amount)
        self._run(_ALLOT, (budget.key,), args)

    def repay(
        self, debts: Sequence[tuple[LimitSpec, int]], hold_us: int, gates: Sequence[Closed] = ()
    ) -> None:
        """See `Store.repay`."""
        for api in dict.fromkeys((*(spec.api for spec, _ in debts), *(closed.api for closed in gates))):
            owed = [(spec, debt) for spec, debt in debts if spec.api == api]
            shut = [closed for closed in gates if closed.api == api]
            rates = [(spec, debt) for spec, debt in owed if isinstance(spec, RateSpec)]
            windows = [spec for spec, _ in owed if isinstance(spec, WindowSpec)]
            in_flight = any(isinstance(spec, SeatSpec) for spec, _ in owed)
            names = (
                *(keys.since(api), *[spec.key for spec, _ in rates], *[spec.key for spec in windows]),
                *[keys.gate(api, closed.sharer) for closed in shut],
            )
            spent = ((spec.burst_us, spec.slack_us, _ttl_ms(spec.window_us), debt) for spec, debt in rates)
            args = _flat(
                (hold_us, 8 * _DAY_MS, int(in_flight)),
                _flat((len(rates),), *spent),
                _flat((len(windows),), *(_window(spec, 0, self._about_us()) for spec in windows)),
                _flat((len(shut),), *((each.for_us, each.banned_for_us, each.bans) for each in shut)),
            )
            self._run(_REPAY, names, args)

    def mark_fresh(self, apis: Iterable[str]) -> None:
        """See `Store.mark_fresh`."""
        for api in apis:
            self._command(("SET", keys.since(api), 1, "NX", "PX", 8 * _DAY_MS))

    @cached_property
    def asynchronous(self) -> "AsyncRedisStore":
        """The same store for asyncio programs."""
        from resilience.store.redis_async import AsyncRedisStore  # noqa: PLC0415 - others need no asyncio

        return AsyncRedisStore(self, self._url, self._timeout_s)

    def close(self) -> None:
        """Drop the connections; the next question opens one again."""
        while self._idle:
            self._idle.pop().disconnect()

    def _about_us(self) -> int:
        """The time by our own clock; it only has to tell yesterday from tomorrow."""
        return wall_clock_us() if self._now_us is None else self._now_us()

    def _admit_args(self, wire: _Wire, request: Request) -> _Words:
        flags = (request.ticket is not None) + 2 * request.live + 4 * request.ledger
        flags += 8 * (self._recall is not None)
        windows = wire.windows(request.weight, self._about_us()) if wire.route.windows else _NOTHING
        rates = wire.rates(request.weight)
        asked = request.id, request.patience_us, wire.since_ttl, flags
        return (*asked, *wire.policies, *wire.seats, *windows, *rates)

    def _settle_args(self, wire: _Wire, report: Report) -> _Words:
        grant = report.grant
        retry_after_us = -1 if report.retry_after_us is None else report.retry_after_us
        ended = grant.request.id, report.kind.value, grant.started_us, retry_after_us, report.latency_us
        sizes = wire.banned_sizes if report.kind is Kind.BANNED else wire.sizes
        return (
            *(*ended, *wire.policies, *_marks(wire.route, report), *sizes),
            *(*_paces(wire, report), *self._told(wire.route, report.told)),
        )

    def _told(self, route: Route, told: Sequence[Told]) -> _Words:
        if not told:
            return _NOTHING_TOLD
        rates, windows = _told_of(route, told)
        corrected = (
            (*_window(spec, 0, self._about_us()), spec.amount - math.floor(each.remaining))
            for spec, each in windows
        )
        used_up = ((used_up_in(spec, each), spec.slack_us, _ttl_ms(spec.window_us)) for spec, each in rates)
        return (*_flat((len(windows),), *corrected), *_flat((len(rates),), *used_up))

    def _wire(self, route: Route) -> _Wire:
        wire = self._wires.get(route)
        if wire is None:
            wire = self._wires[route] = _Wire(route)
        return wire

    def _run(self, script: _Script, names: _Words, args: _Words) -> Any:
        rest = self._rest(names, args)
        try:
            return self._command(script.by_sha + rest)
        except NoScriptError:
            return self._command(script.by_source + rest)

    def _run_all(self, calls: Iterable[tuple[Any, ...]]) -> list[Any]:
        """Run scripts in one message. A call is a script, its keys and arguments, and an actor if need be."""
        scripts = [(script, self._rest(*rest)) for script, *rest in calls]
        if not scripts:
            return []
        replies: list[Any] = self._heal(self._ask_all, [script.by_sha + rest for script, rest in scripts])
        for index, ((script, rest), reply) in enumerate(zip(scripts, replies, strict=True)):
            if isinstance(reply, NoScriptError):
                replies[index] = self._command(script.by_source + rest)
        return replies

    def _rest(self, names: _Words, args: _Words, actor: str | None = None) -> _Words:
        self._notice_fork()
        if self._now_us is None and actor is None:
            return (len(names), *names, *self._stamp, *args)
        now = "" if self._now_us is None else self._now_us()
        return (len(names), *names, now, actor or self._actor, *args)

    def _command(self, words: _Words) -> Any:
        return self._heal(self._ask, [words])

    def _heal(self, ask: Callable[[Any, list[bytes]], Any], several: Sequence[_Words]) -> Any:
        # hiredis' stub speaks of tuples of one.
        commands = [hiredis.pack_command(words) for words in several]  # type: ignore[arg-type]
        try:
            try:
                return ask(self._connection(), commands)
            except RedisTimeoutError:
                raise
            except RedisConnectionError:
                # Idle connections die with the server that held them; a new one tells whether it is back.
                self.close()
                return ask(self._pool.make_connection(), commands)
        except NoScriptError:
            raise
        except RedisError as error:
            raise StoreUnavailableError(f"Redis did not answer: {error}", cause=error) from error

    def _connection(self) -> Any:
        self._notice_fork()
        try:
            return self._idle.pop()
        except IndexError:
            return self._pool.make_connection()

    def _notice_fork(self) -> None:
        if self._pid != os.getpid():
            self._idle, self._pid = deque(), os.getpid()
            self._actor = self._named or this_process()
            self._stamp = ("", self._actor)

    def _ask(self, connection: Any, command: list[bytes]) -> Any:
        connection.send_packed_command(command)
        try:
            return connection.read_response()
        finally:
            self._idle.append(connection)

    def _ask_all(self, connection: Any, commands: list[bytes]) -> list[Any]:
        connection.send_packed_command([b"".join(commands)])
        try:
            return [_reply_of(connection) for _ in commands]
        finally:
            self._idle.append(connection)

    def _settled(self, report: Report, now: int, flat: list[Any], bans: list[int]) -> Settled:
        gates = report.grant.request.route.gates
        each = zip(bans[::3], bans[1::3], bans[2::3], strict=True)
        made = tuple(Ban(gates[index], until, count) for index, until, count in each)
        return Settled(_changes(self._actor, now, flat), made)

    def _answer(self, request: Request, reply: list[Any]) -> Answer:
        if reply[0] != b"lost":
            return _answer(request, reply, self._actor)
        self._restore(request.route.circuits)
        before = _changes(self._actor, *reply[1:])
        answer = self.admit(request)
        return replace(answer, changes=before + answer.changes)


def _reply_of(connection: Any) -> Any:
    """The next reply; an unknown script is one too, so that the others are read."""
    try:
        return connection.read_response()
    except NoScriptError as error:
        return error


def _policy(spec: CircuitSpec) -> tuple[int, str]:
    """The window's slices, and the rest as one string (circuit.lua)."""
    terms = (
        *(spec.failures, spec.rate, spec.min_calls, spec.open_us, spec.growth, spec.open_max_us),
        *(spec.probes, spec.successes, spec.lease_us, spec.step_us, spec.slow_rate),
        *(spec.throttles, int(spec.throttles_fail), int(spec.strict)),
    )
    return spec.window_us // SLICES, " ".join(map(str, terms))


def _gates(strikes: Sequence[tuple[int, int]]) -> _Words:
    return _flat((len(strikes),), *strikes)


def _bucket(route: Route, spec: RateSpec, weight: float) -> tuple[float, ...]:
    gate, cost = route.gates.index(spec.sharer) + 1, cost_of(spec, weight)
    return gate, cost, spec.burst_us, spec.slack_us, spec.share, _ttl_ms(spec.window_us), spec.start


def _window(spec: WindowSpec, cost: int, about_us: int) -> tuple[float, ...]:
    edges = spec.calendar(about_us) if spec.calendar else ()
    terms = (
        spec.amount,
        spec.length_us,
        spec.share,
        int(spec.saved),
        spec.block,
        cost,
        _ttl_ms(spec.length_us),
    )
    return *terms, len(edges), *edges


def _paces(wire: _Wire, report: Report) -> _Words:
    """What of the buckets learns from this report: the adaptive ones, and of a 429 all."""
    throttled = report.kind in {Kind.THROTTLED, Kind.BANNED}
    specs = wire.route.rates if throttled else wire.learning
    if not specs:
        return _NOTHING
    gates, told = wire.route.gates, {wire.route.rates[each.index]: each for each in _of_rates(wire, report)}
    terms = []
    for spec in specs:
        said = told.get(spec)
        wanted = (spread_of(spec, said), said.reset_us) if said and said.reset_us else (0, 0)
        gate = gates.index(spec.sharer) + 1
        terms.append(
            (spec.start, gate, int(spec.adaptive), spec.most, spec.cut, *wanted, _ttl_ms(spec.window_us))
        )
    return _flat((len(terms),), *terms)


def _of_rates(wire: _Wire, report: Report) -> Iterable[Told]:
    return (each for each in report.told if each.index < len(wire.route.rates))


def _told_of(
    route: Route, told: Sequence[Told]
) -> tuple[list[tuple[RateSpec, Told]], list[tuple[WindowSpec, Told]]]:
    """Of which limits the server told something."""
    count = len(route.rates)
    rates = [(route.rates[each.index], each) for each in told if each.index < count]
    return rates, [(route.windows[each.index - count], each) for each in told if each.index >= count]


def _circuit_keys(specs: Iterable[CircuitSpec]) -> list[str]:
    return [key for spec in specs for key in (spec.key, keys.permits(spec.api, spec.name))]


def _move_keys(spec: CircuitSpec) -> tuple[str, str, str]:
    return spec.key, keys.permits(spec.api, spec.name), keys.override(spec.api, spec.name)


def _move(move: Move, *, only_if_missing: bool = False) -> tuple[_Script, _Words, _Words]:
    told = (move.state.value, move.until_us, move.why, int(only_if_missing))
    names = (keys.events(move.spec.api), *_move_keys(move.spec))
    return _MOVE, names, _flat(_policy(move.spec), told)


def _ttl_ms(window_us: int) -> int:
    return max(_DAY_MS, math.ceil(window_us / 1000))


def _admit_keys(wire: _Wire, request: Request) -> _Words:
    ticket = keys.ticket(request.route.api, request.ticket or request.id)
    return (wire.events_key, ticket, *wire.admit_keys)


def _settle_keys(wire: _Wire, report: Report) -> _Words:
    match report.kind:
        case Kind.BANNED:
            names = wire.banned_keys
        case Kind.THROTTLED:
            names = wire.throttled_keys
        case _:
            names = wire.settle_keys
    if not report.told:
        return names
    rates, windows = _told_of(wire.route, report.told)
    return (*names, *[spec.key for spec, _ in windows], *[spec.key for spec, _ in rates])


def _marks(route: Route, report: Report) -> _Words:
    """Era, slowness and permit of each circuit (learn.lua)."""
    grant = report.grant
    return tuple(
        [
            16 * (era + 1) + _told_to(spec, report) + 2 * is_slow(spec, report) + permit
            for spec, era, permit in zip(route.circuits, grant.eras, grant.permits, strict=True)
        ]
    )


def _told_to(spec: CircuitSpec, report: Report) -> int:
    kind = report.kind_for(spec)
    return 0 if kind is report.kind else 4 if kind is Kind.FAILURE else 8


def _released(grant: Grant) -> tuple[_Words, _Words]:
    route = grant.request.route
    sets = [keys.permits(spec.api, spec.name) for spec in route.circuits]
    sets += [spec.key for spec in route.seats]
    windows, buckets = [spec.key for spec in route.windows], [spec.key for spec in route.rates]
    cost = math.ceil(grant.request.weight)
    counted = _flat((len(windows),), *((begin, cost) for begin in grant.periods))
    slots = [(*slot, cost) for slot, cost in zip(grant.slots, grant.costs, strict=True)]
    args = (grant.request.id, len(sets), *counted, *_flat((len(buckets),), *slots))
    return (*sets, *windows, *buckets), args


def _retried(spec: RetrySpec, earned_us: int) -> tuple[_Words, _Words]:
    return (spec.key,), (spec.unit_us, spec.room_us, earned_us)


def _answer(request: Request, reply: list[Any], actor: str) -> Answer:
    verdict, now, flat, *rest = reply
    changes = _changes(actor, now, flat) if flat else ()
    if verdict == b"go":
        held, slots, periods = rest
        return Grant(
            request,
            now,
            tuple(era // 2 for era in held),
            tuple(era % 2 == 1 for era in held),
            tuple(zip(slots[::3], slots[1::3], strict=True)),
            tuple(slots[2::3]),
            tuple(periods),
            changes,
        )
    if verdict == b"refuse":
        index, state, until_us, failures = rest
        return Denial(index, state.decode(), until_us, failures, changes)
    if verdict == b"restore":
        return Unrestored(changes)
    if verdict == b"write":
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


def _limit_reading(spec: LimitSpec, gate: list[int], kept: list[bytes], now: int) -> LimitReading:
    closed = Gate(gate[0], gate[1], banned_us=gate[2], violations=gate[3])
    if isinstance(spec, SeatSpec):
        return reading_of(spec, [int(float(end)) for end in kept], closed, now)
    found = {name.decode(): float(value) for name, value in zip(kept[::2], kept[1::2], strict=True)}
    if isinstance(spec, WindowSpec):
        window = Window(
            int(found.get("begin", 0)), 0, int(found.get("used", 0)), calls=int(found.get("calls", 0))
        )
        return reading_of(spec, window, closed, now)
    pace = Pace(
        found.get("factor", 1.0),
        found.get("cut", 0.0),
        int(found.get("cut_at", 0)),
        int(found.get("step", 0)),
        found.get("spread", 0.0),
        int(found.get("spread_end", 0)),
        int(found.get("violations", 0)),
        int(found.get("adjustments", 0)),
        found.get("least", 0.0),
        found.get("greatest", 0.0),
    )
    bucket = Bucket(int(found.get("booked", 0)), int(found.get("started", 0)), pace)
    bucket.gate_us = int(found.get("gate", 0))
    bucket.calls, bucket.waited_us = int(found.get("calls", 0)), int(found.get("waited", 0))
    return reading_of(spec, bucket, closed, now)


def _changes(actor: str, now: int, flat: list[Any]) -> tuple[Change, ...]:
    return tuple(
        Change(index, _STATES[old], _STATES[new], reason.decode(), now, actor)
        for index, old, new, reason in zip(flat[::4], flat[1::4], flat[2::4], flat[3::4], strict=True)
    )


def _reading(state: bytes, *rest: Any) -> Reading:
    seen: list[Any] = [value.decode() if isinstance(value, bytes) else value for value in rest]
    return Reading(_STATES.get(state, CircuitState.CLOSED), *seen)


def _event(id_: bytes, flat: list[bytes]) -> Event:
    told = {name.decode(): value.decode() for name, value in zip(flat[::2], flat[1::2], strict=True)}
    old, new = CircuitState(told["old"]), CircuitState(told["new"])
    return Event(id_.decode(), told["circuit"], old, new, told["reason"], int(told["at"]), told["actor"])
