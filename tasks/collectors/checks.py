"""What a declaration has to fulfil, checked where it is written: at import.

Each check raises ConfigurationError with a sentence that names the endpoint and the field.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from string import Formatter
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import urlsplit

from sqlalchemy import Table, UniqueConstraint

from resilience.errors import ConfigurationError
from resilience.policy import Limit, Per
from tasks.collectors.details import Detail
from tasks.collectors.paging import Paging, Single
from tasks.collectors.rows import FILLED_BY_STORE, kind_of
from tasks.collectors.spans import Bars
from tasks.collectors.sync import Sync
from tasks.collectors.times import Cursor

if TYPE_CHECKING:
    from tasks.collectors.endpoint import Endpoint

BreakerPer = Literal["endpoint", "api"]
SHARERS = get_args(get_args(Per)[0])

_NAME = re.compile(r"^[a-z][a-z0-9_]{0,40}$")


def name(text: str, what: str) -> None:
    """Names become queue names, keys and column values: small letters, digits, underscores."""
    if text == "":
        raise ConfigurationError(f"{what} has no name; it comes first, as in Api('shop', 'https://…')")
    if not isinstance(text, str) or not _NAME.match(text):
        raise ConfigurationError(
            f"{what} is called {text!r}; a name has small letters, digits and underscores only"
        )


def breaker_per(api: str, levels: Sequence[BreakerPer]) -> tuple[BreakerPer, ...]:
    """What has a circuit: each endpoint, the whole Api, or both."""
    known = get_args(BreakerPer)
    if isinstance(levels, str) or not levels or set(levels) - set(known) or len(set(levels)) < len(levels):
        raise ConfigurationError(
            f"{api}: breaker_per is {levels!r}, but has to be a list of {' and '.join(known)}"
        )
    return tuple(levels)


def limits(declared: str, given: Iterable[Limit]) -> tuple[Limit, ...]:
    """Limits, each of which is shared by somebody: a known word, or a function that says who."""
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if not all(isinstance(each, Limit) for each in found):
        raise ConfigurationError(
            f"{declared}: limits is {given!r}, but has to be a list like [Limit('60/1m')]"
        )
    for each in found:
        if not callable(each.per) and each.per not in SHARERS:
            raise ConfigurationError(
                f"{declared}: limit {each.spec!r} is per {each.per!r}; it is per {', '.join(SHARERS)}, "
                "or what a function of the symbol says"
            )
    return found


def base_url(api: str, url: str) -> None:
    """An http(s) address with a host, and neither credentials nor a query: secrets belong into `auth`."""
    if url == "":
        raise ConfigurationError(
            f"{api}: base_url is missing; it comes after the name, as in Api({api!r}, 'https://…')"
        )
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        fine = False
    if not fine or "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{api}: base_url has to look like 'https://api.example.com', without query or credentials"
        )


def fetch(endpoint: str, declared: "Endpoint") -> None:
    """A function that fetches takes (unit, checkpoint, session), alone unless a call is declared."""
    for function in declared.functions:
        try:
            inspect.signature(function).bind(None, None, None)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"{endpoint}: fetch has to be a function that takes (unit, checkpoint, session)"
            ) from error
    for field in ("detail", "sync", "conditional"):
        if declared.functions and getattr(declared, field):
            raise ConfigurationError(
                f"{endpoint}: {field} is for a declared call, without functions that fetch"
            )
    if declared.declared:
        return
    if not isinstance(declared.page, Single | Bars):
        raise ConfigurationError(
            f"{endpoint}: page is of no use beside fetch, which returns Fetched(rows, next=…); "
            "only Bars says something, of which length its bars are"
        )
    for field in ("path", "params", "headers", "rows"):
        if getattr(declared, field):
            raise ConfigurationError(f"{endpoint}: {field} is of no use beside fetch, which makes the calls")


def auth(api: str, auth: Any) -> Any:
    """Credentials, and not their class or a secret itself."""
    if auth is not None and (isinstance(auth, type) or not callable(getattr(auth, "apply", None))):
        # The value is not shown: it may be a secret.
        raise ConfigurationError(
            f"{api}: auth is a {type(auth).__name__}, but has to be credentials, "
            "as in auth=Bearer('SHOP_TOKEN')"
        )
    return auth


def path(api: str, path: Any) -> None:
    """An endpoint's path is there; a decorator without its brackets has the function in its place."""
    if not isinstance(path, str) or not path:
        raise ConfigurationError(
            f"{api}: the path of an endpoint is missing; it comes first, as in @{api}.endpoint('/orders', …)"
        )


def templates(endpoint: str, declared: "Endpoint", known: Sequence[str]) -> set[str]:
    """The placeholders that a declaration uses. Raises for one that nothing fills."""
    headers = {"headers": declared.headers}
    used = _used(endpoint, "path", declared.path, headers | {"params": declared.params}, known)
    if (detail := declared.detail) is not None:
        _instance(endpoint, "detail", detail, Detail)
        given = headers | {"detail.params": detail.params}
        found = _used(endpoint, "detail.path", detail.path, given, [*known, "id"])
        if "id" not in found:
            raise ConfigurationError(f"{endpoint}: neither path nor params of detail use {{id}}")
    if (sync := declared.sync) is not None:
        _instance(endpoint, "sync", sync, Sync)
        _used(endpoint, "sync.path", sync.path or "", {"sync.params": sync.params}, known)
        _used(endpoint, "sync.start", sync.start[0] if sync.start else "", {}, known)
    return used


def _instance(endpoint: str, field: str, value: Any, kind: type) -> None:
    if not isinstance(value, kind):
        raise ConfigurationError(f"{endpoint}: {field} is {value!r}, but has to be a {kind.__name__}(…)")


def _used(
    endpoint: str, field: str, path: str, given: Mapping[str, Mapping[str, str]], known: Iterable[str]
) -> set[str]:
    if path and not path.startswith("/"):
        raise ConfigurationError(f"{endpoint}: {field} is {path!r}, but has to begin with '/'")
    all_of_them = {field: path}
    for what, each in given.items():
        all_of_them |= {f"{what}[{name!r}]": template for name, template in each.items()}
    used: set[str] = set()
    for where, template in all_of_them.items():
        found = _placeholders(endpoint, where, template)
        if unknown := found - set(known):
            allowed = ", ".join(f"{{{each}}}" for each in known)
            raise ConfigurationError(f"{endpoint}: {where} uses {{{unknown.pop()}}}; it may use {allowed}")
        used |= found
    return used


def _placeholders(endpoint: str, field: str, template: str) -> set[str]:
    try:
        parts = list(Formatter().parse(template))
    except (ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{endpoint}: {field} is {template!r}, which is no template: {error}"
        ) from error
    return {found for _, found, _, _ in parts if found is not None}


def page(endpoint: str, page: Any) -> None:
    """A paging, and not its class or the name of a parameter."""
    if not isinstance(page, Paging):
        raise ConfigurationError(
            f"{endpoint}: page is {page!r}, but has to be a paging, as in page=Number(param='page', size=100)"
        )


def params(endpoint: str, declared: Mapping[str, str], page: Paging, cursor: Cursor | None) -> None:
    """No parameter is set twice."""
    sent = [*page.sends(), *(cursor.sends() if cursor else ())]
    for n, each in enumerate(sent):
        if each in declared:
            raise ConfigurationError(
                f"{endpoint}: params sets {each!r}, which its paging or its cursor sets too"
            )
        if each in sent[:n]:
            raise ConfigurationError(f"{endpoint}: its paging and its cursor set {each!r} twice")


def sync(endpoint: str, declared: "Endpoint") -> None:
    """What goes together with a sync token."""
    if (sync := declared.sync) is None:
        return
    if declared.page.of_time or declared.cursor is not None:
        raise ConfigurationError(
            f"{endpoint}: the token of sync is the cursor; neither `cursor` nor Bars or Window go with it"
        )
    if declared.expect_rows:
        raise ConfigurationError(f"{endpoint}: expect_rows is of no use beside sync: there may be no change")
    for each in sync.without:
        if each not in declared.params:
            raise ConfigurationError(f"{endpoint}: sync.without names {each!r}, which params does not set")
    if sync.param in {*declared.params, *sync.params, *declared.page.sends()}:
        raise ConfigurationError(f"{endpoint}: sync sets {sync.param!r}, which params or its paging set too")
    if sync.rows is not None:
        rows(endpoint, sync.rows)


def conditional(endpoint: str, declared: "Endpoint") -> None:
    """Validators are those of one request that is always the same; a time that moves on makes others."""
    if not declared.conditional:
        return
    if declared.page.of_time or declared.sync is not None or (declared.cursor and declared.cursor.is_sent):
        raise ConfigurationError(
            f"{endpoint}: conditional is of no use beside Bars, Window, sync or a cursor that is sent: "
            "each run asks for something else"
        )


def key(endpoint: str, key: Sequence[str], table: Table | None) -> None:
    """There is a key, and the table has its columns and keeps it unique: else an upsert doubles rows."""
    if not key or not all(isinstance(each, str) for each in key):
        raise ConfigurationError(
            f"{endpoint}: key is missing; name the fields that identify a row, as in key=('gid',)"
        )
    if table is None:
        return
    for each in key:
        if each not in table.columns:
            raise ConfigurationError(
                f"{endpoint}: key names {each!r}, but table {table.name} has no such column"
            )
    wanted = set(key) | ({FILLED_BY_STORE} & set(table.columns.keys()))
    if wanted not in _unique_sets(table):
        primary = ", ".join(c.name for c in table.primary_key if c.name != FILLED_BY_STORE)
        raise ConfigurationError(
            f"{endpoint}: key is ({', '.join(key)}), but table {table.name} keeps ({primary}) unique; "
            "an upsert needs the two to be the same"
        )


def _unique_sets(table: Table) -> list[set[str]]:
    uniques = [c for c in table.constraints if isinstance(c, UniqueConstraint)]
    return [{c.name for c in each.columns} for each in (table.primary_key, *uniques)]


def cursor(endpoint: str, cursor: Cursor | None, page: Paging, table: Table | None) -> None:
    """The cursor's field is a column that holds times or text; bars always have one, a time."""
    if cursor is None:
        if page.of_time:
            raise ConfigurationError(
                f"{endpoint}: cursor is missing; {type(page).__name__} needs the field of a row's time"
            )
        return
    if table is None:
        return
    if cursor.field not in table.columns:
        raise ConfigurationError(
            f"{endpoint}: cursor names {cursor.field!r}, but table {table.name} has no such column"
        )
    kind = kind_of(table.columns[cursor.field])
    if kind is not datetime and (page.of_time or cursor.of_times):
        raise ConfigurationError(
            f"{endpoint}: cursor {cursor.field!r} holds {kind.__name__}; "
            "lag, chunk, until, horizon, units such as 'http', Bars and Window need times"
        )
    if kind not in {datetime, str}:
        raise ConfigurationError(
            f"{endpoint}: cursor {cursor.field!r} holds {kind.__name__}; only times and text sort as text"
        )


def one_of(endpoint: str, field: str, value: Any, allowed: Sequence[Any]) -> None:
    """A word from a closed list."""
    if value not in allowed:
        known = ", ".join(str(each) for each in allowed if each is not None)
        raise ConfigurationError(f"{endpoint}: {field} is {value!r}; it is one of {known}")


def weight(endpoint: str, weight: Any, weight_max: float | None, limits: Iterable[Limit]) -> float:
    """The largest weight of a call. Raises where it is not known or more than a limit ever admits."""
    most = weight if isinstance(weight, int | float) else weight_max
    if most is None:
        raise ConfigurationError(
            f"{endpoint}: weight is a function; weight_max has to say what it gives at most"
        )
    if most <= 0:
        raise ConfigurationError(f"{endpoint}: weight is {most}, but has to be more than 0")
    for limit in limits:
        if not limit.at_once and most > limit.amount:
            raise ConfigurationError(
                f"{endpoint}: weight is {most:g}, more than limit {limit.spec!r} ever admits"
            )
    return float(most)


def parse(endpoint: str, function: Callable[..., Any]) -> None:
    """The parse function takes a row and the unit."""
    try:
        inspect.signature(function).bind(None, None)
    except TypeError as error:
        raise ConfigurationError(f"{endpoint}: the parse function has to take (row, unit)") from error


def rows(endpoint: str, where: Any) -> None:
    """A dotted path, or a function of the body."""
    try:
        fine = where is None or (isinstance(where, str) and where != "")
        fine = fine or (callable(where) and bool(inspect.signature(where).bind(None)))
    except (TypeError, ValueError):
        fine = False
    if not fine:
        raise ConfigurationError(
            f"{endpoint}: rows is {where!r}, but has to be a path as in 'data.items', "
            "or a function of the body"
        )


def pattern(endpoint: str, pattern: str | None) -> tuple[str, ...]:
    """A regular expression, where there is one; the names of its groups."""
    try:
        return tuple(re.compile(pattern or "").groupindex)
    except re.error as error:
        raise ConfigurationError(
            f"{endpoint}: symbol_pattern is {pattern!r}, which is no regular expression: {error}"
        ) from error


def symbol(endpoint: str, text: Any, pattern: str | None) -> str:
    """One symbol, as asked for or declared."""
    if (
        not isinstance(text, str)
        or not text
        or len(text) > 200
        or not text.isprintable()
        or text in {".", ".."}
    ):
        raise ConfigurationError(f"{endpoint}: {text!r} is no symbol; a symbol is a short printable text")
    if pattern is not None and not re.fullmatch(pattern, text):
        raise ConfigurationError(f"{endpoint}: {text!r} is no symbol of this API; a symbol matches {pattern}")
    return text
