"""How a limit stands, reckoned from what a store keeps of it."""

from collections.abc import Sequence
from dataclasses import replace

from resilience.store import (
    QUIET_US,
    LimitReading,
    LimitSpec,
    RateSpec,
    SeatSpec,
)
from resilience.store.bucket import Bucket
from resilience.store.gate import Gate
from resilience.store.window import Window


def reading_of(
    spec: LimitSpec, state: Bucket | Window | Sequence[int] | None, gate: Gate, now: int
) -> LimitReading:
    """The reading of a bucket, a window, or seats (the ends of their leases)."""
    until_us = gate.until_us if now < gate.until_us else 0
    if isinstance(state, Bucket) and isinstance(spec, RateSpec):
        state = replace(state)
        state.heed(gate, spec)
    return replace(_open(spec, state, gate, now), gate_until_us=until_us, banned=now < gate.banned_us)


def _open(
    spec: LimitSpec, state: Bucket | Window | Sequence[int] | None, gate: Gate, now: int
) -> LimitReading:
    if isinstance(spec, RateSpec):
        assert isinstance(state, Bucket)
        return _of_bucket(spec, state, now)
    if isinstance(spec, SeatSpec):
        taken = sum(end > now for end in state) if isinstance(state, Sequence) else 0
        return LimitReading(left=spec.seats - taken, used=taken, violations=gate.violations)
    begin, end = spec.bounds(now, now)
    used = state.used if isinstance(state, Window) and state.begin_us == begin else 0
    calls = state.calls if isinstance(state, Window) else 0
    return LimitReading(
        left=max(0, spec.amount - used), used=used, end_us=end, calls=calls, violations=gate.violations
    )


def _of_bucket(spec: RateSpec, bucket: Bucket, now: int) -> LimitReading:
    pace = bucket.pace
    unit_us = spec.unit_us * pace.stretch(spec, now)
    free_us = min(max(spec.burst_us - max(bucket.started_us - now, 0), 0), spec.burst_us)
    backoff_us = pace.cut_us + QUIET_US if pace.cut_us and now < pace.cut_us + QUIET_US else 0
    return LimitReading(
        left=free_us // unit_us,
        waiting=max(0, bucket.booked_us - max(bucket.started_us - spec.slack_us, now)) // unit_us,
        stretch=pace.stretch(spec, now),
        factor=pace.factor,
        backoff_until_us=backoff_us,
        calls=bucket.calls,
        waited_us=bucket.waited_us,
        violations=pace.violations,
        adjustments=pace.adjustments,
        least=pace.least or pace.stretch(spec, now),
        greatest=pace.greatest or pace.stretch(spec, now),
    )
