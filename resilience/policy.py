"""Frozen policies. They travel down to whoever decides; nothing here decides."""

import math
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import InitVar, dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from resilience.errors import ConfigurationError
from resilience.headers import Dialect

Per = Literal["api", "ip", "account", "endpoint", "symbol"] | Callable[[Any], str]
Jitter = Literal["full", "equal", "decorrelated", "additive", "none"]
ReopenOn = Literal["out_of_reach", "first_failure"]

Algorithm = Literal["bucket", "window", "concurrency", "budget"]

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "month": 30 * 86_400}
_RATE = re.compile(r"\s*(\d+)\s*/\s*(\d+)?\s*(s|month|m|h|d)\s*")
_AT_ONCE = re.compile(r"\s*(\d+)\s+at\s+once\s*")
_READABLE = re.compile(r"\s*(\d+\s*(/\s*(\d+\s*)?((s|month|m|h|d)\s*)?|at\s+once\s*)?)?")


_ATTEMPTS = 4
_STEPS = 62  # more doublings than any cap needs, and fewer than a float holds


MOMENT, AGES = timedelta(milliseconds=1), timedelta(days=366)


_RULES = frozenset({"failures", "rate", "slow_rate", "rate_limited_trips"})  # None switches them off


def _is_count(number: Any) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and number >= 1


def _holds(condition: Callable[[Any], bool], value: Any) -> bool:
    """Whether it does; what is of another type does not."""
    try:
        return condition(value)
    except TypeError:
        return False


class Lane(StrEnum):
    """Live work may reserve; a backfill takes what live work leaves."""

    LIVE = "live"
    BACKFILL = "backfill"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """When a circuit opens, for how long, and what closes it again.

    It opens at `failures` consecutive failures, or when the share of failures over `window` reaches `rate`
    with at least `min_calls` calls, or when the share of calls that took longer than `slow_after` reaches
    `slow_rate`; a rule may be None. It stays open for `open_for`, times `growth` for every recovery that
    failed, `open_max` at most; where the server named a longer wait, for that.

    Half-open lends `half_open_calls` permits to the whole fleet at a time, each for `permit_lease` so that a
    killed prober frees its own; `half_open_successes` close it. It opens again as soon as that many are out
    of reach, or at the first failed probe with `reopen_on="first_failure"`; a slow probe has failed.
    After closing, the limits run at 25 % and 50 % for one `slow_start_step` each.

    A 429 that names no wait is a failure. One that names a wait is the limiter's business, but from the
    `rate_limited_trips`-th in a row on, each after the wait before was over, it is a failure too (None:
    never). With `count_rate_limited` every 429 is one.
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
    slow_rate: float | None = None
    slow_after: timedelta = timedelta(seconds=10)
    reopen_on: ReopenOn = "out_of_reach"
    rate_limited_trips: int | None = 3
    count_rate_limited: bool = False

    def __post_init__(self) -> None:
        if self.failures is None and self.rate is None and self.slow_rate is None:
            raise ConfigurationError(
                "a BreakerPolicy needs `failures`, `rate` or `slow_rate`: without them it never opens"
            )
        for name in ("failures", "rate_limited_trips", "min_calls", "half_open_calls", "half_open_successes"):
            self._need(name, _is_count, "a whole number of at least 1")
        for name in ("rate", "slow_rate"):
            self._need(name, lambda share: 0 < share <= 1, "above 0 and at most 1")
        for name in ("window", "open_for", "permit_lease", "slow_after"):
            self._need(name, lambda span: MOMENT <= span <= AGES, "1 millisecond … 366 days")
        self._need("slow_start_step", lambda step: timedelta() <= step <= AGES, "0 … 366 days")
        self._need("growth", lambda growth: 1 <= growth <= 1000, "1 … 1000")
        longest = f"at least open_for ({self.open_for}) and at most 366 days"
        self._need("open_max", lambda span: self.open_for <= span <= AGES, longest)
        calls = self.half_open_calls
        self._need(
            "half_open_successes",
            lambda n: n <= calls,
            f"at most half_open_calls ({calls}), or it never closes",
        )
        self._need("reopen_on", lambda word: word in get_args(ReopenOn), " or ".join(get_args(ReopenOn)))
        self._need("count_rate_limited", lambda word: isinstance(word, bool), "True or False")

    def _need(self, name: str, holds: Callable[[Any], bool], allowed: str) -> None:
        value = getattr(self, name)
        if value is None and name in _RULES:
            return
        if not _holds(holds, value):
            said = value if isinstance(value, int | float | timedelta) else repr(value)
            raise ConfigurationError(f"BreakerPolicy.{name} is {said}, but has to be {allowed}")


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of an API, in the words of its documentation.

    `spec` is `"6000/1m"` (calls or weight per window), `"5 at once"` (calls in flight), or `"5000/1d"` and
    `"100000/month"` (a budget, new at midnight). `per` names who shares it. `used`, `remaining` and `reset`
    are the response headers that report it, or `headers` is their dialect; without either, the usual families
    of headers are read. `reserve` is the share a backfill leaves to live work while there is any.

    `algorithm` follows from the spec: at once is a concurrency, a day or a month a budget, all else a token
    bucket: no window of any phase lets more than the amount through. Its burst (1 % of the amount, at least
    1) is counted inside the amount: it refills at (amount - burst) / window. An API whose windows start on
    the clock (each minute at :00, in UTC) may be given `algorithm="window"`: the whole amount at once, then
    nothing until the next. `midnight` is the time zone of a budget's days.

    `adaptive` lets a bucket find the rate that the API bears: 70 % of what its headers allow, half after a
    429 that names no wait, slower while answers take over 2 s. It never passes the spec, or `max_rate` where
    that is higher, and never goes below `min_rate` or a sixteenth of the spec (both in weight per second).

    A 429 that names no wait closes the limit for `default_retry_after`, and twice as long each time that they
    go on, up to `default_retry_after_max`; an adaptive rate is multiplied by `cut`.

    `on_store_away` says what holds while the shared store does not answer: `"share"`, each process keeps to
    its part of the limit; `"stop"`, nothing starts.
    """

    spec: str
    per: Per = "api"
    used: str | None = None
    remaining: str | None = None
    reset: str | None = None
    reserve: float = 0.0
    burst: int | None = None
    algorithm: Algorithm | None = None
    midnight: str = "UTC"
    adaptive: bool = False
    min_rate: float | None = None
    max_rate: float | None = None
    headers: Dialect | None = None
    on_store_away: Literal["share", "stop"] = "share"
    default_retry_after: timedelta = timedelta(seconds=60)
    default_retry_after_max: timedelta = timedelta(minutes=15)
    cut: float = 0.5

    def __post_init__(self) -> None:
        if not (_RATE.fullmatch(self.spec) or _AT_ONCE.fullmatch(self.spec)):
            raise ConfigurationError(_not_understood(self.spec))
        if problem := next(self._problems(), None):
            raise ConfigurationError(f"limit {self.spec!r}{problem}")

    def _problems(self) -> Iterator[str]:
        if self.amount < 1:
            yield " lets nothing through"
        if not self.at_once and self.window_s <= 0:
            yield " has a window of no length"
        if not 0 <= self.reserve < 1:
            yield f": reserve is {self.reserve}, but has to lie in 0 … 1: a share below all of it"
        if self.burst is not None and not _is_count(self.burst):
            yield f": burst is {self.burst}, but has to be a whole number of at least 1"
        if self.headers is not None and (self.used or self.remaining or self.reset):
            yield ": give `headers`, or the names of single headers"
        if self.on_store_away not in {"share", "stop"}:
            yield f": on_store_away is {self.on_store_away!r}, but has to be share or stop"
        yield from self._problems_of_waits()
        yield from self._problems_of_kind()
        yield from self._problems_of_rates()

    def _problems_of_waits(self) -> Iterator[str]:
        first, most = self.default_retry_after, self.default_retry_after_max
        if not MOMENT <= first <= most <= AGES:
            yield (
                f": default_retry_after is {first} and default_retry_after_max {most}, but both have to lie "
                "in 1 ms … 366 days, the second not below the first"
            )
        if not 0 < self.cut <= 1:
            yield f": cut is {self.cut}, but has to lie in 0 … 1: what a 429 leaves of the rate"

    def _problems_of_kind(self) -> Iterator[str]:
        if self.algorithm not in {None, *get_args(Algorithm)}:
            yield f": algorithm is {self.algorithm!r}, but has to be one of {', '.join(get_args(Algorithm))}"
        elif (self.kind == "concurrency") is not self.at_once:
            yield f" does not fit algorithm {self.algorithm!r}: only 'N at once' is a concurrency"
        elif self.kind in {"bucket", "window"} and self.period[1] == "month":
            yield ": months differ in length: make it a budget, which knows that"
        if self.at_once and self.reserve:
            yield ": reserve is a share of what a window lets through, and this counts calls in flight"
        if self.kind == "bucket" and self.burst is not None and self.burst > self.amount:
            yield f": burst is {self.burst}, but is counted inside the limit, so at most {self.amount}"
        if self.kind != "bucket":
            named = [word for word in ("burst", "adaptive") if getattr(self, word)]
            yield from (f": {word} is for token buckets, and this is a {self.kind}" for word in named)
        if self.midnight != "UTC":
            if not (self.kind == "budget" and self.calendar):
                yield ": midnight is for budgets of days or months"
            yield from _problems_of_zone(self.midnight)
        if self.kind == "budget" and self.period[1] == "month" and 12 % self.period[0]:
            yield f": a year does not divide into periods of {self.period[0]} months"

    def _problems_of_rates(self) -> Iterator[str]:
        named = [word for word in ("min_rate", "max_rate") if getattr(self, word) is not None]
        if not self.adaptive:
            yield from (
                f": {word} bounds an adaptive rate: add adaptive=True, or leave it out" for word in named
            )
            return
        rate = self.amount / self.window_s
        if self.min_rate is not None and not 0 < self.min_rate <= rate:
            yield f": min_rate is {self.min_rate:g} a second, but has to lie in 0 … {rate:g}: the limit"
        if self.max_rate is not None and not rate <= self.max_rate < math.inf:
            yield f": max_rate is {self.max_rate:g} a second, below the limit itself ({rate:g})"

    @property
    def dialect(self) -> Dialect | None:
        """The headers that speak of this limit, where the declaration names them."""
        if self.headers is None and (self.used or self.remaining):
            return Dialect(None, self.used, self.remaining, self.reset)
        return self.headers

    @property
    def kind(self) -> Algorithm:
        """How it is counted."""
        if self.algorithm is not None:
            return self.algorithm
        if self.at_once:
            return "concurrency"
        return "budget" if self.calendar else "bucket"

    @property
    def at_once(self) -> bool:
        """Whether this counts calls in flight and not calls per window."""
        return _AT_ONCE.fullmatch(self.spec) is not None

    @property
    def calendar(self) -> bool:
        """Whether its windows are days or a month of the calendar."""
        match = _RATE.fullmatch(self.spec)
        return match is not None and match[3] in {"d", "month"}

    @property
    def amount(self) -> int:
        """Calls (or weight) per window, or calls in flight."""
        match = _RATE.fullmatch(self.spec) or _AT_ONCE.fullmatch(self.spec)
        assert match
        return int(match[1])

    @property
    def window_s(self) -> float:
        """Length of the window in seconds (a month counts as 30 days); 0 for a limit of calls in flight."""
        match = _RATE.fullmatch(self.spec)
        return float(int(match[2] or 1) * _SECONDS[match[3]]) if match else 0.0

    @property
    def period(self) -> tuple[int, str]:
        """A window as written: how many of which unit (s, m, h, d, month)."""
        match = _RATE.fullmatch(self.spec)
        assert match
        return int(match[2] or 1), match[3]

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


def _not_understood(spec: str) -> str:
    """Show the part of a limit that cannot be read."""
    readable = _READABLE.match(spec)
    rest = spec[readable.end() :] if readable else spec
    where = f"cannot be read from {rest!r} on" if rest else "ends too early"
    return f"limit {spec!r} {where}: write '60/1m' (per s, m, h, d or month) or '5 at once'"


def _problems_of_zone(name: str) -> Iterator[str]:
    try:
        ZoneInfo(name)
    except (ValueError, OSError, ZoneInfoNotFoundError):
        yield f": midnight is {name!r}, which is no time zone known here; write one like 'Europe/Berlin'"


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how long. `attempts` counts the first call: 4 attempts are 3 retries.

    `max_retries=3` says the same as `attempts=4`. The n-th wait is `base_s` · `factor`ⁿ⁻¹, `cap_s` at most,
    and `jitter` spreads it (Brooker, "Exponential Backoff and Jitter", 2015):

    - `full`: anything up to the wait (the default: a crowd that failed together comes back most evenly)
    - `equal`: half of it, and anything up to the other half
    - `decorrelated`: anything from `base_s` to three times the wait before; `factor` does not count
    - `additive`: the wait, and up to a second on top
    - `none`: the wait
    """

    attempts: int = _ATTEMPTS
    base_s: float = 1.0
    cap_s: float = 60.0
    factor: float = 2.0
    jitter: Jitter = "full"
    max_retries: InitVar[int | None] = None

    def __post_init__(self, max_retries: int | None) -> None:
        if max_retries is not None:
            if not _is_count(max_retries + 1):
                raise ConfigurationError(
                    f"RetryPolicy.max_retries is {max_retries}, but has to be a whole number of at least 0"
                )
            if self.attempts not in {max_retries + 1, _ATTEMPTS}:
                raise ConfigurationError(
                    f"RetryPolicy.attempts is {self.attempts}, but max_retries={max_retries} "
                    f"means {max_retries + 1}"
                )
            object.__setattr__(self, "attempts", max_retries + 1)
        if problem := next(self._problems(), None):
            raise ConfigurationError(f"RetryPolicy.{problem}")

    def _problems(self) -> Iterator[str]:
        if not _is_count(self.attempts):
            yield f"attempts is {self.attempts}, but has to be a whole number of at least 1"
        for name, seconds in (("base_s", self.base_s), ("cap_s", self.cap_s)):
            if not _holds(lambda number: 0 <= number < math.inf, seconds):
                yield f"{name} is {seconds!r}, but has to be seconds, 0 or more"
        if self.cap_s < self.base_s:
            yield f"cap_s is {self.cap_s}, but the first wait alone is base_s ({self.base_s})"
        if not _holds(lambda number: 1 <= number <= 100, self.factor):
            yield f"factor is {self.factor}, but has to lie in 1 … 100"
        if self.jitter not in get_args(Jitter):
            yield f"jitter is {self.jitter!r}, but has to be one of {', '.join(get_args(Jitter))}"

    def wait_s(
        self, attempt: int, retry_after_s: float | None = None, *, rng: Callable[[], float] = random.random
    ) -> float:
        """Seconds to wait after the `attempt`-th call (1, 2, …) failed.

        A server's own wait is never shortened: there jitter only adds, a tenth or one second at most.
        """
        wait = self._jittered_s(attempt, rng)
        if retry_after_s is None:
            return wait
        return max(wait, retry_after_s + min(1.0, 0.1 * retry_after_s) * rng())

    def _jittered_s(self, attempt: int, rng: Callable[[], float]) -> float:
        backoff = min(self.cap_s, self.base_s * self.factor ** min(attempt - 1, _STEPS))
        match self.jitter:
            case "full":
                return backoff * rng()
            case "equal":
                return backoff / 2 * (1 + rng())
            case "decorrelated":
                return self._decorrelated_s(attempt, rng)
            case "additive":
                return backoff + rng()
            case "none":
                return backoff

    def _decorrelated_s(self, attempt: int, rng: Callable[[], float]) -> float:
        """The waits before are drawn anew, so that nobody has to remember them between two deliveries."""
        wait = self.base_s
        for _ in range(min(attempt, _STEPS)):
            wait = min(self.cap_s, self.base_s + (3 * wait - self.base_s) * rng())
        return wait
