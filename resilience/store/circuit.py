"""The circuit of the memory store: what it counts, and when it turns from one state to another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from resilience.store import (
    PERMIT_WAIT_US,
    SLICES,
    Change,
    CircuitSpec,
    CircuitState,
    Delay,
    Denial,
    Kind,
    Reading,
    Report,
    Request,
)


@dataclass(slots=True)
class Circuit:
    """An era is the time between two transitions: what a call of an earlier era says comes too late."""

    state: CircuitState = CircuitState.CLOSED
    era: int = 0
    failures: int = 0
    until_us: int = 0
    open_us: int = 0
    closed_us: int = 0
    good: int = 0
    bad: int = 0
    slices: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    permits: dict[str, int] = field(default_factory=dict)

    def turn(self, state: CircuitState, reason: str, now: int, index: int = 0) -> Change:
        change = Change(index, self.state, state, reason, now)
        self.state, self.era = state, self.era + 1
        self.good = self.bad = 0
        self.slices.clear()
        self.permits.clear()
        return change

    def wake(self, now: int, index: int = 0) -> Change | None:
        """Nobody watches the clock: who asks first after the time is over moves the circuit on."""
        if not 0 < self.until_us <= now:
            return None
        self.until_us = 0
        if self.state is CircuitState.OPEN:
            return self.turn(CircuitState.HALF_OPEN, "open time over", now, index)
        self.failures = self.open_us = self.closed_us = 0
        return self.turn(CircuitState.CLOSED, "override over", now, index)

    def free_permits(self, spec: CircuitSpec, now: int) -> int:
        self.permits = {id_: end for id_, end in self.permits.items() if end > now}
        return max(0, spec.probes - len(self.permits) - self.good - self.bad)

    def slowdown(self, spec: CircuitSpec, now: int) -> int:
        """Just closed, a service gets 25 %, then 50 % of the limit: a call costs 4 times, twice as much."""
        if not self.closed_us:
            return 1
        since_us = now - self.closed_us
        return 4 if since_us < spec.step_us else 2 if since_us < 2 * spec.step_us else 1

    def open(self, spec: CircuitSpec, reason: str, now: int, index: int) -> Change:
        """Open longer than the last time, unless the circuit had closed for good since."""
        recovering = self.state is CircuitState.HALF_OPEN or self.slowdown(spec, now) > 1
        grown = math.floor(self.open_us * spec.growth) if recovering and self.open_us else spec.open_us
        self.open_us = min(grown, spec.open_max_us)
        self.until_us = now + self.open_us
        return self.turn(CircuitState.OPEN, reason, now, index)

    def close(self, reason: str, now: int, index: int) -> Change:
        self.failures = self.until_us = 0
        self.closed_us = now
        return self.turn(CircuitState.CLOSED, reason, now, index)

    def learn(self, spec: CircuitSpec, *, failed: bool, now: int, index: int) -> Change | None:
        if self.state is CircuitState.HALF_OPEN:
            return self._learn_from_probe(spec, failed=failed, now=now, index=index)
        if self.state is CircuitState.CLOSED:
            return self._learn_from_call(spec, failed=failed, now=now, index=index)
        return None

    def _learn_from_probe(self, spec: CircuitSpec, *, failed: bool, now: int, index: int) -> Change | None:
        if failed:
            self.bad += 1
            self.failures += 1
            if spec.probes - self.bad < spec.successes:
                return self.open(spec, "probes failed", now, index)
            return None
        self.good += 1
        return self.close("probes succeeded", now, index) if self.good >= spec.successes else None

    def _learn_from_call(self, spec: CircuitSpec, *, failed: bool, now: int, index: int) -> Change | None:
        self.failures = self.failures + 1 if failed else 0
        calls, failures = self._count(spec, failed=failed, now=now) if spec.rate else (0, 0)
        if not failed:
            return None
        if spec.failures and self.failures >= spec.failures:
            return self.open(spec, "consecutive failures", now, index)
        if spec.rate and calls >= spec.min_calls and failures >= spec.rate * calls:
            return self.open(spec, "failure rate", now, index)
        return None

    def _count(self, spec: CircuitSpec, *, failed: bool, now: int) -> tuple[int, int]:
        """Count a call; after a failure, say how many the window holds. Slices are reused in a ring."""
        tick = now // (spec.window_us // SLICES)
        kept, calls, failures = self.slices.get(tick % SLICES, (tick, 0, 0))
        if kept != tick:
            calls = failures = 0
        self.slices[tick % SLICES] = (tick, calls + 1, failures + failed)
        if not failed:
            return 0, 0
        recent = [slice_ for slice_ in self.slices.values() if slice_[0] > tick - SLICES]
        return sum(slice_[1] for slice_ in recent), sum(slice_[2] for slice_ in recent)


class CircuitTable:
    """All circuits of a memory store, by their keys."""

    def __init__(self) -> None:
        self._circuits: dict[str, Circuit] = {}

    def of(self, spec: CircuitSpec) -> Circuit:
        return self._circuits.get(spec.key) or self._circuits.setdefault(spec.key, Circuit())

    def wake(self, specs: Sequence[CircuitSpec], now: int) -> tuple[Change, ...]:
        changes = (self.of(spec).wake(now, index) for index, spec in enumerate(specs))
        return tuple(change for change in changes if change)

    def refusal(self, request: Request, now: int) -> Denial | Delay | None:
        """Why the circuits do not let this call start, if they do not."""
        circuits = [(self.of(spec), spec) for spec in request.route.circuits]
        for index, (circuit, spec) in enumerate(circuits):
            if circuit.state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}:
                until = circuit.until_us or now + spec.open_us
                return Denial(index, circuit.state.value, until, circuit.failures)
        for circuit, spec in circuits:
            if circuit.state is CircuitState.HALF_OPEN and not circuit.free_permits(spec, now):
                return Delay(PERMIT_WAIT_US, request.ticket, "half_open", spec.name)
        return None

    def slowdown(self, specs: Sequence[CircuitSpec], now: int) -> int:
        return max((self.of(spec).slowdown(spec, now) for spec in specs), default=1)

    def lend(
        self, specs: Sequence[CircuitSpec], id_: str, now: int
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Start a call: the era of each circuit, and whether the call holds a permit of it."""
        circuits = [self.of(spec) for spec in specs]
        permits = tuple(circuit.state is CircuitState.HALF_OPEN for circuit in circuits)
        for circuit, spec, permit in zip(circuits, specs, permits, strict=True):
            if permit:
                circuit.permits[id_] = now + spec.lease_us
        return tuple(circuit.era for circuit in circuits), permits

    def take_back(self, specs: Sequence[CircuitSpec], id_: str) -> None:
        for spec in specs:
            self.of(spec).permits.pop(id_, None)

    def learn(self, report: Report, now: int) -> tuple[Change, ...]:
        specs = report.grant.request.route.circuits
        changes = (self._learn(report, index, spec, now) for index, spec in enumerate(specs))
        return tuple(change for change in changes if change)

    def _learn(self, report: Report, index: int, spec: CircuitSpec, now: int) -> Change | None:
        grant, circuit = report.grant, self.of(spec)
        if grant.permits[index] and circuit.permits.pop(grant.request.id, 0) <= now:
            return None
        if grant.eras[index] != circuit.era or report.kind not in {Kind.SUCCESS, Kind.FAILURE}:
            return None
        return circuit.learn(spec, failed=report.kind is Kind.FAILURE, now=now, index=index)

    def read(self, spec: CircuitSpec, now: int) -> Reading:
        circuit = self.of(spec)
        over = 0 < circuit.until_us <= now
        if not over:
            free = circuit.free_permits(spec, now) if circuit.state is CircuitState.HALF_OPEN else 0
            return Reading(circuit.state, circuit.until_us, free, circuit.failures, circuit.good)
        if circuit.state is CircuitState.OPEN:
            return Reading(CircuitState.HALF_OPEN, 0, spec.probes, circuit.failures, 0)
        return Reading(CircuitState.CLOSED, 0, 0, 0, 0)

    def move(self, spec: CircuitSpec, state: CircuitState, until_us: int, now: int) -> Change | None:
        circuit = self.of(spec)
        if state is CircuitState.OPEN:
            circuit.open_us = spec.open_us
            until_us = until_us or now + spec.open_us
        if state is CircuitState.CLOSED:
            circuit.failures = circuit.open_us = circuit.closed_us = 0
        circuit.until_us = until_us
        change = circuit.turn(state, "by hand", now)
        return change if change.old is not state else None
