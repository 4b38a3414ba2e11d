"""Circuits and limits as one decision: `admit` before a call, `settle` after it, and nothing else in between.

    verdict = guard.admit(Ask("binance", circuits=(klines,), limits=(per_ip,), weight=2))
    match verdict:
        case Go(lease):          call, then guard.settle(lease, CallResult.of(error, latency_s=...))
        case Wait(seconds):      come back after that; with a ticket the place in the queue is kept
        case Refuse():           raise verdict.error()

Everything may raise `StoreUnavailableError`: then nothing is known, and nothing was decided. Who has called
already goes on by `settle_quietly`: the call is made, whatever became of the store.
"""

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from operator import attrgetter
from typing import TYPE_CHECKING, Self

from resilience.errors import (
    BannedError,
    CircuitOpenError,
    ConfigurationError,
    PenstockError,
    RateLimitError,
    Scope,
    StoreUnavailableError,
)
from resilience.headers import LONGEST_WAIT_S, Quota, quota_from, wait_of
from resilience.policy import Lane
from resilience.store import (
    FOREVER_US,
    Answer,
    Change,
    CircuitSpec,
    CircuitState,
    Delay,
    Denial,
    Grant,
    Kind,
    Ledger,
    RateSpec,
    Reading,
    Report,
    Request,
    Route,
    SeatSpec,
    Settled,
    Store,
    Told,
    Unrestored,
    Unwritten,
    WindowSpec,
)

if TYPE_CHECKING:  # a breaker on its own works through a guard
    from resilience.breaker import CircuitBreaker
    from resilience.limiter import RateLimiter

__all__ = [
    "Ask",
    "CallResult",
    "CircuitState",
    "CircuitView",
    "Go",
    "Guard",
    "Kind",
    "Lease",
    "Refuse",
    "Transition",
    "Verdict",
    "Wait",
]

log = logging.getLogger(__name__)

_ROUTES_KEPT = 4096
# Looking a member up in its enum is slow in Python 3.11.
_LIVE = Lane.LIVE
_PACING = frozenset({Kind.THROTTLED, Kind.BANNED})
_SPEC = attrgetter("spec")
_WANTED = (
    Unrestored,
    Unwritten,
)  # what a store wants to be done first; a union would be made anew every time


@dataclass(frozen=True, slots=True)
class Ask:
    """One call that wants to start: the circuits and limits it has to pass, and its weight in the limits.

    A 429 holds back everybody who shares one of the limits; where there is no limit, those with this `gate`.
    `banned` names who is banned with it where no limit of the call is shared with them: its address, its
    account.
    """

    api: str
    circuits: tuple["CircuitBreaker", ...]
    limits: tuple["RateLimiter", ...]
    weight: float = 1.0
    lane: Lane = Lane.LIVE
    gate: str | None = "api"
    banned: tuple[str, ...] = ()


@dataclass(slots=True, unsafe_hash=True)
class Lease:
    """A call that may start. It goes back by `settle`, or by `release` where nothing was sent.

    Held by a process that died, its permits and seats come back by themselves when their time is over. It is
    not frozen, for one is made for every call and that takes longer than to fill it; nobody is to change one.
    """

    ask: Ask
    grant: Grant = field(repr=False)

    @property
    def id(self) -> str:
        """What the store knows the call by."""
        return self.grant.request.id

    @property
    def probe(self) -> bool:
        """Whether the call tries a half-open circuit."""
        return any(self.grant.permits)

    @property
    def started_at(self) -> datetime:
        """When the store admitted the call, on its clock."""
        return _moment(self.grant.started_us)


@dataclass(slots=True, unsafe_hash=True)
class Go:
    """The call may start now."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Wait:
    """The call may not start yet; `key` names what it waits for.

    `ticket` is a reserved place: asking again with it after `seconds` starts the call as a rule.
    Asking earlier returns the rest of the wait, asking much later may cost the place.
    """

    seconds: float
    ticket: str | None
    reason: str
    key: str


@dataclass(frozen=True, slots=True)
class Refuse:
    """The circuit is open. `retry_at` is when it will next let a probe through."""

    reason: str
    retry_at: datetime
    circuit: str
    failure_count: int

    def error(self) -> CircuitOpenError:
        """The refusal as an exception (also a `pybreaker.CircuitBreakerError`)."""
        return CircuitOpenError(
            f"circuit {self.circuit} is {self.reason} until {self.retry_at:%H:%M:%S} UTC",
            circuit=self.circuit,
            retry_at=self.retry_at,
            failure_count=self.failure_count,
            details={"circuit": self.circuit, "retry_at": self.retry_at},
        )


Verdict = Go | Wait | Refuse


@dataclass(frozen=True, slots=True)
class CallResult:
    """How a call ended. `retry_after_s` and the answer's `headers` are what the server said of its limits."""

    kind: Kind
    latency_s: float
    retry_after_s: float | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    error: str | None = None
    cause: BaseException | None = field(default=None, repr=False)
    scope: Scope = Scope.NONE

    @classmethod
    def of(
        cls, error: BaseException | None, *, latency_s: float, headers: Mapping[str, str] | None = None
    ) -> Self:
        """The result that follows from an error's class attributes; None is a success."""
        return cls(
            kind_of(error),
            latency_s,
            getattr(error, "retry_after_s", None),
            headers,
            None if error is None else type(error).__name__,
            error,
            error.scope if isinstance(error, PenstockError) else Scope.NONE,
        )


def kind_of(error: BaseException | None) -> Kind:
    """What an error says about the service. One that we do not know says nothing."""
    if error is None:
        return Kind.SUCCESS
    if isinstance(error, BannedError):
        return Kind.BANNED
    if isinstance(error, RateLimitError):
        return Kind.THROTTLED
    if isinstance(error, PenstockError) and error.trips and error.scope is Scope.SERVICE:
        return Kind.FAILURE
    return Kind.IGNORED


@dataclass(frozen=True, slots=True)
class Transition:
    """A circuit went from one state to another. Told once in the whole fleet, to whoever caused it.

    `actor` is that process, or who did it by hand.
    """

    circuit: str
    old: CircuitState
    new: CircuitState
    reason: str
    at: datetime
    actor: str


@dataclass(frozen=True, slots=True)
class CircuitView:
    """A circuit as it stands. `retry_at` is when it next changes by itself, if that is known.

    `reading` has everything else that the store knows of it.
    """

    state: CircuitState
    retry_at: datetime | None
    free_permits: int
    failure_count: int
    success_count: int = 0
    reading: Reading = field(default_factory=lambda: Reading(CircuitState.CLOSED), repr=False)


class _Ids:
    """What the store knows calls by: a text of this process alone, and a number. They cost no system call."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Be another process from now on."""
        self.new = map(f"{os.urandom(8).hex()}%06x".__mod__, count())


_ids = _Ids()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_ids.begin)


class Guard:
    """Asks the store, and tells the breakers' listeners what became of it. Threads and forks may share it.

    With a `ledger` the store is told what it has forgotten before anything is admitted, and a budget is spent
    only after it was written down; whatever the ledger raises, `admit` raises.
    """

    def __init__(self, store: Store, ledger: Ledger | None = None) -> None:
        self.store = store
        self.ledger = ledger
        self._routes: dict[tuple[object, ...], Route] = {}

    def admit(self, ask: Ask, *, ticket: str | None = None, patience_s: float | None = None) -> Verdict:
        """May this call start now? All or nothing: unless everything agrees, nothing is spent.

        A live call that only has to wait for a rate limit gets a ticket; give it back when asking again. No
        place is kept for one that would have to wait longer than its patience.
        """
        request = self._request(ask, ticket, patience_s)
        answer = self.store.admit(request)
        if isinstance(answer, Grant) and not answer.changes:  # as nearly always
            return Go(Lease(ask, answer))
        return self._verdict(ask, request, answer)

    def settle(self, lease: Lease, result: CallResult) -> tuple[Transition, ...]:
        """Report how the call ended, and give back what it held. Returns the transitions that this caused."""
        return self._heard(lease, result, self.store.settle(_report(lease, result)))

    def settle_quietly(self, lease: Lease, result: CallResult) -> tuple[Transition, ...]:
        """`settle`, and a warning where the store is away: permits and seats come back by themselves."""
        try:
            return self.settle(lease, result)
        except StoreUnavailableError as error:
            unheard(error)
            return ()

    def settle_and_admit(
        self, lease: Lease, result: CallResult, ask: Ask
    ) -> tuple[tuple[Transition, ...], Verdict]:
        """`settle` and the next `admit` in one round trip, for the next page of a call."""
        request = self._request(ask, None)
        settled, answer = self.store.settle_and_admit(_report(lease, result), request)
        told = self._heard(lease, result, settled)
        verdict = self._verdict(ask, request, answer)
        return told, verdict

    def report(self, ask: Ask, result: CallResult, *, after: Lease | None = None) -> None:
        """What is known of a call that holds nothing: `settle` for a lease that is `unasked`."""
        self.settle(self.unasked(ask, after=after), result)

    def unasked(self, ask: Ask, *, after: Lease | None = None) -> Lease:
        """The lease of a call that was made without asking: what is said of it counts as far as it may.

        `after` is the last call that is known to have started before it.
        """
        none = tuple(-1 for _ in ask.circuits)
        started_us = 0 if after is None else after.grant.started_us
        grant = Grant(self._request(ask, None), started_us, none, tuple(False for _ in none), (), ())
        return Lease(ask, grant)

    def release(self, lease: Lease) -> None:
        """Nothing was sent: give back permits and seats, and the slots where they are the newest."""
        self.store.release(lease.grant)

    def circuits(self, breakers: Sequence["CircuitBreaker"]) -> dict[str, CircuitView]:
        """How these circuits stand, by name; one never used, or lost with the store, reads closed."""
        readings = self.store.circuits([breaker.spec for breaker in breakers])
        return {
            breaker.circuit: view_of(reading) for breaker, reading in zip(breakers, readings, strict=True)
        }

    def _verdict(self, ask: Ask, request: Request, answer: Answer) -> Verdict:
        """Do what the store asks for first, and ask again until it decides."""
        self._tell(ask, answer.changes)
        while isinstance(answer, _WANTED):
            self._do(ask, answer)
            answer = self.store.admit(request)
            self._tell(ask, answer.changes)
        return _verdict(ask, answer)

    def _do(self, ask: Ask, wanted: Unrestored | Unwritten) -> None:
        assert self.ledger is not None
        if isinstance(wanted, Unrestored):
            self.store.restore(ask.api, self.ledger.remembered(ask.api))
        else:
            granted = self.ledger.allot(wanted.budget, wanted.begin_us, wanted.wanted)
            self.store.allot(wanted.budget, wanted.begin_us, granted)

    def _heard(self, lease: Lease, result: CallResult, settled: Settled) -> tuple[Transition, ...]:
        for breaker in lease.ask.circuits:
            breaker.notify_result(result.kind, result.cause)
        if not settled.changes and not settled.bans:
            return ()
        for ban in settled.bans:
            log.warning("%s: banned (%s) until %s", lease.ask.api, ban.sharer, _moment(ban.until_us))
            if self.ledger is not None:
                self.ledger.banned(lease.ask.api, ban)
        return self._tell(lease.ask, settled.changes)

    def _request(self, ask: Ask, ticket: str | None, patience_s: float | None = None) -> Request:
        specs = (
            ask.api,
            ask.gate,
            *map(_SPEC, ask.circuits),
            *map(_SPEC, ask.limits),
            *ask.banned,
        )
        route = self._routes.get(specs) or self._lay(ask, specs)
        if ask.weight != 1:
            _check_weight(route, ask.weight)
        return Request(
            route,
            next(_ids.new),
            ask.weight,
            ask.lane is _LIVE,
            ticket,
            FOREVER_US if patience_s is None else round(patience_s * 1e6),
            self.ledger is not None,
        )

    def _lay(self, ask: Ask, specs: tuple[object, ...]) -> Route:
        if len(self._routes) >= _ROUTES_KEPT:
            self._routes.clear()
        for spec in specs[2 : len(specs) - len(ask.banned)]:
            assert isinstance(spec, CircuitSpec | RateSpec | SeatSpec | WindowSpec)
            if spec.api != ask.api:
                raise ConfigurationError(f"{spec.name} belongs to {spec.api}, but {ask.api} asks for it")
        route = self._routes[specs] = Route(
            ask.api,
            tuple(spec for spec in specs if isinstance(spec, CircuitSpec)),
            tuple(spec for spec in specs if isinstance(spec, RateSpec)),
            tuple(spec for spec in specs if isinstance(spec, SeatSpec)),
            ask.gate,
            tuple(spec for spec in specs if isinstance(spec, WindowSpec)),
            ask.banned,
        )
        return route

    @staticmethod
    def _tell(ask: Ask, changes: tuple[Change, ...]) -> tuple[Transition, ...]:
        if not changes:
            return ()
        told = [(ask.circuits[change.index], change) for change in changes]
        transitions = [(breaker, transition_of(breaker.circuit, change)) for breaker, change in told]
        for breaker, transition in transitions:
            breaker.notify_transition(transition)
        return tuple(transition for _, transition in transitions)


def unheard(error: StoreUnavailableError) -> None:
    """Say that the store did not hear how a call went."""
    log.warning("how a call went was not heard: %s", error)


def _verdict(ask: Ask, answer: Answer) -> Verdict:
    if isinstance(answer, Grant):
        return Go(Lease(ask, answer))
    match answer:
        case Delay():
            return Wait(answer.wait_us / 1e6, answer.ticket, answer.reason, answer.key)
        case Unrestored() | Unwritten():  # pragma: no cover - answered before
            raise AssertionError(answer)
        case Denial():
            circuit = ask.circuits[answer.index].circuit
            return Refuse(answer.reason, _moment(answer.until_us), circuit, answer.failures)


def _report(lease: Lease, result: CallResult) -> Report:
    quotas = _quotas(lease.ask, result.headers) if result.headers else {}
    retry_after_s = result.retry_after_s
    if retry_after_s is None and quotas and result.kind in _PACING:
        retry_after_s = wait_of(quotas.values())
    return Report(
        lease.grant,
        result.kind,
        None if retry_after_s is None else _wait_us(retry_after_s),
        tuple(_told(quotas)) if quotas else (),
        round(result.latency_s * 1e6),
        result.scope,
    )


def _wait_us(seconds: float) -> int | None:
    """A wait that the server named, by which nobody may be stopped for ever."""
    if not math.isfinite(seconds):
        return None
    return round(min(max(seconds, 0.0), LONGEST_WAIT_S) * 1e6)


def _quotas(ask: Ask, headers: Mapping[str, str]) -> dict[int, Quota]:
    """What the headers say of each limit, by its place among the buckets and after them the windows."""
    buckets = [each.limit for each in ask.limits if isinstance(each.spec, RateSpec)]
    windows = [each.limit for each in ask.limits if isinstance(each.spec, WindowSpec)]
    said = [quota_from(headers, limit) for limit in (*buckets, *windows)]
    return {index: quota for index, quota in enumerate(said) if quota is not None}


def _told(quotas: Mapping[int, Quota]) -> Iterator[Told]:
    for index, quota in quotas.items():
        if quota.left is not None:
            yield Told(index, quota.left, round((quota.reset_s or 0.0) * 1e6))


def view_of(reading: Reading) -> CircuitView:
    """What the store says about a circuit, for people."""
    until = _moment(reading.until_us) if reading.until_us else None
    return CircuitView(reading.state, until, reading.free_permits, reading.failures, reading.good, reading)


def transition_of(circuit: str, change: Change) -> Transition:
    """A change as listeners hear it."""
    return Transition(circuit, change.old, change.new, change.reason, _moment(change.at_us), change.actor)


def _check_weight(route: Route, weight: float) -> None:
    if not 0 < weight < math.inf:
        raise ConfigurationError(f"a call of {route.api} has weight {weight:g}, but it has to be above 0")
    for spec in route.rates:
        if math.ceil(weight) * spec.unit_us > spec.burst_us:
            raise ConfigurationError(
                f"a call of weight {weight:g} does not fit limit {spec.name} of {spec.api}: "
                f"declare its weight_max (now {spec.burst_us / spec.unit_us:g} at once)"
            )
    for window in route.windows:
        if weight > window.amount:
            raise ConfigurationError(
                f"a call of weight {weight:g} never fits limit {window.name} of {window.api}"
            )


def _moment(us: int) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)
