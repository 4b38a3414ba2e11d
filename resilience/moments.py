"""Numbers, waits and dates as servers write them. Pure; what cannot be read is None and never an error."""

import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

Unit = Literal["s", "ms"]

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


def seconds_of(text: str, here: datetime, *, unit: Unit = "s", most_s: float = DAY_S) -> float | None:
    """Seconds from `here`, 0 … `most_s`: of a number, a text like "1m30s", a Unix time or a date.

    A number above 10⁹ is a Unix time in s, ms, µs or ns, whatever the unit; one below zero says nothing, and
    neither does a moment that has passed by more than a day: the zero of somebody's clock is no leave to go.
    """
    seconds = _seconds(text.strip()[:_LONGEST], here, unit)
    return None if seconds is None or seconds < -DAY_S else min(max(seconds, 0.0), most_s)


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


def _seconds(text: str, here: datetime, unit: Unit) -> float | None:
    if match := _NUMBER.fullmatch(text):
        return None if match[1] else _seconds_of_number(float(match[2]), here, unit)
    if _DURATION.fullmatch(text):
        return sum(float(n) * _SECONDS[each] for n, each in _PART.findall(text))
    moment = moment_of(text)
    return None if moment is None else moment.timestamp() - here.timestamp()


def _seconds_of_number(number: float, here: datetime, unit: Unit) -> float:
    if number <= _LEAST_EPOCH:
        return number * _SECONDS[unit]
    while number > _MOST_EPOCH_S:
        number /= 1000
    return number - here.timestamp()
