"""What a circuit says of itself, as JSON: numbers with their unit in the name, times in ISO 8601 with a Z."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from resilience.store import CircuitState, Reading

if TYPE_CHECKING:  # they work through each other
    from resilience.breaker import CircuitBreaker
    from resilience.guard import CircuitView


def status(breaker: "CircuitBreaker", view: "CircuitView") -> dict[str, Any]:
    """All that is known of a circuit.

    `open_for_s` is how long it opens for as things are, grown by failed recoveries. `half_open` is None
    unless it is; `forced` unless somebody forced it. `health_score` is the share of successes since the
    circuit is known, `health_recent` that of the policy's window; 1.0 where there were no calls.
    """
    seen = view.reading
    return {
        "api": breaker.api,
        "circuit": breaker.circuit,
        "state": view.state.value,
        "failure_count": view.failure_count,
        "consecutive_successes": view.success_count,
        "failure_threshold": breaker.policy.failures,
        "open_for_s": seen.open_us / 1e6 or breaker.policy.open_for.total_seconds(),
        "retry_at": _iso(seen.until_us),
        "last_failure_at": _iso(seen.last_failure_us),
        "last_state_change_at": _iso(seen.last_change_us),
        "half_open": _half_open(breaker, view),
        "statistics": _statistics(seen),
        "error_rate": _error_rate(seen),
        "health_score": _share(seen.total_successes, seen.total_failures),
        "health_recent": _share(seen.calls - seen.failed, seen.failed),
        "forced": _forced(seen),
    }


def metrics(view: "CircuitView") -> dict[str, Any]:
    """The figures that are watched; `time_until_retry_s` is None where a forced state has no end."""
    seen = view.reading
    refuses = view.state in {CircuitState.OPEN, CircuitState.FORCED_OPEN}
    left_s = (seen.until_us - seen.now_us) / 1e6 if seen.until_us else None
    return {
        "state": view.state.value,
        "failure_count": view.failure_count,
        "error_rate": _error_rate(seen),
        "time_until_retry_s": left_s if refuses else 0.0,
    }


def _half_open(breaker: "CircuitBreaker", view: "CircuitView") -> dict[str, Any] | None:
    if view.state is not CircuitState.HALF_OPEN:
        return None
    policy, seen = breaker.policy, view.reading
    return {
        "attempts": policy.half_open_calls - view.free_permits,
        "successes": seen.good,
        "max_calls": policy.half_open_calls,
        "success_threshold": policy.half_open_successes,
        "success_rate": seen.good / (seen.good + seen.bad) if seen.good + seen.bad else 0.0,
    }


def _statistics(seen: Reading) -> dict[str, Any]:
    return {
        "total_successes": seen.total_successes,
        "total_failures": seen.total_failures,
        "circuit_opens": seen.total_opens,
        "successful_recoveries": seen.total_recovered,
        "failed_recoveries": seen.total_relapsed,
        "time_in_open_s": seen.total_open_us / 1e6,
        "last_open_at": _iso(seen.last_open_us),
    }


def _forced(seen: Reading) -> dict[str, Any] | None:
    if seen.state not in {CircuitState.FORCED_OPEN, CircuitState.DISABLED}:
        return None
    return {
        "by": seen.forced_by,
        "why": seen.forced_why,
        "since_at": _iso(seen.forced_since_us),
        "until_at": _iso(seen.until_us),
    }


def _share(good: int, bad: int) -> float:
    return good / (good + bad) if good + bad else 1.0


def _error_rate(seen: Reading) -> float:
    return seen.failed / seen.calls if seen.calls else 0.0


def _iso(us: int) -> str | None:
    if not us:
        return None
    return (datetime.fromtimestamp(0, UTC) + timedelta(microseconds=us)).isoformat().replace("+00:00", "Z")
