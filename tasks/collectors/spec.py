"""The declarative form: an `Api` and its endpoints.

    binance = Api("binance", "https://api.binance.com", limits=[Limit("6000/1m", per="ip")])

    @binance.endpoint("/api/v3/klines", symbols=["BTCUSDT"], params={"symbol": "{symbol}"}, page=…, key=…)
    def klines(row, unit):
        return {"symbol": unit.symbol, "open_time": ms(row[0]), …}

The decorated function turns one row of an answer into one row of a table. It is pure and never given the
session, so nothing can call an API past the guard. Everything is checked where it is declared: a mistake
raises ConfigurationError at import, naming endpoint and field.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from email.utils import parsedate_to_datetime
from types import MappingProxyType
from typing import Any, Literal, TypeVar
from urllib.parse import quote

from sqlalchemy import Table

from resilience.errors import ConfigurationError, PenstockError
from resilience.policy import BreakerPolicy, Limit, RetryPolicy
from tasks.collectors import checks
from tasks.collectors.auth import Auth
from tasks.collectors.fields import duration, iso, plain, to_cursor
from tasks.collectors.paging import Bars, Cursor, Paging, Single
from tasks.collectors.rows import Shape, bad_payload, decode, items, kind_of, shape_of
from tasks.collectors.rules import RESTART, Rule, classify
from tasks.collectors.values import Answer, Checkpoint, Page, Request, Unit

__all__ = ["Answer", "Api", "Checkpoint", "Endpoint", "Page", "Request", "Rule", "Unit"]

Parse = Callable[[Any, Unit], Mapping[str, Any]]
P = TypeVar("P", bound=Callable[..., Any])
OnOpen = Literal["skip", "park"]
Symbols = tuple[str, ...] | Callable[[], Sequence[str]] | None
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
    symbols: Symbols = None
    symbol_pattern: str | None = None
    page: Paging = field(default_factory=Single)
    cursor: Cursor | None = None
    table: Table | None = field(default=None, repr=False)
    weight: Weight = 1
    weight_max: float = 0
    every: timedelta | None = None
    limits: tuple[Limit, ...] = ()
    rows: str | None = None
    on_open: OnOpen | None = None
    shape: Shape = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _check(self)
        known_weight = self.weight_max or None
        most = checks.weight(self.full_name, self.weight, known_weight, (*self.api.limits, *self.limits))
        object.__setattr__(self, "weight_max", most)
        object.__setattr__(self, "shape", shape_of(self.table, self.key))

    @property
    def full_name(self) -> str:
        """Collector and endpoint: "binance.klines"."""
        return f"{self.api.name}.{self.name}"

    def check_symbols(self, requested: Sequence[str] | None = None) -> tuple[str, ...]:
        """The symbols to collect: those asked for, else the declared ones; each once, in order.

        Raises ConfigurationError for one that cannot be a symbol here, and where there are none at all.
        """
        if self.symbols is None:
            if requested:
                raise ConfigurationError(f"{self.full_name} has no symbols; it is collected as a whole")
            return ("",)
        if not requested:
            requested = self.symbols() if callable(self.symbols) else self.symbols
        if not requested:
            raise ConfigurationError(
                f"{self.full_name} has no symbols yet: name some in the settings or with --symbols"
            )
        return tuple(
            dict.fromkeys(checks.symbol(self.full_name, each, self.symbol_pattern) for each in requested)
        )

    def window(
        self, symbol: str, cursor: str | None, now: datetime
    ) -> tuple[datetime | None, datetime | None]:
        """What a run without an explicit range collects.

        Bars: from the cursor (less its lag) to the last bar that is complete at `now`, or one page back where
        there is no cursor yet. Others: everything since the cursor, less its lag.
        """
        since = self._since(symbol, cursor)
        if not isinstance(self.page, Bars):
            return since, None
        end = self.page.floor(now)
        if since is None:
            return end - self.page.size * self.page.width, end
        return min(self.page.floor(since), end - self.page.width), end

    def chunks(self, start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
        """Cut a backfill's range into windows; for bars at the boundaries between bars, complete ones only.

        Raises ConfigurationError for an end before the start, for a range without one complete bar, and for
        an endpoint that cannot be read by time.
        """
        if start >= end:
            raise ConfigurationError(
                f"the range ends ({end:%Y-%m-%d %H:%M}) before it starts ({start:%Y-%m-%d %H:%M})"
            )
        if not self.timed or self.cursor is None:
            raise ConfigurationError(
                f"{self.full_name} has no cursor that holds times, so a range of time means nothing"
            )
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
        if self.table is not None:
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
        return self.page.first(unit)

    def request(self, unit: Unit, checkpoint: Checkpoint) -> Request:
        """The call for this page."""
        values = _values(unit.symbol, self.page)
        quoted = {name: quote(value, safe="") for name, value in values.items()}
        sent = {name: text.format_map(values) for name, text in self.params.items()}
        sent |= self.cursor.sent(unit) if self.cursor else {}
        sent |= self.page.params(unit, checkpoint)
        return Request("GET", self.api.base_url + self.path.format_map(quoted), sent, self.api.headers)

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
        """The rows of an answer, all of them checked, and where to go on.

        Raises the error that the answer is (see `Api.error_of`), and BadPayloadError for a body that is not
        what was declared: no row is kept of a page that holds one broken row.
        """
        error = self.api.error_of(answer)
        if error is not None:
            raise error
        if self.api.wants_restart(answer):
            return self._restart(unit, checkpoint, answer)
        try:
            body = decode(answer.body)
            rows = self.shape.unique(self.parse(row, unit) for row in items(body, self.rows))
            kept, highest = self._kept(rows, unit, answer)
            return Page(kept, self._following(unit, checkpoint, body), highest)
        except PenstockError:
            raise
        except Exception as broken:
            why = f"{type(broken).__name__}: {broken}"[:300]
            raise bad_payload(self.full_name, why, answer.body, answer.status) from broken

    def _kept(
        self, rows: list[dict[str, Any]], unit: Unit, answer: Answer
    ) -> tuple[list[dict[str, Any]], str | None]:
        """The rows inside the unit's window, and the highest cursor value among them."""
        if self.cursor is None:
            return self._plain(rows), None
        name = self.cursor.field
        for row in rows:
            if not isinstance(row.get(name), datetime if self.timed else datetime | str):
                raise TypeError(f"{name} is {type(row.get(name)).__name__}, which is no cursor")
        if self.timed:
            first, last = unit.start, _earlier(unit.end, self._seen_at(answer))
            width = self.page.width if isinstance(self.page, Bars) else timedelta(microseconds=1)
            # A bar that ends after the window, or after the server's own now, is not finished.
            rows = [
                row
                for row in rows
                if (first is None or row[name] >= first) and (last is None or row[name] + width <= last)
            ]
        return self._plain(rows), max((to_cursor(row[name]) for row in rows), default=None)

    def _plain(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [plain(row) for row in rows] if self.table is None else rows

    def _seen_at(self, answer: Answer) -> datetime | None:
        try:
            return parsedate_to_datetime(answer.headers["date"]) if isinstance(self.page, Bars) else None
        except (KeyError, ValueError, TypeError):
            return None

    def _following(self, unit: Unit, checkpoint: Checkpoint, body: Any) -> Checkpoint | None:
        after = self.page.following(unit, checkpoint, body)
        return after | {"restarted": True} if after is not None and checkpoint.get("restarted") else after

    def _restart(self, unit: Unit, checkpoint: Checkpoint, answer: Answer) -> Page:
        first = self.first(unit)
        if checkpoint.get("restarted") or checkpoint == first:
            raise Rule("validation", status=answer.status).error(self.api.name, answer)
        return Page([], first | {"restarted": True}, None)


class Api:
    """A service that is called over HTTP: where it is, what it allows, what its errors mean, who we are to
    it.

    `limits` and `rules` are what its documentation says; an endpoint may add limits of its own. A rule of the
    Api comes before the built-in reading of a status. `timeout` shortens the total time of a call.
    """

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        limits: Sequence[Limit] = (),
        rules: Sequence[Rule] = (),
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        breaker: BreakerPolicy | None = None,
        retry: RetryPolicy | None = None,
        timeout: str | timedelta | None = None,
    ) -> None:
        checks.name(name, "a collector")
        checks.base_url(name, base_url)
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.limits = tuple(limits)
        self.rules = tuple(rules)
        self.auth = auth
        self.headers = MappingProxyType(dict(headers or {}))
        self.breaker = breaker or BreakerPolicy()
        self.retry = retry or RetryPolicy()
        self.timeout_s = (
            duration(timeout, f"{name}: timeout").total_seconds() if timeout is not None else None
        )
        self._endpoints: dict[str, Endpoint] = {}

    def __repr__(self) -> str:
        return f"<Api {self.name}: {', '.join(self._endpoints) or 'no endpoints'}>"

    @property
    def endpoints(self) -> Mapping[str, Endpoint]:
        """The endpoints by name, in the order in which they were declared."""
        return MappingProxyType(self._endpoints)

    def endpoint(
        self,
        path: str,
        *,
        key: Sequence[str] = (),
        symbols: Sequence[str] | Callable[[], Sequence[str]] | None = None,
        symbol_pattern: str | None = None,
        params: Mapping[str, str] | None = None,
        page: Paging | None = None,
        cursor: Cursor | None = None,
        table: Table | None = None,
        weight: Weight = 1,
        weight_max: float = 0,
        every: str | timedelta | None = None,
        limits: Sequence[Limit] = (),
        rows: str | None = None,
        on_open: OnOpen | None = None,
    ) -> Callable[[P], P]:
        """Declare an endpoint; the decorated parse function gives it its name and stays what it is.

        `path` and `params` may use {symbol} and, with Bars, {interval} ("1m") and {interval_s} (60). `key`
        names the fields that identify a row. `rows` is where the list of rows stands in the body ("data"),
        None for the body itself. Without a `table` the rows are kept as JSON.
        """

        def register(parse: P) -> P:
            name = parse.__name__
            if name in self._endpoints:
                raise ConfigurationError(f"{self.name}.{name} is declared twice")
            self._endpoints[name] = Endpoint(
                api=self,
                name=name,
                path=path,
                parse=parse,
                key=key if isinstance(key, str) else tuple(key),  # type: ignore[arg-type]  # a text is refused with a sentence
                params=dict(params or {}),
                symbols=symbols
                if symbols is None or callable(symbols)
                else _texts(f"{self.name}.{name}", symbols),
                symbol_pattern=symbol_pattern,
                page=page or Single(),
                cursor=cursor,
                table=table,
                weight=weight,
                weight_max=weight_max,
                every=duration(every, f"{self.name}.{name}: every") if every is not None else None,
                limits=tuple(limits),
                rows=rows,
                on_open=on_open,
            )
            return parse

        return register

    def error_of(self, answer: Answer) -> PenstockError | None:
        """The error that this answer is, None for a good one. Reads status, headers and the first 4 KB."""
        return classify(self.name, self.rules, answer)

    def wants_restart(self, answer: Answer) -> bool:
        """Whether the answer says that the checkpoint is stale and the unit has to begin again."""
        return next((rule.outcome for rule in self.rules if rule.matches(answer)), None) == RESTART

    def with_overrides(
        self,
        *,
        base_url: str | None = None,
        limits: Sequence[Limit | str] | None = None,
        endpoints: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "Api":
        """The same collector with settings laid over it; this one stays as it is.

        `limits` replaces the declared ones; a text such as "3000/1m" changes the amount of the one in its
        place. `endpoints` may change `symbols` and `every` of each. Raises ConfigurationError for anything
        else.
        """
        changed = Api(
            self.name,
            base_url or self.base_url,
            limits=self.limits if limits is None else _limits(self, limits),
            rules=self.rules,
            auth=self.auth,
            headers=self.headers,
            breaker=self.breaker,
            retry=self.retry,
            timeout=timedelta(seconds=self.timeout_s) if self.timeout_s is not None else None,
        )
        unknown = set(endpoints or {}) - set(self._endpoints)
        if unknown:
            raise ConfigurationError(
                f"{self.name} has no endpoint {unknown.pop()!r}; it has {', '.join(self._endpoints)}"
            )
        for name, endpoint in self._endpoints.items():
            settings = _settings(endpoint, (endpoints or {}).get(name, {}))
            weight_max = endpoint.weight_max if callable(endpoint.weight) else 0
            changed._endpoints[name] = replace(endpoint, api=changed, weight_max=weight_max, **settings)
        return changed


def _settings(endpoint: Endpoint, given: Mapping[str, Any]) -> dict[str, Any]:
    unknown = set(given) - {"symbols", "every"}
    if unknown:
        raise ConfigurationError(
            f"{endpoint.full_name} has no setting {unknown.pop()!r}; it has symbols and every"
        )
    found: dict[str, Any] = {}
    if given.get("symbols") is not None:
        found["symbols"] = _texts(endpoint.full_name, given["symbols"])
    if given.get("every") is not None:
        found["every"] = duration(given["every"], f"{endpoint.full_name}: every")
    return found


def _texts(endpoint: str, given: Any) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigurationError(f"{endpoint}: symbols is {given!r}, but has to be a list of symbols")
    return tuple(given)


def _limits(api: Api, given: Sequence[Limit | str]) -> tuple[Limit, ...]:
    unmatched = given[len(api.limits) :]
    if isinstance(given, str) or any(isinstance(each, str) for each in unmatched):
        raise ConfigurationError(
            f"{api.name}: limits has to be a list of up to {len(api.limits)} amounts such as '60/1m'"
        )
    return tuple(
        replace(api.limits[place], spec=each) if isinstance(each, str) else each
        for place, each in enumerate(given)
    )


def _check(endpoint: Endpoint) -> None:
    full, page = endpoint.full_name, endpoint.page
    checks.name(endpoint.name, f"an endpoint of {endpoint.api.name}")
    checks.parse(full, endpoint.parse)
    used = checks.placeholders(full, endpoint.path, endpoint.params, _values("", page))
    if ("symbol" in used) != (endpoint.symbols is not None):
        raise ConfigurationError(
            f"{full}: path or params use {{symbol}}, but symbols is missing"
            if "symbol" in used
            else f"{full}: symbols are declared, but neither path nor params use {{symbol}}"
        )
    checks.params(full, endpoint.params, page, endpoint.cursor)
    checks.key(full, endpoint.key, endpoint.table)
    checks.cursor(full, endpoint.cursor, page, endpoint.table)
    for each in endpoint.symbols if isinstance(endpoint.symbols, tuple) else ():
        checks.symbol(full, each, endpoint.symbol_pattern)


def _values(symbol: str, page: Paging) -> dict[str, str]:
    values = {"symbol": symbol}
    if isinstance(page, Bars):
        values |= {"interval": page.interval, "interval_s": f"{page.width.total_seconds():.0f}"}
    return values


def _earlier(one: datetime | None, other: datetime | None) -> datetime | None:
    return min(one, other) if one and other else one or other
