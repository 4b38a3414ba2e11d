"""A limit in numbers: what a store needs to know of it."""

import itertools
import math
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from resilience.policy import Limit
from resilience.store import LimitSpec, RateSpec, SeatSpec, WindowSpec

_MOST_STRETCH = 16.0  # an adaptive rate is never slower than this part of the declared one
_EPOCH = datetime.fromtimestamp(0, UTC)
_US = timedelta(microseconds=1)


def spec_of(limit: Limit, *, name: str, api: str, key: str, weight_max: float, lease: timedelta) -> LimitSpec:
    """The limit as one sharer (`key`) has it."""
    match limit.kind:
        case "concurrency":
            return SeatSpec(api, name, key, limit.amount, lease // _US, _stops(limit), *_strikes(limit))
        case "bucket":
            return _bucket(limit, name, api, key, weight_max)
        case _:
            return _window(limit, name, api, key)


def _bucket(limit: Limit, name: str, api: str, key: str, weight_max: float) -> RateSpec:
    declared = limit.amount / limit.window_s
    start = max(1.0, (limit.max_rate or 0.0) / declared)
    amount, rate = limit.amount * start, limit.rate_for(weight_max) * start
    least = max(declared / _MOST_STRETCH, limit.min_rate or 0.0)
    unit_us = math.ceil(1e6 / rate)
    burst = math.ceil(limit.burst_for(weight_max))
    window_us = round(limit.window_s * 1e6)
    # In a window fit window / unit + burst, and with the slack this has to stay below amount + 1.
    slack_us = min(unit_us - 1, max(0, (math.floor(amount) + 1 - burst) * unit_us - window_us - 1))
    return RateSpec(
        api,
        name,
        key,
        unit_us,
        burst * unit_us,
        slack_us,
        1 - limit.reserve,
        window_us,
        limit.adaptive,
        start,
        max(start, declared * start / least) if limit.adaptive else start,
        _stops(limit),
        *_strikes(limit),
        1 / limit.cut,
    )


def _stops(limit: Limit) -> bool:
    return limit.on_store_away == "stop"


def _strikes(limit: Limit) -> tuple[int, int]:
    return limit.default_retry_after // _US, limit.default_retry_after_max // _US


def _window(limit: Limit, name: str, api: str, key: str) -> WindowSpec:
    return WindowSpec(
        api,
        name,
        key,
        limit.amount,
        round(limit.window_s * 1e6),
        1 - limit.reserve,
        saved=limit.kind == "budget",
        calendar=_calendar(limit) if limit.calendar else None,
        stops=_stops(limit),
        strike_us=limit.default_retry_after // _US,
        strike_max_us=limit.default_retry_after_max // _US,
    )


def _calendar(limit: Limit) -> Callable[[int], tuple[int, ...]]:
    count, unit = limit.period
    zone = ZoneInfo(limit.midnight)
    first_of = _first_month if unit == "month" else _first_day

    @lru_cache(maxsize=8)
    def around(day: date) -> tuple[int, ...]:
        first = first_of(day, count)
        edges = [first_of(first - timedelta(days=1), count), first]
        for _ in range(2):
            edges.append(_after(edges[-1], count, unit))
        return tuple(_midnight(each, zone) for each in edges)

    return lambda about_us: around((_EPOCH + timedelta(microseconds=about_us)).astimezone(zone).date())


def _midnight(day: date, zone: ZoneInfo) -> int:
    """The first moment of a day there, in µs. Where midnight is skipped, a time zone moves it on."""
    return (datetime.combine(day, time(), zone).astimezone(UTC) - _EPOCH) // _US


def _first_day(day: date, count: int) -> date:
    """Periods of days follow each other since a Monday, so seven of them are a week."""
    return date.fromordinal(day.toordinal() - (day.toordinal() - 1) % count)


def _first_month(day: date, count: int) -> date:
    """Periods of months start with a year, so that three of them are a quarter."""
    return day.replace(month=day.month - (day.month - 1) % count, day=1)


def _after(first: date, count: int, unit: str) -> date:
    if unit == "d":
        return first + timedelta(days=count)
    return next(
        day
        for day in (first.replace(day=1) + timedelta(days=n) for n in itertools.count(28 * count))
        if day.day == 1
    )
