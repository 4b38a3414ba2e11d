"""The circuit of the memory store: what it counts, and when it turns from one state to another."""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from resilience.store import (
    EVENTS_KEPT,
    GATE_LEAST_US,
    PERMIT_WAIT_US,
    SLICES,
    Change,
    CircuitSpec,
    CircuitState,
    Delay,
    Denial,
    Event,
    Kind,
    Move,
    Reading,
    Recall,
    Report,
    Request,
)

_BLOCKING = {CircuitState.OPEN, CircuitState.FORCED_OPEN}
_FORCED = {CircuitState.FORCED_OPEN, CircuitState.DISABLED}
# Looking a member up in its enum costs as much as the rest of the line, in Python 3.11.
_CLOSED, _HALF_OPEN = CircuitState.CLOSED, CircuitState.HALF_OPEN
_SUCCESS, _FAILURE, _THROTTLED = Kind.SUCCESS, Kind.FAILURE, Kind.THROTTLED
_TELLING = {Kind.SUCCESS, _FAILURE}


@dataclass(slots=True)
class Figures:
    """What a circuit counts for people; nothing is decided by it."""

    successes: int = 0
    failures: int = 0
    opens: int = 0
    recovered: int = 0
    relapsed: int = 0
    open_us: int = 0
    opened_us: int = 0
    failed_us: int = 0
    changed_us: int = 0


@dataclass(slots=True)
class Circuit:
    """An era is the time between two transitions: what a call of an earlier era says comes too late."""

    state: CircuitState = _CLOSED
    known: bool = False
    era: int = 0
    failures: int = 0
    until_us: int = 0
    open_us: int = 0
    closed_us: int = 0
    good: int = 0
    bad: int = 0
    throttles: int = 0
    quiet_us: int = 0
    slices: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)
    permits: dict[str, int] = field(default_factory=dict)
    figures: Figures = field(default_factory=Figures)
    forced: tuple[str, str, int] = ("", "", 0)

    def turn(self, state: CircuitState, until_us: int, reason: str, turning: "Turning") -> None:
        now, figures = turning.now, self.figures
        turning.tell(self.state, state, reason)
        figures.open_us += self.open_time(now)
        if state is not self.state and state in _BLOCKING:
            figures.opens += 1
            figures.opened_us = now
        elif state is _CLOSED:
            self.slices.clear()
        figures.changed_us = now
        self.state, self.era, self.until_us, self.known = state, self.era + 1, until_us, True
        self.good = self.bad = self.throttles = 0
        self.permits.clear()

    def wake(self, turning: "Turning") -> None:
        """Nobody watches the clock: who asks first after the time is over moves the circuit on."""
        if self.state is CircuitState.OPEN:
            self.turn(_HALF_OPEN, 0, "open time over", turning)
            return
        self.failures = self.open_us = self.closed_us = 0
        self.turn(_CLOSED, 0, "override over", turning)

    def is_over(self, now: int) -> bool:
        return 0 < self.until_us <= now

    def open_time(self, now: int) -> int:
        """How long it has been open, if it is; its time may have been over before anybody asked."""
        if self.state not in _BLOCKING:
            return 0
        return max(0, min(self.until_us or now, now) - self.figures.changed_us)

    def free_permits(self, spec: CircuitSpec, now: int) -> int:
        self.permits = {id_: end for id_, end in self.permits.items() if end > now}
        return max(0, spec.probes - len(self.permits) - self.good - self.bad)

    def slowdown(self, spec: CircuitSpec, now: int) -> int:
        """Just closed, a service gets 25 %, then 50 % of the limit: a call costs 4 times, twice as much."""
        if not self.closed_us:
            return 1
        since_us = now - self.closed_us
        return 4 if since_us < spec.step_us else 2 if since_us < 2 * spec.step_us else 1

    def is_plain(self, spec: CircuitSpec, report: Report, index: int) -> bool:
        """Whether a success of this report is only counted, as most are."""
        grant = report.grant
        return (
            self.state is _CLOSED
            and self.era == grant.eras[index]
            and not grant.permits[index]
            and not is_slow(spec, report)
        )

    def learn(self, spec: CircuitSpec, call: "Call", turning: "Turning") -> None:
        """A call of an earlier era, or one whose permit has run out, is counted and says nothing else."""
        current = self._is_current(spec, call, turning.now)
        if call.kind is _THROTTLED and not current:
            return
        failed = self._has_failed(spec, call, turning.now)
        if failed is None:
            return
        if not current:
            self._add(failed=failed) if self.known else None
            return
        if failed:
            self.failures += 1
        elif self.state is not _HALF_OPEN:
            self.failures = 0
        self.count(spec, turning.now, failed=failed, slow=call.slow)
        if self.state is _HALF_OPEN:
            self._learn_from_probe(spec, call, turning, bad=failed or call.slow)
        elif self.state is _CLOSED:
            self._learn_from_call(spec, call, turning, failed=failed)

    def window(self, spec: CircuitSpec, now: int) -> tuple[int, int, int]:
        """Calls, failures and slow calls of the window."""
        newest = now // (spec.window_us // SLICES)
        recent = [slice_ for slice_ in self.slices.values() if slice_[0] > newest - SLICES]
        calls, failures, slow = (sum(slice_[part] for slice_ in recent) for part in (1, 2, 3))
        return calls, failures, slow

    def _is_current(self, spec: CircuitSpec, call: "Call", now: int) -> bool:
        if call.permit:
            return self.permits.pop(call.id, 0) > now and call.era == self.era
        if call.era >= 0:
            return call.era == self.era
        return self.state is not _HALF_OPEN or self.free_permits(spec, now) > 0

    def _has_failed(self, spec: CircuitSpec, call: "Call", now: int) -> bool | None:
        """Whether the call failed; None where it says nothing about the service."""
        if call.kind in _TELLING:
            return call.kind is _FAILURE
        if call.kind is not _THROTTLED:
            return None
        named = call.retry_after_us is not None and not spec.throttles_fail
        return True if not named or self._throttled_for_long(spec, call, now) else None

    def _throttled_for_long(self, spec: CircuitSpec, call: "Call", now: int) -> bool:
        """A 429 that names a wait is the limiter's business, unless they go on after the wait was over."""
        if not spec.throttles or call.started_us < self.quiet_us:
            return False
        self.throttles += 1
        self.quiet_us = now + max(call.retry_after_us or 0, GATE_LEAST_US)
        return self.throttles >= spec.throttles

    def _add(self, *, failed: bool) -> None:
        self.figures.failures += failed
        self.figures.successes += not failed

    def count(self, spec: CircuitSpec, now: int, *, failed: bool, slow: bool) -> None:
        """Count a call; slices are reused in a ring."""
        self._add(failed=failed)
        if failed:
            self.figures.failed_us = now
        else:
            self.throttles = 0
        tick = now // (spec.window_us // SLICES)
        kept, calls, failures, slows = self.slices.get(tick % SLICES, (tick, 0, 0, 0))
        if kept != tick:
            calls = failures = slows = 0
        self.slices[tick % SLICES] = (tick, calls + 1, failures + failed, slows + slow)

    def _open(self, spec: CircuitSpec, reason: str, call: "Call", turning: "Turning") -> None:
        """Longer than the last time, unless it had closed for good since; a server's longer wait wins."""
        recovering = self.state is _HALF_OPEN or self.slowdown(spec, turning.now) > 1
        grown = math.floor(self.open_us * spec.growth) if recovering and self.open_us else spec.open_us
        self.open_us = min(grown, spec.open_max_us)
        until_us = turning.now + max(self.open_us, call.retry_after_us or 0)
        self.turn(CircuitState.OPEN, until_us, reason, turning)

    def _learn_from_probe(self, spec: CircuitSpec, call: "Call", turning: "Turning", *, bad: bool) -> None:
        self.bad += bad
        self.good += not bad
        if bad and (spec.strict or spec.probes - self.bad < spec.successes):
            self.figures.relapsed += 1
            self._open(spec, "probes failed", call, turning)
        elif self.good >= spec.successes:
            self.figures.recovered += 1
            self.failures, self.closed_us = 0, turning.now
            self.turn(_CLOSED, 0, "probes succeeded", turning)

    def _learn_from_call(self, spec: CircuitSpec, call: "Call", turning: "Turning", *, failed: bool) -> None:
        if not (failed or call.slow):
            return
        calls, failures, slow = self.window(spec, turning.now)
        if failed and spec.failures and self.failures >= spec.failures:
            self._open(spec, "consecutive failures", call, turning)
        elif calls < spec.min_calls:
            return
        elif failed and spec.rate and failures >= spec.rate * calls:
            self._open(spec, "failure rate", call, turning)
        elif call.slow and spec.slow_rate and slow >= spec.slow_rate * calls:
            self._open(spec, "slow calls", call, turning)


class Call(NamedTuple):
    """What one circuit is told of a call's end."""

    id: str
    kind: Kind
    started_us: int
    era: int
    permit: bool
    slow: bool
    retry_after_us: int | None

    @classmethod
    def of(cls, report: Report, index: int, spec: CircuitSpec) -> Self:
        grant = report.grant
        return cls(
            grant.request.id,
            report.kind_for(spec),
            grant.started_us,
            grant.eras[index],
            grant.permits[index],
            is_slow(spec, report),
            report.retry_after_us,
        )


def is_slow(spec: CircuitSpec, report: Report) -> bool:
    """Whether a call took longer than the circuit's policy has it."""
    return 0 < spec.slow_us < report.latency_us


@dataclass(slots=True)
class Turning:
    """Where and when circuits turn from one state to another, and what became of it."""

    now: int
    actor: str
    log: "Log"
    spec: CircuitSpec | None = None
    index: int = 0
    changes: list[Change] = field(default_factory=list)

    def at(self, index: int, spec: CircuitSpec) -> Self:
        self.index, self.spec = index, spec
        return self

    def tell(self, old: CircuitState, new: CircuitState, reason: str) -> None:
        assert self.spec
        self.changes.append(Change(self.index, old, new, reason, self.now, self.actor))
        if old is not new:
            self.log.add(self.spec, self.changes[-1])


class Log:
    """The newest transitions of each API."""

    def __init__(self) -> None:
        self._count = 0
        self._events: dict[str, deque[Event]] = {}

    def add(self, spec: CircuitSpec, change: Change) -> None:
        self._count += 1
        event = Event(
            f"0-{self._count}", spec.name, change.old, change.new, change.reason, change.at_us, change.actor
        )
        self._events.setdefault(spec.api, deque(maxlen=EVENTS_KEPT)).append(event)

    def after(self, api: str, id_: str) -> list[Event]:
        last = int(id_.rpartition("-")[2])
        return [event for event in self._events.get(api, ()) if int(event.id[2:]) > last]


class CircuitTable:
    """All circuits of a memory store, by their keys."""

    def __init__(self, actor: str, recall: Recall | None) -> None:
        self.log = Log()
        self._actor, self._recall = actor, recall
        self._circuits: dict[str, Circuit] = {}

    def of(self, spec: CircuitSpec) -> Circuit:
        return self._circuits.get(spec.key) or self._circuits.setdefault(spec.key, Circuit())

    def wake(self, specs: Sequence[CircuitSpec], now: int) -> tuple[Change, ...]:
        turning = None
        for index, spec in enumerate(specs):
            circuit = self._recalled(spec, now)
            if circuit.is_over(now):
                turning = turning or Turning(now, self._actor, self.log)
                circuit.wake(turning.at(index, spec))
        return tuple(turning.changes) if turning else ()

    def refusal(self, request: Request, now: int) -> Denial | Delay | None:
        """Why the circuits do not let this call start, if they do not."""
        specs = request.route.circuits
        circuits = [self.of(spec) for spec in specs]
        for circuit in circuits:
            if circuit.state is not _CLOSED:
                break
        else:
            return None
        for index, circuit in enumerate(circuits):
            if circuit.state in _BLOCKING:
                until = circuit.until_us or now + specs[index].open_us
                return Denial(index, circuit.state.value, until, circuit.failures)
        for circuit, spec in zip(circuits, specs, strict=True):
            if circuit.state is _HALF_OPEN and not circuit.free_permits(spec, now):
                return Delay(PERMIT_WAIT_US, request.ticket, "half_open", spec.name)
        return None

    def slowdown(self, specs: Sequence[CircuitSpec], now: int) -> int:
        slowest = 1
        for spec in specs:
            circuit = self.of(spec)
            if circuit.closed_us:
                slowest = max(slowest, circuit.slowdown(spec, now))
        return slowest

    def lend(
        self, specs: Sequence[CircuitSpec], id_: str, now: int
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Start a call: the era of each circuit, and whether the call holds a permit of it."""
        circuits = [self.of(spec) for spec in specs]
        permits = tuple(circuit.state is _HALF_OPEN for circuit in circuits)
        for circuit, spec, permit in zip(circuits, specs, permits, strict=True):
            if permit:
                circuit.permits[id_] = now + spec.lease_us
        return tuple(circuit.era for circuit in circuits), permits

    def take_back(self, specs: Sequence[CircuitSpec], id_: str) -> None:
        for spec in specs:
            self.of(spec).permits.pop(id_, None)

    def learn(self, report: Report, now: int) -> tuple[Change, ...]:
        turning, grant = None, report.grant
        for index, spec in enumerate(grant.request.route.circuits):
            circuit = self.of(spec)
            if report.kind is _SUCCESS and circuit.is_plain(spec, report, index):
                circuit.failures = 0
                circuit.count(spec, now, failed=False, slow=False)
                continue
            turning = turning or Turning(now, self._actor, self.log)
            circuit.learn(spec, Call.of(report, index, spec), turning.at(index, spec))
        return tuple(turning.changes) if turning else ()

    def read(self, spec: CircuitSpec, now: int) -> Reading:
        """Nobody watches the clock: a state whose time is over has changed when it was over."""
        circuit = self._recalled(spec, now)
        figures, over = circuit.figures, circuit.is_over(now)
        totals = (
            *(figures.successes, figures.failures, figures.opens, figures.recovered, figures.relapsed),
            *(figures.open_us + circuit.open_time(now), figures.opened_us, figures.failed_us),
            circuit.until_us if over else figures.changed_us,
        )
        forced = circuit.forced if circuit.state in _FORCED and not over else ("", "", 0)
        standing = self._standing(circuit, spec, now)
        seen: list[Any] = [*standing, *circuit.window(spec, now), *totals, *forced, now]
        return Reading(*seen)

    @staticmethod
    def _standing(circuit: Circuit, spec: CircuitSpec, now: int) -> tuple[Any, ...]:
        if not circuit.known:
            return _CLOSED, 0, 0, circuit.failures, 0, 0, 0
        if not circuit.is_over(now):
            free = circuit.free_permits(spec, now) if circuit.state is _HALF_OPEN else 0
            probed = circuit.good, circuit.bad
            return circuit.state, circuit.until_us, free, circuit.failures, *probed, circuit.open_us
        if circuit.state is CircuitState.OPEN:
            return _HALF_OPEN, 0, spec.probes, circuit.failures, 0, 0, circuit.open_us
        return _CLOSED, 0, 0, 0, 0, 0, 0

    def move(self, move: Move, now: int) -> Change | None:
        circuit, spec, until_us = self.of(move.spec), move.spec, move.until_us
        if move.state is CircuitState.OPEN:
            circuit.open_us = spec.open_us
            until_us = until_us or now + spec.open_us
        elif move.state is _CLOSED:
            circuit.failures = circuit.open_us = circuit.closed_us = 0
        turning = Turning(now, move.by, self.log).at(0, spec)
        circuit.turn(move.state, until_us, move.why, turning)
        if move.state in _FORCED:
            circuit.forced = move.by, move.why, now
        change = turning.changes[0]
        return change if change.old is not change.new else None

    def _recalled(self, spec: CircuitSpec, now: int) -> Circuit:
        """The circuit, brought into the state that was decided before it was lost."""
        circuit = self.of(spec)
        if self._recall and not circuit.known:
            if decided := self._recall(spec.api, spec.name):
                self.move(Move(spec, decided.state, decided.by, decided.why, decided.until_us), now)
            circuit.known = True
        return circuit
