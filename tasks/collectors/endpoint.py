"""One way to data: which units it has, what to send for a page, and what the answer means."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

from sqlalchemy import Table

from resilience.errors import ConfigurationError, PenstockError
from resilience.policy import Limit
from tasks.collectors import checks
from tasks.collectors.auth import in_query
from tasks.collectors.fields import iso, plain, to_cursor
from tasks.collectors.links import Link, on_host
from tasks.collectors.paging import Bars, Cursor, Paging, Single
from tasks.collectors.rows import (
    FILLED_BY_STORE,
    Shape,
    Where,
    bad_payload,
    decode,
    items,
    kind_of,
    shape_of,
    why,
)
from tasks.collectors.rules import Rule
from tasks.collectors.sources import FromEndpoint, FromTable, Symbols
from tasks.collectors.sources import check as check_source
from tasks.collectors.tiers import Tier
from tasks.collectors.values import Answer, Checkpoint, Fetch, Fetched, Page, Reply, Request, Unit
from tasks.models import records

if TYPE_CHECKING:
    from tasks.collectors.spec import Api

Parse = Callable[[Any, Unit], Mapping[str, Any]]
OnOpen = Literal["skip", "park"]
CatchUp = Literal["none", "latest", "all"]
Overlap = Literal["skip", "queue", "replace"]
Weight = float | Callable[[Unit], float]

# A `Date` header names whole seconds, and servers keep one for a second: the true time is up to this later.
DATE_LAG = timedelta(seconds=2)
_KEY_MAX = 500  # characters, as in the records table
_CHECKPOINT_MAX = 10_000  # characters: it is written with each page, and tokens go into the next address


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
    fetch: Fetch | None = field(default=None, repr=False)
    tiers: tuple[Tier, ...] = ()
    shape: Shape = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        known_weight = self.weight_max or None
        most = checks.weight(self.full_name, self.weight, known_weight, (*self.api.limits, *self.limits))
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
        return isinstance(self.page, Bars) or bool(self.functions) or bool(self.cursor and self.cursor.param)

    def window(
        self, symbol: str, cursor: str | None, now: datetime
    ) -> tuple[datetime | None, datetime | None]:
        """What a run without an explicit range collects.

        Bars: from the cursor (less its lag) to the last bar that is complete at `now`, or one page back where
        there is no cursor yet. Others: everything since the cursor, less its lag.
        """
        since, oldest = self._since(symbol, cursor), self._oldest(now)
        if since is not None and oldest is not None:
            since = max(since, oldest)
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
        return isinstance(self.page, Bars) or bool(self.cursor.lag or self.cursor.chunk)

    def _since(self, symbol: str, cursor: str | None) -> datetime | None:
        if cursor is None or self.cursor is None or not self.timed:
            return None
        try:
            return iso(cursor) - self.cursor.overlap
        except ValueError as error:
            raise ConfigurationError(
                f"the cursor of {self.full_name} / {symbol} is {cursor!r}, which is no time"
            ) from error

    def first(self, unit: Unit) -> Checkpoint:
        """Where the unit starts."""
        return self.page.first(unit) if self.declared else {}

    def request(self, unit: Unit, checkpoint: Checkpoint) -> Request:
        """The call for this page."""
        url = self._address(unit, checkpoint)
        values = self._values(unit.symbol)
        headers = {**self.api.headers, **_filled(self.headers, values)}
        if self._linked(checkpoint):
            return Request("GET", url, {}, headers)
        sent = _filled(self.params, values)
        sent |= self.cursor.sent(unit) if self.cursor else {}
        sent |= self.page.params(unit, checkpoint)
        return Request("GET", url, sent, headers)

    def _values(self, symbol: str) -> dict[str, str]:
        """What fills the placeholders: the symbol, the named groups of its pattern, the interval of bars."""
        match = re.fullmatch(self.symbol_pattern, symbol) if self.symbol_pattern is not None else None
        return {"symbol": symbol, **(match.groupdict("") if match else {}), **_of_bars(self.page)}

    def _linked(self, checkpoint: Checkpoint) -> bool:
        return isinstance(self.page, Link) and "link" in checkpoint

    def _address(self, unit: Unit, checkpoint: Checkpoint) -> str:
        if self._linked(checkpoint):
            return on_host(self.api.base_url, checkpoint["link"])
        values = self._values(unit.symbol)
        quoted = {name: quote(value, safe="") for name, value in values.items()}
        return self.api.base_url + self.path.format_map(quoted)

    def weigh(self, unit: Unit) -> float:
        """What one call costs. Raises ConfigurationError for more than `weight_max`."""
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
        error = self.api.error_of(answer)
        if error is not None:
            raise error
        if self.api.wants_restart(answer):
            return self._restart(unit, checkpoint, answer)
        with self._agreed(answer):
            body = decode(answer.body)
            found = items(body, self.rows)
            asked = self._address(unit, checkpoint)
            reply = Reply(body, found, answer.headers, asked, in_query(self.api.auth))
            return self._page(found, unit, answer, lambda: self._following(unit, checkpoint, reply))

    def take(self, unit: Unit, checkpoint: Checkpoint, fetched: Fetched, answer: Answer | None) -> Page:
        """The rows that a function fetched, each of them checked; `answer` is the last one it was given.

        Raises BadPayloadError where more than half of the rows are not what was declared.
        """
        with self._agreed(answer):
            return self._page(fetched.rows, unit, answer, lambda: _after(fetched.next, checkpoint))

    @contextmanager
    def _agreed(self, answer: Answer | None) -> Iterator[None]:
        """Turn whatever a body that is not as agreed raises into BadPayloadError."""
        try:
            yield
        except PenstockError:
            raise
        except Exception as broken:
            raise self._bad_payload(why(broken), answer) from broken

    def _bad_payload(self, said: str, answer: Answer | None) -> PenstockError:
        body, status = (answer.body, answer.status) if answer else (b"", 0)
        return bad_payload(self.full_name, said, body, status)

    def _page(
        self,
        found: Sequence[Any],
        unit: Unit,
        answer: Answer | None,
        following: Callable[[], Checkpoint | None],
    ) -> Page:
        """The rows as they are stored, those that cannot be, and the highest value of the cursor.

        A page that is broken for the most part is no page with broken rows, but a service that is broken.
        """
        rows = self.shape.sort_out(found, lambda raw: self._row(raw, unit))
        if 2 * rows.bad_rows > len(found):
            many = f"{rows.bad_rows} of {len(found)} rows are broken, the first by " if len(found) > 1 else ""
            raise self._bad_payload(many + rows.bad[0].reason, answer)
        inside = self._inside(rows.good, unit, answer)
        highest = (
            max((to_cursor(row[self.cursor.field]) for row, _ in inside), default=None)
            if self.cursor
            else None
        )
        return Page([kept for _, kept in inside], following(), highest, rows.bad, rows.bad_rows)

    def _row(self, raw: Any, unit: Unit) -> tuple[dict[str, Any], dict[str, Any]]:
        """A checked row, and what is stored of it."""
        row = self.shape.checked(self.parse(raw, unit))
        if self.cursor is not None:
            name = self.cursor.field
            if not isinstance(row.get(name), datetime if self.timed else datetime | str):
                raise TypeError(f"{name} is {type(row.get(name)).__name__}, which is no cursor")
        return row, self._record(row, unit) if self.generic else row

    def stamped(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The rows of a Page with their source, where the table tells sources apart."""
        source = {FILLED_BY_STORE: self.api.name} if FILLED_BY_STORE in self.table.columns else {}
        return [{**source, **row} for row in rows]

    def _record(self, row: Mapping[str, Any], unit: Unit) -> dict[str, Any]:
        data = plain(row)
        values = [data[name] for name in self.key]
        key = str(values[0]) if len(values) == 1 else json.dumps(values, ensure_ascii=False)
        if len(key) > _KEY_MAX:
            raise ValueError(f"the key is longer than {_KEY_MAX} characters")
        return {"endpoint": self.name, "key": key, "symbol": unit.symbol, "data": data}

    def _inside(
        self, rows: list[tuple[dict[str, Any], dict[str, Any]]], unit: Unit, answer: Answer | None
    ) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """The rows inside the unit's window; of bars only those that are complete."""
        if self.cursor is None or not self.timed:
            return rows
        name = self.cursor.field
        # A bar that ends after the window, or after the server's own now, is not finished.
        first, last = unit.start, _earlier(unit.end, self._seen_at(answer))
        width = self.page.width if isinstance(self.page, Bars) else timedelta(microseconds=1)
        return [
            both
            for both in rows
            if (first is None or both[0][name] >= first) and (last is None or both[0][name] + width <= last)
        ]

    def _seen_at(self, answer: Answer | None) -> datetime | None:
        if answer is None:
            return None
        try:
            said = parsedate_to_datetime(answer.headers["date"]) if isinstance(self.page, Bars) else None
            return said and said + DATE_LAG
        except (KeyError, ValueError, TypeError):
            return None

    def _following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        after = self.page.following(unit, checkpoint, reply)
        if after is None:
            return None
        if len(json.dumps(after)) > _CHECKPOINT_MAX:
            raise ValueError(f"where the next page is has more than {_CHECKPOINT_MAX} characters")
        return after | {"restarted": True} if checkpoint.get("restarted") else after

    def _restart(self, unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
        first = self.first(unit)
        if checkpoint.get("restarted") or checkpoint == first:
            raise Rule("validation", status=answer.status).error(self.api.name, answer)
        return Page([], first | {"restarted": True}, None)


def _check(endpoint: Endpoint) -> None:
    full, page = endpoint.full_name, endpoint.page
    checks.name(endpoint.name, f"an endpoint of {endpoint.api.name}")
    checks.parse(full, endpoint.parse)
    checks.page(full, page)
    checks.rows(full, endpoint.rows)
    checks.fetch(full, endpoint)
    given = {"params": endpoint.params, "headers": endpoint.headers}
    of_symbol = ["symbol", *checks.pattern(full, endpoint.symbol_pattern)]
    used = checks.placeholders(full, endpoint.path, given, [*of_symbol, *_of_bars(page)])
    used &= set(of_symbol)
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
    checks.key(full, endpoint.key, table)
    checks.cursor(full, endpoint.cursor, page, table)
    check_source(endpoint)
    for each in endpoint.symbols if isinstance(endpoint.symbols, tuple) else ():
        checks.symbol(full, each, endpoint.symbol_pattern)


def _after(after: Checkpoint | None, checkpoint: Checkpoint) -> Checkpoint | None:
    """A function's next checkpoint, if it may be one."""
    if after is None:
        return None
    if plain(after) == plain(checkpoint):
        raise ValueError("`next` is the checkpoint that was just read")
    if len(json.dumps(after)) > _CHECKPOINT_MAX:
        raise ValueError(f"`next` is longer than {_CHECKPOINT_MAX} characters")
    return after


def _filled(templates: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    return {name: text.format_map(values) for name, text in templates.items()}


def _of_bars(page: Paging) -> dict[str, str]:
    if not isinstance(page, Bars):
        return {}
    return {"interval": page.interval, "interval_s": f"{page.width.total_seconds():.0f}"}


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one and other else one or other
