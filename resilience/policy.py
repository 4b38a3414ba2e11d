"""Frozen policies. They travel down to whoever decides; nothing here decides."""

import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal

from resilience.errors import ConfigurationError
from resilience.headers import Dialect

Per = Literal["api", "ip", "account", "endpoint", "symbol"] | Callable[[Any], str]
Jitter = Literal["full", "none"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_RATE = re.compile(r"^\s*(\d+)\s*/\s*(\d+)?\s*([smhd])\s*$")
_AT_ONCE = re.compile(r"^\s*(\d+)\s+at\s+once\s*$")


class Lane(StrEnum):
    """Live work may reserve; a backfill takes what live work leaves."""

    LIVE = "live"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens, for how long, and what closes it again.

    It opens at `failures` consecutive failures, or when the share of failures over `window` reaches
    `rate` with at least `min_calls` calls; either rule may be None. It stays open for `open_for`,
    times `growth` for every recovery that failed, `open_max` at most. Half-open lends `half_open_calls`
    permits to the whole fleet at a time, each for `permit_lease` so that a killed prober frees its own;
    `half_open_successes` close it, and it opens again as soon as that many are out of reach.
    After closing, the limits run at 25 % and 50 % for one `slow_start_step` each.
    """

    failures: int | None = 5
    rate: float | None = 0.5
    window: timedelta = timedelta(seconds=60)
    min_calls: int = 20
    open_for: timedelta = timedelta(seconds=60)
    growth: float = 1.5
    open_max: timedelta = timedelta(hours=1)
    half_open_calls: int = 3
    half_open_successes: int = 2
    permit_lease: timedelta = timedelta(seconds=35)
    slow_start_step: timedelta = timedelta(seconds=5)

    def __post_init__(self) -> None:
        if self.failures is None and self.rate is None:
            raise ConfigurationError(
                "a BreakerPolicy needs `failures` or `rate`: without both it never opens"
            )
        if self.failures is not None and self.failures < 1:
            raise ConfigurationError(f"BreakerPolicy.failures is {self.failures}, but has to be at least 1")
        if self.rate is not None and not 0 < self.rate <= 1:
            raise ConfigurationError(f"BreakerPolicy.rate is {self.rate}, but has to lie in 0 … 1")
        if not 1 <= self.half_open_successes <= self.half_open_calls:
            raise ConfigurationError(
                f"BreakerPolicy.half_open_successes is {self.half_open_successes}, but has to lie in "
                f"1 … half_open_calls ({self.half_open_calls})"
            )


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of an API, in the words of its documentation.

    `spec` is `"6000/1m"` (calls or weight per window) or `"5 at once"` (calls in flight). `per` names who
    shares it. `used`, `remaining` and `reset` are the response headers that report it, or `headers` is their
    dialect; without either, the usual families of headers are read. `reserve` is the share a backfill leaves
    to live work while there is any.

    The burst (1 % of the amount, at least 1) is counted inside the amount: the bucket refills at
    (amount - burst) / window, so no window of any phase lets more than `amount` through.
    """

    spec: str
    per: Per = "api"
    used: str | None = None
    remaining: str | None = None
    reset: str | None = None
    reserve: float = 0.0
    burst: int | None = None
    headers: Dialect | None = None

    def __post_init__(self) -> None:
        if not (_RATE.match(self.spec) or _AT_ONCE.match(self.spec)):
            raise ConfigurationError(
                f"limit {self.spec!r} is not understood: write '60/1m' (per s, m, h or d) or '5 at once'"
            )
        if self.amount < 1:
            raise ConfigurationError(f"limit {self.spec!r} lets nothing through")
        if not 0 <= self.reserve < 1:
            raise ConfigurationError(
                f"limit {self.spec!r}: reserve is {self.reserve}, but has to lie in 0 … 1"
            )
        if self.headers is not None and (self.used or self.remaining or self.reset):
            raise ConfigurationError(f"limit {self.spec!r}: give `headers`, or the names of single headers")

    @property
    def dialect(self) -> Dialect | None:
        """The headers that speak of this limit, where the declaration names them."""
        if self.headers is None and (self.used or self.remaining):
            return Dialect(None, self.used, self.remaining, self.reset)
        return self.headers

    @property
    def at_once(self) -> bool:
        """Whether this counts calls in flight and not calls per window."""
        return _AT_ONCE.match(self.spec) is not None

    @property
    def amount(self) -> int:
        """Calls (or weight) per window, or calls in flight."""
        match = _RATE.match(self.spec) or _AT_ONCE.match(self.spec)
        assert match
        return int(match[1])

    @property
    def window_s(self) -> float:
        """Length of the window in seconds; 0 for a limit of calls in flight."""
        match = _RATE.match(self.spec)
        return float(int(match[2] or 1) * _SECONDS[match[3]]) if match else 0.0

    def burst_for(self, weight: float = 1.0) -> float:
        """What may start at one instant: 1 % of the amount, at least the largest weight."""
        wanted = self.burst if self.burst is not None else math.floor(self.amount / 100)
        return float(min(max(wanted, weight, 1), self.amount))

    def rate_for(self, weight: float = 1.0) -> float:
        """Weight per second in the long run, for calls of at most this weight.

        Where the burst is the whole amount, one unit takes a little longer than the window: whoever has used
        all of it has to let a window pass for each unit.
        """
        burst = self.burst_for(weight)
        if burst >= self.amount:
            return (1 - 1e-6) / self.window_s
        return (self.amount - burst) / self.window_s


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how long. `attempts` counts the first call: 4 attempts are 3 retries."""

    attempts: int = 4
    base_s: float = 1.0
    cap_s: float = 60.0
    jitter: Jitter = "full"

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise ConfigurationError(f"RetryPolicy.attempts is {self.attempts}, but has to be at least 1")

    def wait_s(
        self, attempt: int, retry_after_s: float | None = None, *, rng: Callable[[], float] = random.random
    ) -> float:
        """Seconds to wait after the `attempt`-th call (1, 2, …) failed.

        Full jitter: uniform in 0 … min(cap, base · 2ⁿ) (Brooker, "Exponential Backoff and Jitter", 2015).
        A server's own wait is never shortened: there jitter only adds, a tenth or one second at most.
        """
        backoff = min(self.cap_s, self.base_s * 2.0 ** min(attempt - 1, 62))
        wait = backoff * rng() if self.jitter == "full" else backoff
        if retry_after_s is None:
            return wait
        return max(wait, retry_after_s + min(1.0, 0.1 * retry_after_s) * rng())
