"""A documented limit, enforced on the server's own monotonic clock, and a strict log of what arrived."""

from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Window:
    """The weight seen in the last `length_s` seconds."""

    length_s: float
    entries: deque[tuple[float, int]] = field(default_factory=deque)
    used: int = 0

    def at(self, now: float) -> int:
        while self.entries and self.entries[0][0] <= now - self.length_s:
            self.used -= self.entries.popleft()[1]
        return self.used

    def add(self, now: float, weight: int) -> int:
        self.at(now)
        self.entries.append((now, weight))
        self.used += weight
        return self.used

    def room_in(self, now: float, needed: int) -> float:
        """Seconds until `needed` has left the window; the whole length if it never held so much."""
        for at, weight in self.entries:
            needed -= weight
            if needed <= 0:
                return max(0.0, at + self.length_s - now)
        return self.length_s


class Meter:
    """
    One limit for every key (an address or a token) of one API.

    A sliding window, or with `burst` a bucket of that size filled at amount ÷ window. `refused` counts requests
    that came although the limit was used up; `over_window` counts arrivals, refused ones too, in a window
    that held more than the amount, which is stricter where a burst is allowed.
    """

    def __init__(self, name: str, amount: int, window_s: float, burst: int | None = None):
        self.name, self.amount, self.window_s, self.burst = name, amount, float(window_s), burst
        self.max_in_window = self.over_window = self.refused = 0
        self.arrived: dict[str, Window] = defaultdict(lambda: Window(self.window_s))
        self.granted: dict[str, Window] = defaultdict(lambda: Window(self.window_s))
        self.tokens: dict[str, tuple[float, float]] = {}

    def arrive(self, key: str, weight: int, now: float) -> None:
        seen = self.arrived[key].add(now, weight)
        self.max_in_window = max(self.max_in_window, seen)
        self.over_window += seen > self.amount

    def take(self, key: str, weight: int, now: float) -> float:
        """Spend the weight and return 0, or spend nothing and return the seconds until there is room."""
        wait_s = (
            self._from_window(key, weight, now) if self.burst is None else self._from_bucket(key, weight, now)
        )
        self.refused += wait_s > 0
        return wait_s

    def _from_window(self, key: str, weight: int, now: float) -> float:
        window = self.granted[key]
        excess = window.at(now) + weight - self.amount
        if excess > 0:
            return max(window.room_in(now, excess), 1e-6)
        window.add(now, weight)
        return 0.0

    def _from_bucket(self, key: str, weight: int, now: float) -> float:
        assert self.burst is not None
        rate = self.amount / self.window_s
        level, at = self.tokens.get(key, (float(self.burst), now))
        level = min(self.burst, level + (now - at) * rate)
        if level >= weight:
            self.tokens[key] = (level - weight, now)
            return 0.0
        self.tokens[key] = (level, now)
        return (weight - level) / rate

    def report(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "amount": self.amount,
            "window_s": self.window_s,
            "burst": self.burst,
            "max_in_window": self.max_in_window,
            "over_window": self.over_window,
            "refused": self.refused,
        }
