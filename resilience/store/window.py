"""The windows and budgets of the memory store: what is used of the amount since the window began."""

import math
from dataclasses import dataclass

from resilience.store import LIVE_SEEN_US, Spent, WindowSpec


@dataclass(slots=True)
class Window:
    """Weight used since `begin_us`; of a budget no more than `written` may be. Live work was seen at
    `live_us`; `calls` counts for people, since ever.
    """

    begin_us: int
    end_us: int
    used: int = 0
    written: int = 0
    live_us: int = 0
    calls: int = 0

    def turn(self, begin: int, end: int) -> None:
        """Start anew when the window is over."""
        if begin != self.begin_us:
            self.used = self.written = 0
        self.begin_us, self.end_us = begin, end

    def fits(self, spec: WindowSpec, cost: int, now: int, *, live: bool) -> bool:
        """Whether there is room: for backfills above the reserve, if live work was seen in the last
        window.
        """
        room = spec.amount
        if not live and now - self.live_us < max(LIVE_SEEN_US, self.end_us - self.begin_us):
            room = max(math.floor(spec.amount * spec.share), cost)
        return self.used + cost <= room

    def unwritten(self, spec: WindowSpec, cost: int) -> int:
        """How much has to be written down before this cost is spent."""
        if self.used + cost <= self.written:
            return 0
        return min(max(spec.block, self.used + cost - self.written), spec.amount - self.written)

    def allot(self, spec: WindowSpec, begin: int, amount: int) -> None:
        """More is written down, or nothing is left to write."""
        if begin != self.begin_us:
            return
        self.written += amount
        if not amount:
            self.used = max(self.used, spec.amount)

    def correct(self, spec: WindowSpec, remaining: float) -> None:
        """Believe a server that says less is left."""
        self.used = max(self.used, spec.amount - math.floor(remaining))

    def restore(self, spent: Spent) -> None:
        """Begin with what was written down, unless it is known better."""
        if self.begin_us < spent.begin_us:
            self.begin_us, self.used, self.written = spent.begin_us, spent.amount, spent.amount
