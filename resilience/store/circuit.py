"""The circuit of the memory store: what it counts, and when it turns from one state to another."""

import math
from dataclasses import dataclass, field

from resilience.store import SLICES, Change, CircuitSpec, CircuitState


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
