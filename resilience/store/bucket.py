"""The bucket of the memory store: to which time a rate limit is used up, and how fast it refills."""

import math
from dataclasses import dataclass

from resilience.store import (
    FAST_US,
    LATE_US,
    LATENCY_US,
    LIVE_SEEN_US,
    QUIET_US,
    RECOVERY_US,
    SLOW_US,
    Kind,
    RateSpec,
    Report,
    Told,
)
from resilience.store.gate import Gate


@dataclass(slots=True)
class Pace:
    """By how much a bucket is slower than its spec: a call costs so many times its weight.

    `cut` follows 429s and slow answers, `spread` what the server said it has left until `spread_end_us`; the
    slower one counts. `factor` is set by hand. 0 stands for: as it begins.
    """

    factor: float = 1.0
    cut: float = 0.0
    cut_us: int = 0
    step_us: int = 0
    spread: float = 0.0
    spread_end_us: int = 0
    violations: int = 0
    adjustments: int = 0
    least: float = 0.0
    greatest: float = 0.0

    def stretch(self, spec: RateSpec, now: int) -> float:
        if not spec.adaptive and self.factor == 1.0:
            return 1.0
        slow = self.cut or spec.start
        if now < self.spread_end_us:
            slow = max(slow, self.spread)
        return max(1.0, slow / self.factor)

    def adjust(self, spec: RateSpec, factor: float, now: int) -> None:
        """Set by hand, and to stay."""
        before = self.stretch(spec, now)
        self.factor = factor
        self._count(spec, before, now)

    def learn(self, spec: RateSpec, report: Report, told: Told | None, now: int, *, cut: bool) -> None:
        """What a call's end says about the rate; `cut` where a 429 named no wait. Errors speed nothing up."""
        if report.kind in {Kind.THROTTLED, Kind.BANNED}:
            self.violations += 1
        if not spec.adaptive:
            return
        before = self.stretch(spec, now)
        if cut:
            self.cut = min((self.cut or spec.start) * spec.cut, spec.most)
            self.step_us = now
        if report.kind in {Kind.THROTTLED, Kind.BANNED}:
            self.cut_us = now
        elif self._is_quiet(now):
            self._follow_latency(spec, report, now)
        if told is not None and told.reset_us:
            self._follow_headers(spec, told, now, fine=report.kind is Kind.SUCCESS)
        self._count(spec, before, now)

    def _is_quiet(self, now: int) -> bool:
        return now - self.cut_us >= QUIET_US

    def _follow_latency(self, spec: RateSpec, report: Report, now: int) -> None:
        """Slower and faster near normal operation; below it a tenth of the limit more every minute."""
        cut = self.cut or spec.start
        near, fine = cut <= 2 * spec.start, report.kind is Kind.SUCCESS
        since = now - self.step_us
        if report.latency_us > SLOW_US:
            if near and since >= LATENCY_US and report.kind in {Kind.SUCCESS, Kind.FAILURE}:
                self._step(min(cut / 0.9, 2 * spec.start), now)
        elif near and fine and 0 < report.latency_us < FAST_US and since >= LATENCY_US:
            self._step(max(1 / (1 / cut + 0.05 / spec.start), 1.0), now)
        elif fine and cut > spec.start and since >= RECOVERY_US:
            self._step(max(1 / (1 / cut + 0.1 / spec.start), spec.start), now)

    def _step(self, cut: float, now: int) -> None:
        self.cut, self.step_us = cut, now

    def _follow_headers(self, spec: RateSpec, told: Told, now: int, *, fine: bool) -> None:
        wanted, until = spread_of(spec, told), now + told.reset_us
        kept = self.spread if now < self.spread_end_us else 0.0
        if fine and self._is_quiet(now):
            self.spread, self.spread_end_us = wanted, until
        elif wanted > kept:
            self.spread, self.spread_end_us = wanted, max(until, self.spread_end_us)

    def _count(self, spec: RateSpec, before: float, now: int) -> None:
        after = self.stretch(spec, now)
        if after == before:
            return
        self.adjustments += 1
        self.least = min(self.least or before, before, after)
        self.greatest = max(self.greatest, before, after)


@dataclass(slots=True)
class Bucket:
    """A token bucket as the times to which it is used up (GCRA).

    `booked_us` counts the calls that started or have a slot, `started_us` only those that really started: a
    slot tells a call when to come, but what keeps the limit in every window is that nothing starts unless
    `started_us` has room. `backfill_us` is the pace of backfills while live work was seen (`live_us`).
    """

    booked_us: int
    started_us: int
    pace: Pace
    backfill_us: int = 0
    live_us: int = 0
    gate_us: int = 0
    calls: int = 0
    waited_us: int = 0

    def heed(self, gate: Gate, spec: RateSpec) -> None:
        """A gate leaves the bucket empty at its end."""
        if gate.closed_us > self.gate_us:
            self.gate_us = gate.closed_us
            self.started_us = max(self.started_us, gate.until_us + spec.burst_us + spec.slack_us)
            self.booked_us = self.started_us - spec.slack_us

    def correct(self, spec: RateSpec, told: Told, now: int) -> None:
        """Believe a server that says less is left than we think; never one that says more.

        Until the server's window ends no more than `remaining` may start, so the bucket is set back as far as
        it would refill until then.
        """
        used_up = now + used_up_in(spec, told)
        if used_up > max(self.started_us, now):
            self.started_us = used_up
            self.booked_us = max(self.booked_us, used_up - spec.slack_us)


@dataclass(slots=True)
class Need:
    """What one call needs of one rate limit: it has to wait `wait_us` more, for a slot if it has none."""

    spec: RateSpec
    bucket: Bucket
    cost: int
    slot: int | None
    late: bool = False
    wait_us: int = 0

    @property
    def room(self) -> int:
        return max(self.spec.burst_us, self.cost)

    def ask(self, now: int, *, live: bool) -> None:
        """Reckon the wait."""
        if self.slot is not None:
            self._ask_with_slot(self.slot, now)
        else:
            self.wait_us = self._to_the_end(now)
        if live:
            self.bucket.live_us = now
        elif self.spec.share < 1 and now - self.bucket.live_us < LIVE_SEEN_US:
            cost, room = backfill_pace(self.spec, self.cost)
            self.wait_us = max(self.wait_us, max(self.bucket.backfill_us, now) + cost - room - now)

    def _to_the_end(self, now: int) -> int:
        return max(self.bucket.booked_us, now) + self.cost - self.room - now

    def _ask_with_slot(self, slot: int, now: int) -> None:
        if now < slot:
            self.wait_us = slot - now
            return
        late_us = now - slot
        self.late = late_us > self.spec.slack_us
        room = self.room + (0 if self.late else self.spec.slack_us)
        self.wait_us = max(self.bucket.started_us, now) + self.cost - room - now
        to_the_end = self._to_the_end(now)
        if self.wait_us > 0 and self.late and (late_us > LATE_US or to_the_end <= LATE_US):
            self.slot, self.wait_us = None, to_the_end

    def spend(self, now: int, *, live: bool) -> None:
        bucket = self.bucket
        bucket.calls += 1
        bucket.started_us = max(bucket.started_us, now) + self.cost
        if self.slot is None:
            bucket.booked_us = max(bucket.booked_us, now) + self.cost
        slack_us = 0 if self.late else self.spec.slack_us
        bucket.booked_us = max(bucket.booked_us, bucket.started_us - slack_us)
        if not live and self.spec.share < 1:
            cost, room = backfill_pace(self.spec, self.cost)
            bucket.backfill_us = min(max(bucket.backfill_us, now) + cost, now + room)


def cost_of(spec: RateSpec, weight: float) -> int:
    """What a call uses up; weights count in whole units."""
    return math.ceil(weight) * spec.unit_us


def used_up_in(spec: RateSpec, told: Told) -> int:
    """How far from now a bucket is used up from which no more than what remains may start until the reset."""
    return spec.burst_us + spec.slack_us + told.reset_us - math.floor(told.remaining) * spec.unit_us


def spread_of(spec: RateSpec, told: Told) -> float:
    """The stretch at which 70 % of what remains is spent evenly until the reset."""
    if told.remaining <= 0:
        return spec.most
    return min(max(told.reset_us / (spec.unit_us * 0.7 * told.remaining), 1.0), spec.most)


def backfill_pace(spec: RateSpec, cost: int) -> tuple[int, int]:
    """Cost and room of a backfill call in the share that live work leaves."""
    cost = math.ceil(cost / spec.share)
    return cost, max(math.ceil(spec.burst_us / spec.share), cost)
