"""Symbols that fail again and again are left alone, and tried again after a while.

quarantine = Quarantine()
for symbol in symbols:
    if quarantine.should_skip(symbol):
        continue
    try:
        fetch(symbol)
    except PenstockError as error:
        quarantine.record_failure(symbol, error)
    else:
        quarantine.record_success(symbol)
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from threading import Lock
from typing import Any, Protocol

from resilience.errors import ConfigurationError, NotFoundError, PenstockError, Scope

log = logging.getLogger(__name__)

MAX_FAILURES = 10
REPROBE = timedelta(hours=1)
REPROBE_MAX = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class SymbolErrors:
    """What is known of a symbol that failed: how often in a row, and its last error.

    `since_at` is when it was put into quarantine, None while it only fails. `until_at` is when it will be
    tried again, None for not before it is released; `times` is how often in a row it was put there.
    """

    symbol: str
    failures: int
    error: str
    gone: bool = False
    times: int = 0
    since_at: datetime | None = None
    until_at: datetime | None = None

    def skipped_at(self, now: datetime) -> bool:
        """Whether the symbol is left alone at this time."""
        return self.since_at is not None and (self.until_at is None or now < self.until_at)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts."""
        return {
            "symbol": self.symbol,
            "failures": self.failures,
            "error": self.error,
            "gone": self.gone,
            "times": self.times,
            "since_at": _iso(self.since_at),
            "until_at": _iso(self.until_at),
        }


class Entries(Protocol):
    """Where a quarantine is kept: one entry for each symbol that failed last."""

    def get(self, symbol: str) -> SymbolErrors | None:
        """The symbol's entry."""

    def put(self, entry: SymbolErrors) -> None:
        """Keep the symbol's entry in place of an older one."""

    def drop(self, symbol: str) -> None:
        """Forget the symbol."""

    def all(self) -> Iterable[SymbolErrors]:
        """Every entry, by symbol."""


class MemoryEntries:
    """Entries of one process, forgotten when it ends."""

    def __init__(self) -> None:
        self._entries: dict[str, SymbolErrors] = {}

    def get(self, symbol: str) -> SymbolErrors | None:
        """See `Entries.get`."""
        return self._entries.get(symbol)

    def put(self, entry: SymbolErrors) -> None:
        """See `Entries.put`."""
        self._entries[entry.symbol] = entry

    def drop(self, symbol: str) -> None:
        """See `Entries.drop`."""
        self._entries.pop(symbol, None)

    def all(self) -> list[SymbolErrors]:
        """See `Entries.all`."""
        return sorted(self._entries.values(), key=lambda entry: entry.symbol)


class Quarantine:
    """Leaves a symbol alone that failed `max_failures` times in a row, and has it tried again.

    The first time after `reprobe`, then after twice as long each time it fails again, `reprobe_max` at most.
    One success ends it. With `reprobe=None`, and for a symbol that the server does not know (NotFoundError),
    nothing but `release` does. Only what speaks of the symbol counts: our errors of that scope, and what is
    none of ours, such as a parser that chokes on it; a service that is away says nothing about its symbols.

    Threads may share one. Processes share it as far as their `entries` do; two of them that count at the same
    moment may count once.
    """

    def __init__(
        self,
        entries: Entries | None = None,
        *,
        max_failures: int = MAX_FAILURES,
        reprobe: timedelta | None = REPROBE,
        reprobe_max: timedelta = REPROBE_MAX,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if max_failures < 1:
            raise ConfigurationError(f"Quarantine: max_failures is {max_failures}, but has to be at least 1")
        if reprobe is not None and not timedelta(0) < reprobe <= reprobe_max:
            raise ConfigurationError(
                f"Quarantine: reprobe is {reprobe}, but has to lie above 0 and up to reprobe_max "
                f"({reprobe_max})"
            )
        self._entries = MemoryEntries() if entries is None else entries
        self._max_failures, self._reprobe, self._reprobe_max = max_failures, reprobe, reprobe_max
        self._clock = clock
        self._lock = Lock()

    def record_failure(self, symbol: str, error: Exception) -> bool:
        """Count a failure; whether the symbol is left alone from now on."""
        if not speaks_of_symbol(error):
            return self.should_skip(symbol)
        return self.count(symbol, type(error).__name__, gone=isinstance(error, NotFoundError))

    def count(self, symbol: str, error: str, *, gone: bool = False) -> bool:
        """`record_failure` for an error that is known by name only; `gone`: the server does not know it."""
        now = self._clock()
        with self._lock:
            known = self._entries.get(symbol) or SymbolErrors(symbol, 0, error)
            entry = replace(known, failures=known.failures + 1, error=error, gone=gone)
            if entry.failures >= self._max_failures and not known.skipped_at(now):
                entry = self._put_away(entry, now)
            self._entries.put(entry)
        return entry.skipped_at(now)

    def record_success(self, symbol: str) -> bool:
        """Forget the symbol's failures; whether it had any."""
        with self._lock:
            known = self._entries.get(symbol)
            if known is None:
                return False
            self._entries.drop(symbol)
        if known.since_at is not None:
            log.warning("%s is well again after %d failures", symbol, known.failures)
        return True

    def release(self, symbol: str) -> bool:
        """Let the symbol be tried from now on, as if it had never failed; whether it had."""
        with self._lock:
            known = self._entries.get(symbol) is not None
            self._entries.drop(symbol)
        return known

    def should_skip(self, symbol: str) -> bool:
        """Whether the symbol is to be left alone now."""
        known = self._entries.get(symbol)
        return known is not None and known.skipped_at(self._clock())

    def quarantined(self) -> list[SymbolErrors]:
        """The symbols that are left alone now."""
        now = self._clock()
        return [entry for entry in self._entries.all() if entry.skipped_at(now)]

    def failing(self) -> list[SymbolErrors]:
        """Every symbol that failed last, whether it is left alone or not."""
        return list(self._entries.all())

    def _put_away(self, entry: SymbolErrors, now: datetime) -> SymbolErrors:
        until_at = None
        if self._reprobe is not None and not entry.gone:
            until_at = now + min(self._reprobe * 2 ** min(entry.times, 32), self._reprobe_max)
        log.warning(
            "%s failed %d times in a row (%s) and is left alone until %s",
            *(entry.symbol, entry.failures, entry.error, _iso(until_at) or "it is released"),
        )
        return replace(entry, times=entry.times + 1, since_at=now, until_at=until_at)


def speaks_of_symbol(error: Exception) -> bool:
    """Whether an error says something about the symbol and not about the service or us."""
    return error.scope is Scope.SYMBOL if isinstance(error, PenstockError) else True


def _iso(at: datetime | None) -> str | None:
    return None if at is None else at.isoformat().replace("+00:00", "Z")
