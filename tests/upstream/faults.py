"""How an API can be told to misbehave."""

import time
from collections.abc import Callable
from typing import Any


def _range(value: Any) -> tuple[float, float]:
    low, high = value if isinstance(value, list) else (value, value)
    return float(low), float(high)


def _share(value: Any) -> float:
    share = float(value)
    if not 0 <= share <= 1:
        raise ValueError("a rate is between 0 and 1")
    return share


def _instant(value: Any) -> float | None:
    return None if value is None else float(value)


class Faults:
    """
    The misbehaviour that is switched on, by the names of the control endpoint.

    outage_s, throttle_s and throttle_bare_s start now and end by themselves; the rest stays until changed.
    """

    CHANGEABLE: dict[str, Callable[[Any], Any]] = {
        "latency_ms": _range,  # before every answer: fixed, or [min, max]
        "error_rate": _share,  # share of requests answered with error_status
        "error_status": int,
        "fail_next": int,  # so many requests are answered with error_status
        "outage_s": float,  # a load balancer's 503 page
        "throttle_s": float,  # 429 with Retry-After
        "throttle_bare_s": float,  # 429 without any header
        "reset_rate": _share,  # the connection is reset without an answer
        "truncate_rate": _share,  # half the JSON under a Content-Length that agrees
        "drip": float,  # seconds before each byte of the body; 0 sends it whole
        "html_200": bool,
        "null_200": bool,
        "bad_symbols": frozenset,
        "now": _instant,  # the wall clock as the API sees it, epoch seconds; null lets it run
    }
    TIMED = ("outage_s", "throttle_s", "throttle_bare_s")

    def __init__(self) -> None:
        self.latency_ms = (0.0, 0.0)
        self.error_rate = self.reset_rate = self.truncate_rate = self.drip = 0.0
        self.error_status, self.fail_next = 500, 0
        self.html_200 = self.null_200 = False
        self.bad_symbols: frozenset[str] = frozenset()
        self.now: float | None = None
        self.until: dict[str, float] = {}

    def change(self, wanted: dict[str, Any]) -> None:
        """Switch faults on or off. Raises ValueError for an unknown name or a wrong value, and changes nothing."""
        if unknown := wanted.keys() - self.CHANGEABLE.keys():
            raise ValueError(f"unknown: {', '.join(sorted(unknown))}")
        values = {name: self.CHANGEABLE[name](value) for name, value in wanted.items()}
        for name, value in values.items():
            if name in self.TIMED:
                self.until[name] = time.monotonic() + value
            else:
                setattr(self, name, value)

    def left_s(self, name: str, now: float) -> float:
        return max(0.0, self.until.get(name, 0.0) - now)

    def clock(self) -> float:
        return time.time() if self.now is None else self.now

    def report(self) -> dict[str, Any]:
        now = time.monotonic()
        timed = {name: round(self.left_s(name, now), 3) for name in self.TIMED}
        plain = {name: getattr(self, name) for name in self.CHANGEABLE if name not in self.TIMED}
        return {**plain, **timed, "bad_symbols": sorted(self.bad_symbols)}
