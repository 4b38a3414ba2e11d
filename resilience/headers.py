"""What a server's headers say about its limits and waits. Pure; garbage is no news and never an error.

Two families are read wherever they stand, besides the names that a limit gives:

    X-RateLimit-Limit / -Remaining / -Reset    also X-Rate-Limit-… and RateLimit-…
    RateLimit, RateLimit-Policy                the drafts of the IETF, with several quotas in a line

The same header is seconds at one service, a Unix time at the next and a date at a third, whatever its family
promises. So the form of a value says what it is (`moments`), and only milliseconds have to be declared.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, get_args

from resilience.errors import ConfigurationError
from resilience.moments import DAY_S, Unit, count_of, moment_of, seconds_of

if TYPE_CHECKING:  # a limit names its dialect
    from resilience.policy import Limit

_LATE_S = 1.0  # a server that rounds up names a reset this much later than its window ends
_LONGEST = 2000  # characters of a header that are read
LONGEST_WAIT_S = 7 * DAY_S  # that a Retry-After may ask for; Binance bans for up to three days
_COMMA = re.compile(r",(?!\s*\d{1,2}[ -][A-Za-z]{3})")  # but not the one within "Fri, 02 Jan 2026"


@dataclass(frozen=True, slots=True)
class Quota:
    """What a server says of one limit: its size, what is used, what remains, and when it starts anew.

    `reset_s` is seconds from now, 0 … one day; `window_s` the length of the limit's window, where it is told.
    """

    limit: float | None = None
    used: float | None = None
    remaining: float | None = None
    reset_s: float | None = None
    window_s: float | None = None

    @property
    def left(self) -> float | None:
        """What remains, said by the server or reckoned from what is used; 0 at least."""
        if self.remaining is not None:
            return max(0.0, self.remaining)
        if self.used is None or self.limit is None:
            return None
        return max(0.0, self.limit - self.used)


@dataclass(frozen=True, slots=True)
class Dialect:
    """The headers in which an API speaks of one of its limits.

    `used` counts up and `remaining` down, in the limit's own unit (calls or weight). `reset` is when it
    starts anew: seconds, a Unix time, a date, or a text like "1m30s"; with `unit="ms"` plain numbers are
    milliseconds.
    """

    limit: str | None = None
    used: str | None = None
    remaining: str | None = None
    reset: str | None = None
    unit: Unit = "s"

    def __post_init__(self) -> None:
        if self.unit not in get_args(Unit):
            raise ConfigurationError(
                f"Dialect.unit is {self.unit!r}, but has to be {' or '.join(get_args(Unit))}"
            )
        if self.used is None and self.remaining is None:
            raise ConfigurationError("a Dialect needs `used` or `remaining`: else it says nothing of a limit")


# The windows of Binance have a header each; how much they allow stands in a body, not here.
BINANCE_MINUTE = Dialect(used="X-MBX-USED-WEIGHT-1M")
# Xero counts three limits at once, and names a wait only with a 429.
XERO_MINUTE = Dialect(remaining="X-MinLimit-Remaining")
XERO_DAY = Dialect(remaining="X-DayLimit-Remaining")
XERO_APP_MINUTE = Dialect(remaining="X-AppMinLimit-Remaining")
# Zoho tells only when half of the credits are used.
ZOHO_CREDITS = Dialect(remaining="X-API-CREDITS-REMAINING")
# Reddit (seconds) and HPE (ISO times) say X-RateLimit, X (Unix times) and Glassnode (seconds) X-Rate-Limit.
FAMILIES = tuple(
    Dialect(f"{name}-Limit", None, f"{name}-Remaining", f"{name}-Reset")
    for name in ("RateLimit", "X-RateLimit", "X-Rate-Limit")
)
_TELLING = frozenset({"ratelimit", *(str(family.remaining).lower() for family in FAMILIES)})


def quota_from(headers: Mapping[str, str], limit: "Limit", now: datetime | None = None) -> Quota | None:
    """What the headers say of this limit; None where they say nothing of it.

    By the names that the limit gives; where it gives none, by the families: then a quota counts that starts
    anew within the limit's window, the one with the same window or amount before others, the scarcer first.
    """
    said = _Said(headers, now)
    if limit.dialect is not None:
        return said.quota(limit.dialect, limit.amount)
    fitting = [quota for quota in said.quotas() if _fits(quota, limit)]
    return min(fitting, key=lambda quota: _unlike(quota, limit), default=None)


def quotas_in(headers: Mapping[str, str], now: datetime | None = None) -> tuple[Quota, ...]:
    """Every quota that the families tell, such as one for the minute and one for the day."""
    return tuple(_Said(headers, now).quotas())


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait, 0 … seven days; None where nothing is said.

    By `Retry-After` (seconds or a date); without one, until the last quota of which nothing remains starts
    anew, a day at most. A date is compared with the server's own `Date`, so that clocks which differ do no
    harm; `now` stands in where there is none.
    """
    said = _Said(headers, now)
    asked = said.wait_s("Retry-After", most_s=LONGEST_WAIT_S)
    return wait_of(said.quotas()) if asked is None else asked


def wait_of(quotas: Iterable[Quota]) -> float | None:
    """Seconds until the last quota of which nothing remains starts anew; None where none says so.

    With the quotas of a call's limits it is the wait of its 429 or ban that names no other.
    """
    used_up = [quota.reset_s for quota in quotas if quota.left == 0 and quota.reset_s is not None]
    return max(used_up, default=None)


def _fits(quota: Quota, limit: "Limit") -> bool:
    """A quota of another window must not stop this limit until that one ends."""
    if limit.at_once or quota.left is None:
        return False
    if quota.window_s is not None:
        return quota.window_s == limit.window_s
    return quota.reset_s is None or quota.reset_s <= limit.window_s + _LATE_S


def _unlike(quota: Quota, limit: "Limit") -> tuple[bool, bool, float]:
    return quota.window_s is None, quota.limit != limit.amount, quota.left or 0.0


class _Said:
    """An answer's headers by small names, and the now of its dates."""

    def __init__(self, headers: Mapping[str, str], now: datetime | None) -> None:
        self._headers = {str(name).lower(): value for name, value in headers.items()}
        self._now = now

    def get(self, name: str) -> str:
        return str(self._headers.get(name.lower(), ""))[:_LONGEST]

    def quota(self, dialect: Dialect, amount: float | None = None) -> Quota | None:
        used, remaining = self._count(dialect.used, max), self._count(dialect.remaining, min)
        if used is None and remaining is None:
            return None
        size = self._count(dialect.limit, min)
        return Quota(
            amount if size is None else size, used, remaining, self.wait_s(dialect.reset, dialect.unit)
        )

    def quotas(self) -> Iterator[Quota]:
        if _TELLING.isdisjoint(self._headers):
            return
        for family in FAMILIES:
            if quota := self.quota(family):
                yield quota
        yield from self._drafted()

    def wait_s(self, name: str | None, unit: Unit = "s", most_s: float = DAY_S) -> float | None:
        """Of a header that came twice, "30, 60" in one line, the longest wait counts."""
        text = self.get(name or "")
        if not text:
            return None
        read = partial(seconds_of, here=self._here(), unit=unit, most_s=most_s)
        longest = 0.0
        for part in _COMMA.split(text):
            wait = read(part)
            if wait is None:
                return read(text)
            longest = max(longest, wait)
        return longest

    def _count(self, name: str | None, stricter: Callable[[Iterable[float]], float]) -> float | None:
        """Of a header that came twice, "10, 9" in one line, the stricter number counts."""
        text = self.get(name or "")
        counts = [count_of(part.partition(";")[0]) for part in text.split(",")] if text else []
        known = [count for count in counts if count is not None]
        return stricter(known) if known and len(known) == len(counts) else None

    def _here(self) -> datetime:
        return moment_of(self.get("Date")) or self._now or datetime.now(UTC)

    def _drafted(self) -> Iterator[Quota]:
        """`"m";r=50;t=30` with a policy `"m";q=99;w=60`; older: `limit=99, remaining=50, reset=30`."""
        text = self.get("RateLimit")
        old = dict(part.strip().partition("=")[::2] for part in text.lower().split(","))
        if "remaining" in old:
            yield Quota(
                count_of(old.get("limit", "")), None, count_of(old["remaining"]), self._seconds(old, "reset")
            )
            return
        policies = dict(_items(self.get("RateLimit-Policy")))
        for name, said in _items(text):
            policy = policies.get(name, {})
            if policy.get("qu", "requests") == "requests":  # bytes and the like are no calls
                yield Quota(
                    count_of(policy.get("q", "")),
                    None,
                    count_of(said.get("r", "")),
                    self._seconds(said, "t"),
                    count_of(policy.get("w", "")),
                )

    def _seconds(self, said: Mapping[str, str], name: str) -> float | None:
        return seconds_of(said.get(name, ""), self._here())


# Commas and semicolons within quotes do not count.
_ITEM = re.compile(r'(?:"[^"]*"|[^",])+')
_PART = re.compile(r'(?:"[^"]*"|[^";])+')


def _items(text: str) -> Iterator[tuple[str, dict[str, str]]]:
    """A list as the drafts write it (RFC 9651): `"minute";r=50;t=30, …`."""
    for item in _ITEM.findall(text):
        name, *parameters = (part.strip() for part in _PART.findall(item) or [""])
        pairs = (parameter.partition("=")[::2] for parameter in parameters)
        yield name.strip('"'), {key.strip().lower(): value.strip().strip('"') for key, value in pairs}
