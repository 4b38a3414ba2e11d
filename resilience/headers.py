"""What a server's headers say about its limits and waits. Pure; garbage is no news and never an error."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from resilience.policy import Limit

DAY_S = 86_400.0
_NUMBER = re.compile(r"\s*(\d{1,18}(?:\.\d{1,9})?)\s*")


@dataclass(frozen=True, slots=True)
class Quota:
    """What a server says of one limit: its size, what is used, what remains, and when it starts anew."""

    limit: float | None = None
    used: float | None = None
    remaining: float | None = None
    reset_s: float | None = None

    @property
    def left(self) -> float | None:
        """What remains, said by the server or reckoned from what is used; 0 at least."""
        if self.remaining is not None:
            return max(0.0, self.remaining)
        if self.used is None or self.limit is None:
            return None
        return max(0.0, self.limit - self.used)


def quota_from(headers: Mapping[str, str], limit: Limit) -> Quota | None:
    """The quota in the headers that the limit names; None where none of them is there."""
    used = _named(headers, limit.used)
    remaining = _named(headers, limit.remaining)
    if used is None and remaining is None:
        return None
    return Quota(float(limit.amount), used, remaining, _named_wait(headers, limit.reset))


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait by `Retry-After` (seconds or a date), from 0 to a day; None where it says nothing.

    A date is compared with the server's own `Date`, so that clocks which differ do no harm; `now` stands in
    where there is none.
    """
    return _named_wait(headers, "Retry-After", now)


def _named_wait(headers: Mapping[str, str], name: str | None, now: datetime | None = None) -> float | None:
    value = _header(headers, name)
    if value is None:
        return None
    seconds = _number(value)
    if seconds is None:
        seconds = _seconds_until(value, _header(headers, "Date"), now)
    elif seconds > 1e11:
        seconds = _since(seconds / 1000, headers, now)
    elif seconds > 1e9:
        seconds = _since(seconds, headers, now)
    return None if seconds is None else min(max(seconds, 0.0), DAY_S)


def _since(epoch_s: float, headers: Mapping[str, str], now: datetime | None) -> float:
    """A number this large is a point in time."""
    here = _date(_header(headers, "Date") or "") or now or datetime.now(UTC)
    return epoch_s - here.timestamp()


def _seconds_until(value: str, server_date: str | None, now: datetime | None) -> float | None:
    then = _date(value)
    here = _date(server_date or "") or now or datetime.now(UTC)
    return None if then is None else (then - here).total_seconds()


def _named(headers: Mapping[str, str], name: str | None) -> float | None:
    value = _header(headers, name)
    return None if value is None else _number(value)


def _header(headers: Mapping[str, str], name: str | None) -> str | None:
    """A header by its name in any case; `requests` brings such a mapping, others do not."""
    if name is None:
        return None
    if (value := headers.get(name)) is not None:
        return value
    wanted = name.lower()
    return next((value for key, value in headers.items() if key.lower() == wanted), None)


def _number(value: str) -> float | None:
    match = _NUMBER.fullmatch(value)
    number = float(match[1]) if match else math.nan
    return number if math.isfinite(number) else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date
