"""The shared state behind one interface: what is asked of a store, and what it answers.

Times are integers of microseconds on the store's own clock, so that every store computes the same.
"""

import itertools
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from resilience.errors import Scope
from resilience.store import keys

if TYPE_CHECKING:
    from resilience.store.asynchronous import AsyncStore
    from resilience.store.wire import Wire

DAY_US = 86_400_000_000
FOREVER_US = 10_000 * DAY_US
LATE_US = (
    1_000_000  # a ticket this late, or this near to the end of the queue, is booked anew if there is no room
)
TICKET_KEPT_US = 60_000_000  # a ticket nobody redeemed is forgotten this long after its slot
LIVE_SEEN_US = 10_000_000  # the reserve counts this long after live work was last seen
PERMIT_WAIT_US = 2_000_000  # half-open without a free permit
SEAT_WAIT_US = 1_000_000  # every seat is taken
GATE_LEAST_US = 1_000_000  # a 429 that asks for no wait at all
BUDGET_KEPT_US = 35 * DAY_US  # how long a restored budget is kept if nobody asks; SQL knows it anyway
GATE_FIRST_US = 60_000_000  # a 429 that names no wait; doubles while they go on
GATE_MOST_US = 900_000_000
BAN_FIRST_US = 120_000_000  # a ban that names no end; doubles while one follows within a day of the other
BAN_MOST_US = 3 * DAY_US
QUIET_US = 300_000_000  # without a 429 for this long, a rate that was cut recovers
RECOVERY_US = 60_000_000  # … by a tenth of the limit, this often
LATENCY_US = 5_000_000  # slow and fast answers change a rate this often at most
SLOW_US = 2_000_000
FAST_US = 500_000
RENEW_US = 3_600_000_000  # the end of what is kept is set anew this often, and that much later
KEPT_FACTOR_US = 30 * DAY_US  # a rate set by hand outlasts a quiet limit
SLICES = 10  # the failure rate's window slides in this many steps
EVENTS_KEPT = 1000  # transitions of one API, more or less
FORCED_US = 30 * DAY_US  # how long an override without an end is kept


_SERVICE = Scope.SERVICE  # looking it up costs more than the comparison, in Python 3.11


class CircuitState(StrEnum):
    """What a circuit lets through: everything, nothing, or a few probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"
    FORCED_OPEN = "forced_open"
    DISABLED = "disabled"


class Kind(StrEnum):
    """What a call's end says about the service."""

    SUCCESS = "success"
    FAILURE = "failure"
    IGNORED = "ignored"
    THROTTLED = "throttled"
    BANNED = "banned"


def this_process() -> str:
    """Who acts, as transitions name it: host and pid."""
    return f"{socket.gethostname()}:{os.getpid()}"


@dataclass(frozen=True, eq=False)
class CircuitSpec:
    """A circuit as the store sees it: a `BreakerPolicy` in numbers; a rule or a time that is 0 is off."""

    api: str
    name: str
    failures: int
    rate: float
    window_us: int
    min_calls: int
    open_us: int
    growth: float
    open_max_us: int
    probes: int
    successes: int
    lease_us: int
    step_us: int
    slow_rate: float = 0.0
    slow_us: int = 0
    throttles: int = 0
    throttles_fail: bool = False
    strict: bool = False
    scope: Scope = Scope.SERVICE  # errors that speak of something else say nothing to it

    @cached_property
    def key(self) -> str:
        """Where the circuit is kept."""
        return keys.circuit(self.api, self.name)


@dataclass(frozen=True, eq=False)
class RateSpec:
    """A rate limit as the store sees it: a unit of weight takes `unit_us`; `burst_us` may go at once.

    Calls that hold a ticket and come late by no more than `slack_us` start as if they were on time. Weights
    are whole units, so that a limit of 100 leaves room for everything below 101: that is the slack.
    """

    api: str
    name: str
    sharer: str
    unit_us: int
    burst_us: int
    slack_us: int
    share: float
    window_us: int
    adaptive: bool = False
    start: float = 1.0  # the rate is the bucket's own divided by a stretch: where it begins,
    most: float = 1.0  # … and how slow it may get
    stops: bool = False  # while the store is away, instead of sharing
    strike_us: int = GATE_FIRST_US
    strike_max_us: int = GATE_MOST_US
    cut: float = 2.0  # by how much it gets slower at a 429 that names no wait

    @cached_property
    def key(self) -> str:
        """Where the bucket is kept."""
        return keys.bucket(self.api, self.name, self.sharer)

    @cached_property
    def gate(self) -> str:
        """Where the sharer's gate is kept."""
        return keys.gate(self.api, self.sharer)


@dataclass(frozen=True, eq=False)
class SeatSpec:
    """A limit of calls in flight: `seats` of them, each lent for `lease_us`."""

    api: str
    name: str
    sharer: str
    seats: int
    lease_us: int
    stops: bool = False
    strike_us: int = GATE_FIRST_US
    strike_max_us: int = GATE_MOST_US

    @cached_property
    def key(self) -> str:
        """Where the seats are kept."""
        return keys.seats(self.api, self.name, self.sharer)

    @cached_property
    def gate(self) -> str:
        """Where the sharer's gate is kept."""
        return keys.gate(self.api, self.sharer)


@dataclass(frozen=True, eq=False)
class WindowSpec:
    """A limit per window of the clock or calendar: `amount`, whole at once, from each edge to the next.

    `calendar` gives the edges around a time, at least three and the time between the first and the last;
    without it the windows are `length_us` each, counted from 1970. `saved` is a budget, whose spending is
    written down in blocks of `block` before it happens, where there is somewhere to write.
    """

    api: str
    name: str
    sharer: str
    amount: int
    length_us: int
    share: float
    saved: bool = False
    calendar: Callable[[int], tuple[int, ...]] | None = None
    stops: bool = False
    strike_us: int = GATE_FIRST_US
    strike_max_us: int = GATE_MOST_US

    @cached_property
    def key(self) -> str:
        """Where the count is kept."""
        return keys.window(self.api, self.name, self.sharer)

    @cached_property
    def gate(self) -> str:
        """Where the sharer's gate is kept."""
        return keys.gate(self.api, self.sharer)

    @cached_property
    def block(self) -> int:
        """How much of a budget is written down at once."""
        return max(1, self.amount // 100)

    def bounds(self, now_us: int, about_us: int) -> tuple[int, int]:
        """Begin and end of the window that holds `now_us`. The edges are asked for at `about_us`."""
        edges = self.calendar(about_us) if self.calendar else ()
        for begin, end in itertools.pairwise(edges):
            if begin <= now_us < end:
                return begin, end
        begin = now_us - now_us % self.length_us
        return begin, begin + self.length_us


LimitSpec = RateSpec | SeatSpec | WindowSpec


@dataclass(frozen=True, eq=False)
class RetrySpec:
    """A budget of retries: one is earned in `unit_us`, and `room_us` of them are saved at most."""

    api: str
    name: str
    unit_us: int
    room_us: int

    @cached_property
    def key(self) -> str:
        """Where the budget is kept."""
        return keys.retries(self.api, self.name)


@dataclass(frozen=True, eq=False)
class Route:
    """Everything that one kind of call has to pass. `banned` are sharers whom only a ban concerns here."""

    api: str
    circuits: tuple[CircuitSpec, ...]
    rates: tuple[RateSpec, ...]
    seats: tuple[SeatSpec, ...]
    gate: str | None = "api"
    windows: tuple[WindowSpec, ...] = ()
    banned: tuple[str, ...] = ()

    @cached_property
    def heard(self) -> int:
        """How many of the gates a 429 closes: the sharers' of limits; where there is none, the route's
        own.
        """
        return len(self._sharers)

    @cached_property
    def _sharers(self) -> tuple[str, ...]:
        limits: tuple[LimitSpec, ...] = (*self.rates, *self.seats, *self.windows)
        return tuple(dict.fromkeys(spec.sharer for spec in limits)) or ((self.gate,) if self.gate else ())

    @cached_property
    def gates(self) -> tuple[str, ...]:
        """Whom a 429 silences, and after them whom only a ban does."""
        return tuple(dict.fromkeys((*self._sharers, *self.banned)))

    @cached_property
    def strikes(self) -> tuple[tuple[int, int], ...]:
        """For how long a 429 that names no wait closes each gate at first, and at most."""
        limits: tuple[LimitSpec, ...] = (*self.rates, *self.seats, *self.windows)
        found = [[spec for spec in limits if spec.sharer == sharer] for sharer in self.gates]
        return tuple(
            (
                max((spec.strike_us for spec in specs), default=GATE_FIRST_US),
                max((spec.strike_max_us for spec in specs), default=GATE_MOST_US),
            )
            for specs in found
        )

    @cached_property
    def is_adaptive(self) -> bool:
        """Whether one of its rates learns from every call."""
        return any(spec.adaptive for spec in self.rates)

    @cached_property
    def gate_keys(self) -> tuple[str, ...]:
        """Where these gates are kept."""
        return tuple(keys.gate(self.api, sharer) for sharer in self.gates)

    @cached_property
    def wire(self) -> "Wire":
        """How calls of this route are asked of Redis."""
        from resilience.store.wire import Wire  # noqa: PLC0415 - what is kept in memory needs none

        return Wire(self)


@dataclass(slots=True)
class Request:
    """May one call start? `id` is new for each request; `ticket` is what an earlier answer gave.

    No place is reserved for a call that has to wait longer than `patience_us`. With `ledger` the store first
    asks to be told what it has forgotten, and spends of a budget only what is written down.

    One is made for every call, as are a grant and a report: to freeze it takes longer than to fill it.
    """

    route: Route
    id: str
    weight: float
    live: bool
    ticket: str | None = None
    patience_us: int = FOREVER_US
    ledger: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """The circuit at `index` of the route went from one state to another."""

    index: int
    old: CircuitState
    new: CircuitState
    reason: str
    at_us: int
    actor: str


@dataclass(slots=True)
class Grant:
    """It may. `eras` and `permits` run along the route's circuits, `slots` and `costs` along its rates.

    `periods` says when each of the route's windows began. A slot is what the bucket showed as started and as
    booked; a place that was booked before shows 0.
    """

    request: Request
    started_us: int
    eras: tuple[int, ...]
    permits: tuple[bool, ...]
    slots: tuple[tuple[int, int], ...]
    costs: tuple[int, ...]
    periods: tuple[int, ...] = ()
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Delay:
    """Not yet. With a ticket the place in the queue is kept."""

    wait_us: int
    ticket: str | None
    reason: str
    key: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Denial:
    """No: the circuit at `index` of the route is open until then."""

    index: int
    reason: str
    until_us: int
    failures: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Unrestored:
    """The store is empty: first `restore` what the ledger remembers of this API, then ask again."""

    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class Unwritten:
    """A budget's block is used up: first write down `wanted` more, `allot` it, then ask again."""

    budget: WindowSpec
    begin_us: int
    wanted: int
    changes: tuple[Change, ...] = ()


Answer = Grant | Delay | Denial | Unrestored | Unwritten


@dataclass(frozen=True, slots=True)
class Ban:
    """A sharer whom the server has banned until then; the `count`-th time in a row."""

    sharer: str
    until_us: int
    count: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What was written down of a budget in the period that began then."""

    key: str
    begin_us: int
    amount: int


@dataclass(frozen=True, slots=True)
class Remembered:
    """What outlives a store, of one API."""

    bans: tuple[Ban, ...] = ()
    budgets: tuple[Spent, ...] = ()


@dataclass(frozen=True, slots=True)
class Closed:
    """A gate that was closed elsewhere, and for how long yet; of that a ban, the how many-th in a row."""

    api: str
    sharer: str
    for_us: int
    banned_for_us: int = 0
    bans: int = 0


@dataclass(frozen=True, slots=True)
class Settled:
    """What a call's end has changed: circuits, and who is banned since."""

    changes: tuple[Change, ...] = ()
    bans: tuple[Ban, ...] = ()


@dataclass(frozen=True, slots=True)
class Told:
    """What the server said of the limit at `index` of the route's rates and after them its windows."""

    index: int
    remaining: float
    reset_us: int = 0


@dataclass(slots=True)
class Report:
    """How a granted call ended (a latency of 0 is not known), what the server said of its limits, and what
    its error speaks of.

    A grant whose eras are -1 was never asked for: the call counts for the circuits as they stand, and as a
    probe where a permit is free.
    """

    grant: Grant
    kind: Kind
    retry_after_us: int | None = None
    told: tuple[Told, ...] = ()
    latency_us: int = 0
    scope: Scope = Scope.NONE

    def kind_for(self, circuit: CircuitSpec) -> Kind:
        """How the call ended for this circuit: that of a symbol or account counts what speaks of it."""
        if circuit.scope is _SERVICE or self.kind is Kind.SUCCESS:
            return self.kind
        return Kind.FAILURE if self.scope is circuit.scope else Kind.IGNORED


@dataclass(frozen=True, slots=True)
class Reading:
    """A circuit as it stands; `until_us` is 0 where no end is known, and so is a time that never was.

    `good` and `bad` are the probes since it is half-open; `calls`, `failed` and `slow` those of the window.
    What begins with `total` or `last` is counted since the circuit is known. `now_us` is when it stood so.
    """

    state: CircuitState
    until_us: int = 0
    free_permits: int = 0
    failures: int = 0
    good: int = 0
    bad: int = 0
    open_us: int = 0
    calls: int = 0
    failed: int = 0
    slow: int = 0
    total_successes: int = 0
    total_failures: int = 0
    total_opens: int = 0
    total_recovered: int = 0
    total_relapsed: int = 0
    total_open_us: int = 0
    last_open_us: int = 0
    last_failure_us: int = 0
    last_change_us: int = 0
    forced_by: str = ""
    forced_why: str = ""
    forced_since_us: int = 0
    now_us: int = 0


@dataclass(frozen=True, slots=True)
class Override:
    """What somebody decided a circuit has to be, `until_us` or (0) until it is lifted."""

    state: CircuitState
    by: str
    why: str
    until_us: int = 0


# What was decided about a circuit, by its API and name. A store asks when it finds nothing about the circuit.
Recall = Callable[[str, str], Override | None]


@dataclass(frozen=True, slots=True)
class Move:
    """Put a circuit into a state by hand."""

    spec: CircuitSpec
    state: CircuitState
    by: str
    why: str
    until_us: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A transition as the store keeps it; a later one has a larger `id`."""

    id: str
    circuit: str
    old: CircuitState
    new: CircuitState
    reason: str
    at_us: int
    actor: str


@dataclass(frozen=True, slots=True)
class LimitReading:
    """A limit as it stands. What does not apply to its kind is 0.

    `left` is what may start now (of a bucket its burst); `waiting` is weight with a reserved place; `stretch`
    is by how much a bucket is slower than at its best, of that `factor` by hand; `used` counts seats or a
    window's spending, which ends at `end_us`. Since its statistics began: calls (except of seats),
    µs that reserved places waited, 429s (of a bucket its own, else of all who share the gate), changes of the
    rate, and the least and the greatest stretch. Its gate: until when, and whether that is a ban.
    """

    left: float = 0.0
    waiting: float = 0.0
    stretch: float = 1.0
    factor: float = 1.0
    backoff_until_us: int = 0
    used: int = 0
    end_us: int = 0
    calls: int = 0
    waited_us: int = 0
    violations: int = 0
    adjustments: int = 0
    least: float = 1.0
    greatest: float = 1.0
    gate_until_us: int = 0
    banned: bool = False


class Store(Protocol):
    """Decides atomically, on one clock. Everything may raise `StoreUnavailableError`."""

    def admit(self, request: Request) -> Answer:
        """Grant all of the route or spend nothing."""

    def settle(self, report: Report) -> Settled:
        """Learn from a call's end and give back what it held."""

    def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """Both at once, in this order."""

    def release(self, grant: Grant) -> None:
        """Nothing was sent: give back what the grant holds, and its slots where they are the newest."""

    def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """How the circuits stand; one never used, or lost, reads closed."""

    def move(self, moves: Sequence[Move]) -> list[Change | None]:
        """Put circuits into states by hand; None for each that was in it already."""

    def events(self, api: str, after: str = "0-0") -> list[Event]:
        """The transitions of an API's circuits after the event of this id, oldest first.

        About a thousand are kept, and none longer than a day after the last.
        """

    def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """Add what first calls have earned, and take a retry out of the budget if it holds one."""

    def limits(self, specs: Sequence[LimitSpec]) -> list[LimitReading]:
        """How the limits stand; one never used, or lost, reads unused."""

    def adjust(self, spec: RateSpec, factor: float) -> None:
        """Run a bucket at this share of its rate from now on; 1 is the way back."""

    def restore(self, api: str, remembered: Remembered) -> None:
        """Tell an empty store what it forgot. What it knows better stays."""

    def allot(self, budget: WindowSpec, begin_us: int, amount: int) -> None:
        """So much more of the period that began then is written down; 0: there is no more."""

    @property
    def asynchronous(self) -> "AsyncStore":
        """The same store for asyncio programs."""

    def repay(
        self, debts: Sequence[tuple[LimitSpec, int]], hold_us: int, gates: Sequence[Closed] = ()
    ) -> None:
        """Tell a store that was away what was spent elsewhere: of buckets in µs of theirs, else that it was.

        Buckets start empty after `hold_us`, windows count as used up, calls in flight get one lease to end.
        `gates` were closed meanwhile; of two ends the later one holds.
        """

    def mark_fresh(self, apis: Iterable[str]) -> None:
        """Say that nobody was calling these APIs until now.

        A store that finds nothing cannot tell a first start from a loss, and after a loss the server still
        remembers the calls of the last window: buckets start empty, and calls in flight get one lease to end.
        Whoever knows that no worker was alive (a launcher with a new Redis) says so before the first call.
        """


class Ledger(Protocol):
    """What outlives a store: a database that says what an empty store has forgotten."""

    def remembered(self, api: str) -> Remembered:
        """Everything of this API that still holds."""

    def allot(self, budget: WindowSpec, begin_us: int, wanted: int) -> int:
        """Write down that so much more of a budget will be spent; returns how much of it there still was."""

    def banned(self, api: str, ban: Ban) -> None:
        """Write down a ban."""
