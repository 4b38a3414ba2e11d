"""The declarative form: an `Api` and its endpoints.

    binance = Api("binance", "https://api.binance.com", limits=[Limit("6000/1m", per="ip")])

    @binance.endpoint("/api/v3/klines", symbols=["BTCUSDT"], params={"symbol": "{symbol}"}, page=…, key=…)
    def klines(row, unit):
        return {"symbol": unit.symbol, "open_time": ms(row[0]), …}

The decorated function turns one row of an answer into one row of a table. It is pure and never given the
session, so nothing can call an API past the guard. Everything is checked where it is declared: a mistake
raises ConfigurationError at import, naming endpoint and field.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any, TypeVar

from sqlalchemy import Table

from resilience.errors import ConfigurationError, PenstockError
from resilience.policy import BreakerPolicy, Limit, RetryPolicy
from tasks.collectors import checks
from tasks.collectors.auth import Auth, check_names
from tasks.collectors.checks import BreakerPer
from tasks.collectors.details import Detail
from tasks.collectors.endpoint import CatchUp, Endpoint, OnOpen, Overlap, Weight
from tasks.collectors.fields import duration
from tasks.collectors.oauth import TokenAuth
from tasks.collectors.paging import Paging, Single
from tasks.collectors.rows import Where
from tasks.collectors.rules import Rule, classify, refuses
from tasks.collectors.sources import FromEndpoint, FromTable, Symbols
from tasks.collectors.sync import Sync
from tasks.collectors.tiers import Tier
from tasks.collectors.tiers import check as check_tiers
from tasks.collectors.times import Cursor
from tasks.collectors.values import Answer, Checkpoint, Fetch, Page, Request, Unit
from tasks.models import records
from tasks.overrides import closest, override_breaker, override_retry

__all__ = ["Answer", "Api", "Checkpoint", "Endpoint", "Page", "Request", "Rule", "Unit"]

P = TypeVar("P", bound=Callable[..., Any])

_SETTINGS = frozenset({"symbols", "every", "catch_up", "overlap"})


class Api:
    """A service that is called over HTTP: where it is, what it allows, what its errors mean, who we are to
    it.

    `limits` and `rules` are what its documentation says; an endpoint may add limits of its own. A rule of the
    Api comes before the built-in reading of a status. `timeout` shortens the total time of a call. Each
    endpoint has a circuit of its own, with `breaker_per=("api",)` they share one, with both they have both.
    `secret_headers` name the secrets that headers beside that of `auth` take their values from.
    """

    def __init__(
        self,
        # Needed, and yet with a default: the checks say better than Python what is missing.
        name: str = "",
        base_url: str = "",
        *,
        limits: Sequence[Limit] = (),
        rules: Sequence[Rule] = (),
        auth: Auth | None = None,
        headers: Mapping[str, str] | None = None,
        secret_headers: Mapping[str, str] | None = None,
        breaker: BreakerPolicy | None = None,
        breaker_per: Sequence[BreakerPer] = ("endpoint",),
        retry: RetryPolicy | None = None,
        timeout: str | timedelta | None = None,
    ) -> None:
        checks.name(name, "a collector")
        checks.base_url(name, base_url)
        self.name = name
        self.base_url = base_url.rstrip("/")
        self.host: str | None = None  # what messages say in place of a secret one
        self.limits = checks.limits(name, limits)
        self.rules = tuple(rules)
        self.auth = checks.auth(name, auth)
        self.account: str | None = None  # whose credentials `auth` has, where they are not those of the Api
        self.headers = MappingProxyType(dict(headers or {}))
        self.secret_headers = MappingProxyType(dict(secret_headers or {}))
        check_names(f"{name}: secret_headers", *self.secret_headers.values())
        self.breaker = breaker or BreakerPolicy()
        self.breaker_per = checks.breaker_per(name, breaker_per)
        self.retry = retry or RetryPolicy()
        self.timeout_s = (
            duration(timeout, f"{name}: timeout").total_seconds() if timeout is not None else None
        )
        self.endpoints: dict[str, Endpoint] = {}

    def __repr__(self) -> str:
        return f"<Api {self.name}: {', '.join(self.endpoints) or 'no endpoints'}>"

    def endpoint(
        self,
        path: str = "",
        *,
        key: str | Sequence[str] = (),
        symbols: Sequence[str] | Callable[[], Iterable[str]] | FromTable | FromEndpoint | None = None,
        symbol_pattern: str | None = None,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        page: Paging | None = None,
        cursor: Cursor | None = None,
        table: Table | None = None,
        weight: Weight = 1,
        weight_max: float = 0,
        every: str | timedelta | None = None,
        catch_up: CatchUp = "latest",
        overlap: Overlap = "skip",
        limits: Sequence[Limit] = (),
        rows: Where = None,
        on_open: OnOpen | None = None,
        expect_rows: bool = False,
        detail: Detail | None = None,
        sync: Sync | None = None,
        conditional: bool = False,
        fetch: Fetch | None = None,
        tiers: Sequence[Tier] = (),
    ) -> Callable[[P], P]:
        """Declare an endpoint; the decorated parse function gives it its name and stays what it is.

        `path`, `params` and `headers` may use {symbol}, the named groups of `symbol_pattern` and, with Bars,
        {interval} ("1m") and {interval_s} (60). `key` names the fields that identify a row. `rows` is where
        the list of rows stands in the body ("data"), a function that finds it there, or None for the body
        itself. Without a `table` the rows are kept as JSON. With `expect_rows` a unit without any row is an
        error, for APIs that always have some.

        With `detail` the rows of a page are a list only, and each item is a call of its own. `sync` reads
        everything once and then what has changed. `conditional` asks for an answer only if it is another than
        the last time, by ETag or Last-Modified of the first page: those have to change with any page.

        `fetch(unit, checkpoint, session)`, in place of a path, makes the calls itself, through a guarded
        `requests.Session`, and returns Fetched(rows, next=…), one page after the other. `tiers` are several
        ways to the same rows, the best one first, with a circuit each.
        """
        if path or not (fetch or tiers):
            checks.path(self.name, path)

        def register(parse: P) -> P:
            name = parse.__name__
            if name in self.endpoints:
                raise ConfigurationError(f"{self.name}.{name} is declared twice")
            self.endpoints[name] = Endpoint(
                api=self,
                name=name,
                path=path,
                parse=parse,
                key=(key,) if isinstance(key, str) else tuple(key),
                params=dict(params or {}),
                headers=dict(headers or {}),
                symbols=_symbols(f"{self.name}.{name}", symbols),
                symbol_pattern=symbol_pattern,
                page=page or Single(),
                cursor=cursor,
                table=records if table is None else table,
                weight=weight,
                weight_max=weight_max,
                every=duration(every, f"{self.name}.{name}: every") if every is not None else None,
                catch_up=catch_up,
                overlap=overlap,
                limits=checks.limits(f"{self.name}.{name}", limits),
                rows=rows,
                on_open=on_open,
                expect_rows=expect_rows,
                detail=detail,
                sync=sync,
                conditional=conditional,
                fetch=fetch,
                tiers=check_tiers(f"{self.name}.{name}", tiers, path, fetch),
            )
            return parse

        return register

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that a call takes."""
        return (*(self.auth.secrets if self.auth is not None else ()), *self.secret_headers.values())

    def error_of(self, answer: Answer) -> PenstockError | None:
        """The error that this answer is, None for a good one. Reads status, headers and the first 4 KB."""
        return classify(self.name, self.rules, answer)

    def refuses(self, answer: Answer) -> bool:
        """Whether the answer refuses our credentials, and not only what was asked for with them."""
        return refuses(self.rules, answer)

    def with_overrides(
        self,
        *,
        base_url: str | None = None,
        token_url: str | None = None,
        limits: Sequence[str] = (),
        breaker: Mapping[str, Any] | None = None,
        retry: Mapping[str, Any] | None = None,
        endpoints: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> "Api":
        """The same collector with an installation's settings laid over it; this one stays as it is.

        Each text of `limits` changes the amount of the next declared limit of its kind (per window, or at
        once), and a burst above it comes down to it; limits that none speaks of stay. `breaker` and `retry`
        change single values of the policies, `endpoints` the `symbols` and `every` of each. Raises
        ConfigurationError for anything else.
        """
        changed = copy(self)
        if token_url is not None:
            if not isinstance(self.auth, TokenAuth):
                raise ConfigurationError(f"{self.name} has no token_url: its auth fetches no tokens")
            changed.auth = self.auth.at(token_url)
        checks.base_url(self.name, base_url or self.base_url)
        changed.base_url = (base_url or self.base_url).rstrip("/")
        changed.limits = _limits(self.limits, limits)
        changed.breaker = override_breaker(self.breaker, breaker or {})
        changed.retry = override_retry(self.retry, retry or {})
        changed.endpoints = {}
        given = endpoints or {}
        for unknown in given.keys() - self.endpoints.keys():
            raise ConfigurationError(
                f"{self.name} has no endpoint {unknown!r}; {closest(unknown, self.endpoints)}"
            )
        for name, endpoint in self.endpoints.items():
            weight_max = endpoint.weight_max if callable(endpoint.weight) else 0
            settings = _settings(endpoint, given.get(name, {}))
            changed.endpoints[name] = replace(endpoint, api=changed, weight_max=weight_max, **settings)
        return changed


def _settings(endpoint: Endpoint, given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise ConfigurationError(
            f"the settings of {endpoint.full_name} are {given!r}, but have to be a table"
        )
    for unknown in given.keys() - _SETTINGS:
        raise ConfigurationError(
            f"{endpoint.full_name} has no setting {unknown!r}; {closest(unknown, _SETTINGS)}"
        )
    found = dict(given)
    if "symbols" in found:
        found["symbols"] = _symbols(endpoint.full_name, found["symbols"])
    if "every" in found:
        found["every"] = duration(found["every"], f"{endpoint.full_name}: every")
    return found


def _symbols(endpoint: str, given: Any) -> Symbols:
    if given is None or callable(given) or isinstance(given, FromTable | FromEndpoint):
        symbols: Symbols = given
        return symbols
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise ConfigurationError(
            f"{endpoint}: symbols is {given!r}, but has to be a list of symbols, a function, FromTable or "
            "FromEndpoint"
        )
    return tuple(given)


def _sort(limit: Limit) -> str:
    """What a text of a settings file tells apart: a rate, a budget, or calls in flight."""
    return "bucket" if limit.kind == "window" else limit.kind


def _limits(declared: Iterable[Limit], given: Iterable[str]) -> tuple[Limit, ...]:
    """The declared limits with other amounts: each text replaces the next one of its kind, or is added."""
    limits = list(declared)
    places: dict[str, list[int]] = {}
    for n, each in enumerate(limits):
        places.setdefault(_sort(each), []).append(n)
    for text in given:
        wanted = Limit(text, per=limits[0].per if limits else "api")
        if there := places.get(_sort(wanted)):
            place = there.pop(0)
            limits[place] = _amended(limits[place], wanted)
        else:
            limits.append(wanted)
    return tuple(limits)


def _amended(limit: Limit, wanted: Limit) -> Limit:
    """The limit with another amount; its burst and the bounds of its rate come along where they have to."""
    rate = wanted.amount / wanted.window_s if wanted.window_s else 0.0
    return replace(
        limit,
        spec=wanted.spec,
        burst=None if limit.burst is None else min(limit.burst, wanted.amount),
        min_rate=None if limit.min_rate is None else min(limit.min_rate, rate),
        max_rate=None if limit.max_rate is None else max(limit.max_rate, rate),
    )
