"""The gate of the memory store: until when a server wants to hear nothing from a sharer."""

from dataclasses import dataclass

from resilience.store import (
    BAN_FIRST_US,
    BAN_MOST_US,
    DAY_US,
    GATE_LEAST_US,
    Closed,
    Kind,
    Report,
)

_PACING = {Kind.THROTTLED, Kind.BANNED}
_SUCCESS = Kind.SUCCESS  # looking it up costs more than the comparison, in Python 3.11


@dataclass(slots=True)
class Gate:
    """Closed from `closed_us` to `until_us`, and until `banned_us` by a ban.

    `strikes` counts the 429s in a row that named no wait, `bans` those that followed each other within a day,
    `violations` all of both.
    """

    closed_us: int = 0
    until_us: int = 0
    strikes: int = 0
    banned_us: int = 0
    bans: int = 0
    violations: int = 0

    def hear(self, report: Report, now: int, strike_us: int, strike_max_us: int) -> bool:
        """Close on a 429 or a ban; say whether it is news of a limit that nobody knew: it named no wait.

        The calls that were in flight when it closed tell nothing new.
        """
        news = report.grant.started_us >= self.until_us
        if report.kind is _SUCCESS:
            self.strikes = 0 if news else self.strikes
            return False
        if report.kind not in _PACING:
            return False
        self.violations += 1
        if report.kind is Kind.BANNED:
            return self._ban(report, now)
        if report.retry_after_us is not None:
            self._close(now + max(report.retry_after_us, GATE_LEAST_US), now)
            return False
        if news:
            self._close(now + min(strike_us * 2**self.strikes, strike_max_us), now)
            self.strikes = min(self.strikes + 1, 10)
        return news

    def _ban(self, report: Report, now: int) -> bool:
        news = report.grant.started_us >= self.banned_us
        asked = 0
        if news:
            self.bans = self.bans + 1 if now - self.banned_us <= DAY_US else 1
            asked = now + min(BAN_FIRST_US * 2 ** (self.bans - 1), BAN_MOST_US)
        if report.retry_after_us is not None:
            asked = now + max(report.retry_after_us, GATE_LEAST_US)
        self.banned_us = max(self.banned_us, asked)
        self._close(asked, now)
        return news and report.retry_after_us is None

    def _close(self, until: int, now: int) -> None:
        if until > self.until_us:
            self.closed_us, self.until_us = now, until

    def take_over(self, closed: Closed, now: int) -> None:
        """Be closed as long as it is elsewhere."""
        if closed.banned_for_us:
            self.banned_us = max(self.banned_us, now + closed.banned_for_us)
            self.bans = max(self.bans, closed.bans)
        self._close(now + closed.for_us, now)

    def restore(self, until: int, bans: int, now: int) -> None:
        """A ban that the store forgot; one that is over counts for a day."""
        if until <= max(now - DAY_US, self.banned_us):
            return
        self.banned_us, self.bans = until, bans
        if until > now:
            self._close(until, now)
