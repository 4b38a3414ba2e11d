"""One way to data: which units it has, what to send for a page, and what the answer means."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, get_args

from sqlalchemy import Table

from resilience.errors import ConfigurationError
from resilience.policy import Limit
from tasks.collectors import asking, checks, reading
from tasks.collectors.details import Detail
from tasks.collectors.fields import iso, to_cursor, to_iso
from tasks.collectors.paging import Paging, Single
from tasks.collectors.rows import FILLED_BY_STORE, Shape, Where, kind_of, shape_of
from tasks.collectors.sources import FromEndpoint, FromTable, Symbols
from tasks.collectors.sources import check as check_source
from tasks.collectors.spans import Bars, Window, placeholders
from tasks.collectors.sync import START, Sync
from tasks.collectors.tiers import Tier
from tasks.collectors.times import Cursor
from tasks.collectors.values import Answer, Checkpoint, Fetch, Fetched, Known, Page, Request, Unit
from tasks.models import records

if TYPE_CHECKING:
    from tasks.collectors.spec import Api

logger = logging.getLogger(__name__)

Parse = Callable[[Any, Unit], Mapping[str, Any]]
OnOpen = Literal["skip", "park"]
CatchUp = Literal["none", "latest", "all"]
Overlap = Literal["skip", "queue", "replace"]
Weight = float | Callable[[Unit], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Endpoint:
    """One way to data, made by `Api.endpoint`. `symbols` None means that it has none: one unit, symbol ""."""

    api: "Api" = field(repr=False)
    name: str
    path: str
    parse: Parse = field(repr=False)
    key: tuple[str, ...]
    params: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    symbols: Symbols = None
    symbol_pattern: str | None = None
    page: Paging = field(default_factory=Single)
    cursor: Cursor | None = None
    table: Table = field(default=records, repr=False)
    weight: Weight = 1
    weight_max: float = 0
    every: timedelta | None = None
    catch_up: CatchUp = "latest"
    overlap: Overlap = "skip"
    limits: tuple[Limit, ...] = ()
    rows: Where = None
    on_open: OnOpen | None = None
    expect_rows: bool = False
    detail: Detail | None = None
    sync: Sync | None = None
    conditional: bool = False
    fetch: Fetch | None = field(default=None, repr=False)
    tiers: tuple[Tier, ...] = ()
    shape: Shape = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        limits = (*self.api.limits, *self.limits)
        most = checks.weight(self.full_name, self.weight, self.weight_max or None, limits)
        if self.detail is not None and self.detail.weight is not None:
            most = max(most, checks.weight(f"{self.full_name}: detail", self.detail.weight, None, limits))
        object.__setattr__(self, "weight_max", most)
        object.__setattr__(self, "shape", shape_of(None if self.generic else self.table, self.key))

    @property
    def generic(self) -> bool:
        """Whether the rows are kept as JSON, for want of a table of their own."""
        return self.table is records

    @property
    def functions(self) -> tuple[Fetch, ...]:
        """The functions that fetch, of all tiers."""
        return tuple(each for each in (self.fetch, *(tier.fetch for tier in self.tiers)) if each is not None)

    @property
    def declared(self) -> bool:
        """Whether a call is declared, alone or as one of the tiers."""
        return any(tier.fetch is None for tier in self.tiers) if self.tiers else self.fetch is None

    @property
    def has_symbols(self) -> bool:
        """Whether there is something to collect without being told any symbol."""
        if isinstance(self.symbols, FromEndpoint):
            return self.api.endpoints[self.symbols.endpoint].has_symbols
        return self.symbols is None or bool(self.symbols)

    @property
    def timeout_s(self) -> float | None:
        """The total time that a call to this API may take, None where the installation decides."""
        return self.api.timeout_s

    @property
    def full_name(self) -> str:
        """Collector and endpoint: "binance.klines"."""
        return f"{self.api.name}.{self.name}"

    @property
    def has_source(self) -> bool:
        """Whether the symbols are found out when a run is planned: by a function, a table, other rows."""
        return self.symbols is not None and not isinstance(self.symbols, tuple)

    @property
    def symbols_from(self) -> str:
        """Where the symbols come from, in a word."""
        match self.symbols:
            case None:
                return "none"
            case tuple():
                return "list"
            case FromTable(table=table):
                return f"table {table.name}"
            case FromEndpoint(endpoint=name):
                return f"{self.api.name}.{name}"
        return "function"

    def check_symbols(self, requested: Sequence[str] | None = None) -> tuple[str, ...]:
        """The symbols to collect: those asked for, else the declared ones; each once, in order.

        None at all where only planning finds them out. Raises ConfigurationError for one that cannot be a
        symbol here, and where a declaration leaves them open.
        """
        if self.symbols is None:
            if requested:
                raise ConfigurationError(f"{self.full_name} has no symbols; it is collected as a whole")
            return ("",)
        if not requested and isinstance(self.symbols, tuple):
            if not self.symbols:
                raise ConfigurationError(
                    f"{self.full_name} has no symbols yet: name some in the settings or with --symbols"
                )
            requested = self.symbols
        return tuple(
            dict.fromkeys(
                checks.symbol(self.full_name, each, self.symbol_pattern) for each in requested or ()
            )
        )

    @property
    def takes_range(self) -> bool:
        """Whether the API can be asked for a range of time, so that a backfill makes sense."""
        if not self.timed:
            return False
        return self.page.of_time or bool(self.functions) or bool(self.cursor and self.cursor.is_sent)

    def window(
        self, symbol: str, cursor: str | None, now: datetime
    ) -> tuple[datetime | None, datetime | None]:
        """What a run without an explicit range collects.

        Bars: from the cursor (less its lag) to the last bar that is complete at `now`, or one page back where
        there is no cursor yet. Window: from the cursor to `now`, or one chunk back (a day, where none is
        declared). Others: everything since the cursor, less its lag.
        """
        since, oldest = self._since(symbol, cursor), self._oldest(now)
        if since is not None and oldest is not None and since < oldest:
            logger.warning(
                "%s %s: what lies between %s and %s can no longer be had; it has a gap there",
                *(self.full_name, symbol, to_iso(since), to_iso(oldest)),
            )
            since = oldest
        if isinstance(self.page, Window):
            assert self.cursor is not None
            return min(since or now - self.cursor.step, now - timedelta(seconds=1)), now
        if not isinstance(self.page, Bars):
            return since, None
        end = self.page.floor(now)
        if since is None:
            return end - self.page.size * self.page.width, end
        return min(self.page.floor(since), end - self.page.width), end

    def check_range(self, start: datetime, now: datetime) -> None:
        """Raise ConfigurationError for a range that begins before the oldest that the API still gives."""
        oldest = self._oldest(now)
        if oldest is not None and start < oldest:
            raise ConfigurationError(
                f"{self.full_name}: the range starts at {start:%Y-%m-%d %H:%M}, but this API gives nothing "
                f"from before {oldest:%Y-%m-%d %H:%M} UTC any more"
            )

    def _oldest(self, now: datetime) -> datetime | None:
        bounds = [
            self.page.oldest(now) if isinstance(self.page, Bars) else None,
            self.cursor.oldest(now) if self.cursor else None,
        ]
        return max(filter(None, bounds), default=None)

    def chunks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Cut a backfill's range into windows; for bars at the boundaries between bars, complete ones only.

        Raises ConfigurationError for an end before the start, for a range without one complete bar, and for
        an endpoint that cannot be read by time.
        """
        if start >= end:
            raise ConfigurationError(
                f"the range ends ({end:%Y-%m-%d %H:%M}) before it starts ({start:%Y-%m-%d %H:%M})"
            )
        if not self.takes_range or self.cursor is None:
            raise ConfigurationError(f"{self.full_name} cannot be asked for a range of time")
        if not isinstance(self.page, Bars):
            return self.cursor.chunks(start, end)
        first, last = self.page.ceil(start), self.page.floor(end)
        if first >= last:
            raise ConfigurationError(
                f"{self.full_name}: no bar of {self.page.interval} lies completely in the range"
            )
        return self.cursor.chunks(first, last, self.page.width)

    def finished(self, unit: Unit, cursor_seen: str | None) -> str | None:
        """The cursor to commit when the unit is done, None to leave it where it is.

        For bars at least the window's last bar, even if nothing was traded: a gap is not read for ever.
        """
        if not isinstance(self.page, Bars) or unit.end is None:
            return cursor_seen
        return max(cursor_seen or "", to_cursor(self.page.floor(unit.end) - self.page.width))

    @property
    def timed(self) -> bool:
        """Whether the cursor holds times."""
        if self.cursor is None:
            return False
        if not self.generic:
            return kind_of(self.table.columns[self.cursor.field]) is datetime
        return self.page.of_time or self.cursor.of_times

    def _since(self, symbol: str, cursor: str | None) -> datetime | None:
        if cursor is None or self.cursor is None or not self.timed:
            return None
        try:
            return iso(cursor) - self.cursor.overlap
        except ValueError as error:
            raise ConfigurationError(
                f"the cursor of {self.full_name} / {symbol} is {cursor!r}, which is no time"
            ) from error

    def first(self, unit: Unit, known: Known | None = None) -> Checkpoint:
        """Where the unit starts; with what is known of the last complete read, if that is to be asked for."""
        if not self.declared:
            return {}
        begins = self.sync.begins(unit.cursor) if self.sync is not None else {}
        if begins.get("mode") == START:
            return begins
        asked = {"known": asdict(known)} if known is not None else {}
        return self.page.first(unit) | begins | asked

    def request(self, unit: Unit, checkpoint: Checkpoint) -> Request:
        """The call for this page."""
        return asking.request(self, unit, checkpoint)

    def weigh(self, unit: Unit, checkpoint: Checkpoint | None = None) -> float:
        """What one call costs. Raises ConfigurationError for more than `weight_max`."""
        if checkpoint and "ids" in checkpoint and self.detail is not None and self.detail.weight is not None:
            return float(self.detail.weight)
        if not callable(self.weight):
            return float(self.weight)
        found = float(self.weight(unit))
        if not 0 < found <= self.weight_max:
            raise ConfigurationError(
                f"{self.full_name}: weight gave {found:g}; it may give up to {self.weight_max:g}"
            )
        return found

    def read(self, unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
        """The rows of an answer, each of them checked, and where to go on.

        Raises the error that the answer is (see `Api.error_of`), and BadPayloadError for a body that is not
        what was declared, or that is broken in more than half of its rows. Fewer bad rows are set apart.
        """
        return reading.read(self, unit, checkpoint, answer)

    def take(self, unit: Unit, checkpoint: Checkpoint, fetched: Fetched, answer: Answer | None) -> Page:
        """The rows that a function fetched, each of them checked; `answer` is the last one it was given.

        Raises BadPayloadError where more than half of the rows are not what was declared.
        """
        return reading.take(self, unit, checkpoint, fetched, answer)

    def stamped(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a Page with their source, where the table tells sources apart."""
        source = {FILLED_BY_STORE: self.api.name} if FILLED_BY_STORE in self.table.columns else {}
        return [{**source, **row} for row in rows]


def _check(endpoint: Endpoint) -> None:
    full, page = endpoint.full_name, endpoint.page
    checks.name(endpoint.name, f"an endpoint of {endpoint.api.name}")
    checks.parse(full, endpoint.parse)
    checks.page(full, page)
    checks.rows(full, endpoint.rows)
    checks.fetch(full, endpoint)
    of_symbol = ["symbol", *checks.pattern(full, endpoint.symbol_pattern)]
    used = checks.templates(full, endpoint, [*of_symbol, *placeholders(page)]) & set(of_symbol)
    if endpoint.declared and bool(used) != (endpoint.symbols is not None):
        raise ConfigurationError(
            f"{full}: path, params or headers use {{{min(used)}}}, but symbols is missing"
            if used
            else f"{full}: symbols are declared, but neither path, params nor headers use {{symbol}}"
        )
    table = None if endpoint.generic else endpoint.table
    for value, allowed, what in (
        (endpoint.on_open, (None, *get_args(OnOpen)), "on_open"),
        (endpoint.catch_up, get_args(CatchUp), "catch_up"),
        (endpoint.overlap, get_args(Overlap), "overlap"),
    ):
        checks.one_of(full, what, value, allowed)
    checks.params(full, endpoint.params, page, endpoint.cursor)
    checks.sync(full, endpoint)
    checks.conditional(full, endpoint)
    checks.key(full, endpoint.key, table)
    checks.cursor(full, endpoint.cursor, page, table)
    check_source(endpoint)
    for each in endpoint.symbols if isinstance(endpoint.symbols, tuple) else ():
        checks.symbol(full, each, endpoint.symbol_pattern)
