"""Numbers, waits and dates as servers write them. Pure; what cannot be read is None and never an error."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

DAY_S = 86_400.0

_LONGEST = 64  # characters; no number and no date has more
_NUMBER = re.compile(r"(-?)(\d{1,20}(?:\.\d{1,9})?)", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|[smhd]))+", re.ASCII)
_PART = re.compile(r"([\d.]+)(ms|[smhd])", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY_S}

# No wait is that long: 10⁹ seconds after 1970 is 2001, and 10¹¹ is the year 5138.
_LEAST_EPOCH = 1e9
_MOST_EPOCH_S = 1e11


def count_of(text: str) -> float | None:
    """A plain number, such as "12" or "998.0"; one below zero is 0."""
    match = _NUMBER.fullmatch(text.strip()[:_LONGEST])
    if match is None:
        return None
    return 0.0 if match[1] else float(match[2])


def seconds_of(text: str, here: datetime, *, unit: Literal["s", "ms"] = "s") -> float | None:
    """Seconds from `here`, 0 … one day: of a number, a text like "1m30s", a Unix time or a date.

    A number above 10⁹ is a Unix time in s, ms, µs or ns, whatever the unit; one below zero says nothing, and
    neither does a moment that has passed by more than a day: the zero of somebody's clock is no leave to go.
    """
    text = text.strip()[:_LONGEST]
    if match := _NUMBER.fullmatch(text):
        return None if match[1] else _seconds_of_number(float(match[2]), here, unit)
    if _DURATION.fullmatch(text):
        return _clamped(sum(float(n) * _SECONDS[each] for n, each in _PART.findall(text)))
    moment = moment_of(text)
    return None if moment is None else _from(here, moment.timestamp())


def moment_of(text: str) -> datetime | None:
    """A date of HTTP or of ISO 8601; UTC where it names no zone."""
    text = text.strip()[:_LONGEST]
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(text)
            return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
        except (ValueError, TypeError, IndexError, OverflowError):
            continue
    return None


def _seconds_of_number(number: float, here: datetime, unit: Literal["s", "ms"]) -> float | None:
    if number <= _LEAST_EPOCH:
        return _clamped(number * _SECONDS[unit])
    while number > _MOST_EPOCH_S:
        number /= 1000
    return _from(here, number)


def _from(here: datetime, epoch_s: float) -> float | None:
    seconds = epoch_s - here.timestamp()
    return None if seconds < -DAY_S else _clamped(seconds)


def _clamped(seconds: float) -> float:
    return min(max(seconds, 0.0), DAY_S)
