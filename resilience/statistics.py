"""What a limiter did, in numbers with their units, and as a person reads it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from resilience.policy import Limit
from resilience.store import LimitReading


def statistics_of(
    name: str,
    limit: Limit,
    readings: Mapping[str | None, LimitReading],
    quotas: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The statistics of a limiter (its reading is that of None) and its endpoints."""
    whole = readings[None]
    endpoints = {each: reading for each, reading in readings.items() if each is not None}
    tracked = sorted({*endpoints, *(each for each in quotas if each != name)})
    return {
        "limiter_name": name,
        "default_rate_per_s": rate_of(limit),
        "current_global_rate_per_s": rate_of(limit, whole.stretch),
        "total_requests": whole.calls if limit.window_s else None,  # of calls in flight nobody counts them
        "total_violations": whole.violations + sum(each.violations for each in endpoints.values()),
        "total_wait_time_s": sum(each.waited_us for each in readings.values()) / 1e6,
        "rate_adjustments": whole.adjustments + sum(each.adjustments for each in endpoints.values()),
        "min_rate_seen_per_s": rate_of(limit, whole.greatest),
        "max_rate_seen_per_s": rate_of(limit, whole.least),
        "backoff_multiplier": max(1.0, whole.stretch / _start(limit)),
        "endpoints_tracked": len(tracked),
        "endpoints": {
            each: _endpoint(limit, endpoints.get(each, LimitReading()), quotas.get(each, {}))
            for each in tracked
        },
    }


def rate_of(limit: Limit, stretch: float | None = None) -> float | None:
    """The declared rate in weight per second, or the rate at a stretch; None for calls in flight."""
    if not limit.window_s:
        return None
    declared = limit.amount / limit.window_s
    return declared if stretch is None else declared * _start(limit) / stretch


def humanize(statistics: Mapping[str, Any]) -> dict[str, Any]:
    """Statistics for people: "10.00 req/s" and "125.34s" in place of numbers, and no units in the names."""
    return {_plain(name): _text(name, value) for name, value in statistics.items()}


def _plain(name: str) -> str:
    return name.removesuffix("_per_s").removesuffix("_s")


def _text(name: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            each: humanize(inner) if isinstance(inner, Mapping) else inner for each, inner in value.items()
        }
    if value is None or isinstance(value, str):
        return value
    if name.endswith("_per_s"):
        return f"{value:.2f} req/s"
    if name.endswith("_s"):
        return f"{value:.2f}s"
    return value


def _endpoint(limit: Limit, reading: LimitReading, quota: Mapping[str, Any]) -> dict[str, Any]:
    until_us = max(reading.backoff_until_us, reading.gate_until_us)
    return {
        "rate_per_s": rate_of(limit, reading.stretch),
        "requests_made": reading.calls,
        "violations": reading.violations,
        "rate_limit_remaining": quota.get("remaining"),
        "in_backoff": until_us > 0,
        "backoff_until": _iso(until_us) if until_us else None,
    }


def _iso(us: int) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).isoformat().replace("+00:00", "Z")


def _start(limit: Limit) -> float:
    return max(1.0, (limit.max_rate or 0.0) * limit.window_s / limit.amount)
