"""Declarations: what they give, and what is said about a wrong one."""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Boolean, Column, Date, Integer, MetaData, String, Table, UniqueConstraint

from resilience.errors import (
    APIError,
    ApiTimeoutError,
    BadPayloadError,
    BannedError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    Scope,
    ServerError,
    TokenExpiredError,
    ValidationError,
)
from tasks.collectors import (
    Answer,
    Api,
    ApiKey,
    Bars,
    Basic,
    Bearer,
    Cursor,
    FromEndpoint,
    FromTable,
    Limit,
    Number,
    Offset,
    Rule,
    Single,
    Token,
    Unit,
    iso,
    ms,
    number,
    whole,
)
from tasks.collectors.fields import plain
from tasks.collectors.rows import as_text
from tasks.data import ohlcv
from tasks.models import ExactDecimal, UtcDateTime, records

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
MINUTE = timedelta(minutes=1)

orders_table = Table(
    "orders",
    MetaData(),
    Column("shop", String(10), primary_key=True),
    Column("id", Integer, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("price", ExactDecimal, nullable=False),
    Column("paid", Boolean, nullable=False),
    Column("note", String),
    Column("due", Date),
    Column("raw", JSON, nullable=False),
    Column("seen", Integer, nullable=False, server_default="0"),
)


def shop(**options) -> Api:
    return Api("shop", "https://shop.example/v1/", **options)


def unit(symbol="A", start=None, end=None, cursor=None) -> Unit:
    return Unit(1, 1, "shop", "orders", symbol, start, end, cursor)


def answer(body, status=200, **headers) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, data, 0.1)


def give(row, unit):
    return row


def take(row, unit):
    return row


def declare(api=None, path="/orders/{symbol}", parse=give, **options):
    options = {"symbols": ["A", "B"], "key": ("id",)} | options
    api = api or shop()
    api.endpoint(path, **options)(parse)
    return api.endpoints[parse.__name__]


def order(**changed):
    row = {
        "shop": "A",
        "id": 1,
        "at": T0,
        "price": Decimal("1.50"),
        "paid": True,
        "raw": {},
        "note": None,
        "due": None,
    }
    return row | changed


def orders(row_of=order, **options):
    """An endpoint on the typed table; its parse function gives what the test says."""

    def orders(row, unit):
        return row_of()

    return declare(parse=orders, table=orders_table, key=("shop", "id"), **options)


def test_the_function_stays_what_it_is():
    """The decorator registers and returns it."""
    api = shop()
    assert api.endpoint("/x", key="id")(give) is give
    assert api.endpoints["give"].full_name == "shop.give"
    assert api.endpoints["give"].key == ("id",)


def test_a_request_is_filled_in():
    """Placeholders in path and params; the path is quoted, and no symbol leads out of it."""
    endpoint = declare(shop(headers={"X-Plan": "free"}), params={"pair": "{symbol}", "sort": "asc"})
    request = endpoint.request(unit("A/../B?c=ü"), {})
    assert (request.method, request.url) == ("GET", "https://shop.example/v1/orders/A%2F..%2FB%3Fc%3D%C3%BC")
    assert request.params == {"pair": "A/../B?c=ü", "sort": "asc"}
    assert request.headers == {"X-Plan": "free"}


def test_headers_of_an_endpoint():
    """Beside those of the Api, and with the symbol: some APIs take their tenant so."""
    endpoint = declare(shop(headers={"X-Plan": "free"}), path="/orders", headers={"X-Tenant": "{symbol}"})
    assert endpoint.request(unit("T-1"), {}).headers == {"X-Plan": "free", "X-Tenant": "T-1"}


def test_a_request_holds_no_secret():
    """Auth names one, and only the client resolves it."""
    endpoint = declare(shop(auth=Bearer("SHOP_TOKEN")))
    assert "SHOP_TOKEN" not in repr(endpoint.request(unit(), {}))


def test_bars_fill_in_their_interval():
    """As text and as seconds."""
    endpoint = declare(
        params={"every": "{interval}", "s": "{interval_s}"},
        page=Bars("5m", start="from", end="to", size=10),
        cursor=Cursor("at"),
    )
    sent = endpoint.request(unit(start=T0, end=NOW), endpoint.first(unit(start=T0, end=NOW))).params
    assert (sent["every"], sent["s"]) == ("5m", "300")


WRONG = [
    ({"key": ()}, "orders: key is missing"),
    ({"key": ("nr",)}, "key names 'nr', but table orders has no such column"),
    ({"key": ("id",)}, r"key is \(id\), but table orders keeps \(shop, id\) unique"),
    ({"path": "orders"}, "path is 'orders', but has to begin with '/'"),
    ({"path": "/{symbl}"}, r"path uses \{symbl\}; it may use \{symbol\}"),
    ({"path": "/{symbol.__class__}"}, r"path uses \{symbol.__class__\}"),
    ({"params": {"i": "{interval}"}}, r"params\['i'\] uses \{interval\}"),
    ({"params": {"i": "{"}}, r"params\['i'\] is '\{', which is no template"),
    ({"headers": {"X-Tenant": "{tenant}"}}, r"headers\['X-Tenant'\] uses \{tenant\}"),
    ({"params": {"i": 5}}, r"params\['i'\] is 5, which is no template"),
    ({"symbols": None}, "use {symbol}, but symbols is missing"),
    ({"path": "/orders"}, "symbols are declared, but neither path, params nor headers use"),
    ({"symbols": "A"}, "symbols is 'A', but has to be a list"),
    ({"symbols": ["A", ""]}, "'' is no symbol"),
    (
        {"symbols": ["a"], "symbol_pattern": "[A-Z]+"},
        r"'a' is no symbol of this API; a symbol matches \[A-Z\]\+",
    ),
    ({"symbol_pattern": "("}, "symbol_pattern"),
    ({"cursor": Cursor("when")}, "cursor names 'when', but table orders has no such column"),
    ({"cursor": Cursor("price")}, "cursor 'price' holds Decimal"),
    (
        {"cursor": Cursor("shop", lag="2m")},
        "cursor 'shop' holds str; lag, chunk, until, horizon, .* need times",
    ),
    ({"page": Bars("1m", start="a", end="b", size=5)}, "cursor is missing; Bars needs"),
    ({"page": Bars("1m", start="a", end="b", size=5), "cursor": Cursor("shop")}, "cursor 'shop' holds str"),
    ({"page": Token(param="p", at="n"), "params": {"p": "1"}}, "params sets 'p', which its paging"),
    ({"cursor": Cursor("at", param="since"), "params": {"since": "1"}}, "params sets 'since'"),
    ({"page": Number(param="p", size=9), "params": {"p": "1"}}, "params sets 'p', which its paging"),
    ({"page": Number(param="p", size=9, size_param="p")}, "its paging and its cursor set 'p' twice"),
    (
        {"page": Offset(param="from", size=9), "cursor": Cursor("at", param="from")},
        "its paging and its cursor set 'from' twice",
    ),
    ({"page": Token}, "page is <class '.*Token'>, but has to be a paging, as in page=Number"),
    ({"page": "next"}, "page is 'next', but has to be a paging"),
    ({"weight": 0}, "weight is 0, but has to be more than 0"),
    ({"weight": 101}, "weight is 101, more than limit '100/1m' ever admits"),
    ({"weight": 6, "limits": [Limit("5/1m")]}, "weight is 6, more than limit '5/1m'"),
    ({"weight": lambda unit: 1}, "weight_max has to say"),
    ({"weight": lambda unit: 1, "weight_max": 200}, "weight is 200, more than limit '100/1m'"),
    (
        {"limits": [Limit("5/1m"), Limit("9/1h", per="galaxy")]},
        "limit '9/1h' is per 'galaxy'; it is per api, ip, account, endpoint, symbol, or what a function",
    ),
    ({"limits": [Limit("5/1m", per=None)]}, "limit '5/1m' is per None; it is per api"),
    ({"limits": ["5/1m"]}, r"limits is \['5/1m'\], but has to be a list like"),
    ({"limits": Limit("5/1m")}, r"limits is Limit\(.*, but has to be a list like"),
    ({"every": "often"}, "orders: every is 'often'"),
    ({"every": timedelta(0)}, "orders: every is"),
    ({"on_open": "wait"}, "on_open is 'wait'; it is one of skip, park"),
    ({"catch_up": "some"}, "catch_up is 'some'; it is one of none, latest, all"),
    ({"overlap": "both"}, "overlap is 'both'; it is one of skip, queue, replace"),
]


@pytest.mark.parametrize(("options", "said"), WRONG, ids=[said[:40] for _, said in WRONG])
def test_a_wrong_declaration_says_what_is_wrong(options, said):
    """At import, in one sentence that names the endpoint and the field."""

    def orders(row, unit):
        return row

    options = {
        "table": orders_table,
        "key": ("shop", "id"),
        "api": shop(limits=[Limit("100/1m"), Limit("5 at once")]),
    } | options
    with pytest.raises(ConfigurationError, match=said) as caught:
        declare(parse=orders, **options)
    assert str(caught.value).startswith("shop.orders: ")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Api("My Shop", "https://x"), "a collector is called 'My Shop'"),
        (Api, "^a collector has no name"),
        (lambda: Api(base_url="https://x"), "^a collector has no name"),
        (lambda: Api("shop"), "^shop: base_url is missing"),
        (lambda: shop().endpoint(key="id"), "^shop: the path of an endpoint is missing"),
        (lambda: shop().endpoint(give), "^shop: the path of an endpoint is missing"),
        (lambda: shop().endpoint(None), "^shop: the path of an endpoint is missing"),
        (lambda: Api("shop", "shop.example"), "shop: base_url has to look like"),
        (lambda: Api("shop", "https://"), "shop: base_url"),
        (lambda: Api("shop", "https://[x"), "shop: base_url"),
        (lambda: Api("shop", "https://user:secret@x"), "shop: base_url"),
        (lambda: Api("shop", "https://x?key=secret"), "shop: base_url"),
        (lambda: Api("shop", "https://x", timeout="soon"), "shop: timeout is 'soon'"),
        (
            lambda: shop(limits=[Limit("9/1h", per="galaxy")]),
            "^shop: limit '9/1h' is per 'galaxy'; it is per",
        ),
        (lambda: Rule("odd", status=400), "Rule.outcome is 'odd'; it is one of rate_limited"),
        (lambda: Rule("banned"), r"Rule\('banned'\) needs `status` or `body`"),
        (lambda: Rule("banned", body="("), "no regular expression"),
        (lambda: Rule("banned", status=1, retry_after="x"), "retry_after"),
        (
            lambda: Rule("banned", status=1, scope="planet"),
            r"Rule\('banned'\)\.scope is 'planet'; it is one of symbol, endpoint, account, host",
        ),
        (lambda: Cursor("at", param="since", header="If-Modified-Since"), "by `param` or by `header`"),
        (lambda: Cursor("at", unit="us"), r"Cursor\.unit is 'us'; it is one of ms, s, iso"),
        (lambda: Bearer("a secret!"), "takes the name of a secret"),
        (lambda: ApiKey(secret="KEY"), "exactly one of"),
        (lambda: ApiKey(secret="KEY", header="a", query="b"), "exactly one of"),
        (lambda: Basic(user="", password="P"), "takes the name of a secret"),
        (lambda: declare(parse=lambda row: row), "an endpoint of shop is called '<lambda>'"),
    ],
)
def test_other_mistakes(make, said):
    """Apis, rules and auth; a secret written where its name belongs is not repeated."""
    with pytest.raises(ConfigurationError, match=said) as caught:
        make()
    assert "secret!" not in str(caught.value)
    assert "user:secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("declared", "text", "changed"),
    [
        (Limit("100/1m", burst=20), "50/1m", Limit("50/1m", burst=20)),
        (Limit("100/1m", burst=20), "5/1m", Limit("5/1m", burst=5)),
        (Limit("100/1m"), "1/1m", Limit("1/1m")),
        (Limit("100/1m", algorithm="window"), "5/1m", Limit("5/1m", algorithm="window")),
        (Limit("10/1s", adaptive=True, min_rate=4), "2/1s", Limit("2/1s", adaptive=True, min_rate=2)),
        (Limit("10/1s", adaptive=True, max_rate=20), "30/1s", Limit("30/1s", adaptive=True, max_rate=30)),
        (Limit("9 at once"), "3 at once", Limit("3 at once")),
    ],
)
def test_what_is_counted_inside_a_limit_follows_its_amount(declared, text, changed):
    """An installation that changes the amount alone need not know what else was declared."""
    assert shop(limits=[declared]).with_overrides(limits=[text]).limits == (changed,)


def test_a_parse_function_takes_row_and_unit():
    """Found at import and not at the first answer."""

    def orders(row):
        return row

    with pytest.raises(
        ConfigurationError, match=r"shop\.orders: the parse function has to take \(row, unit\)"
    ):
        declare(parse=orders)


def test_a_name_is_declared_once():
    """The second would hide the first."""
    api = shop()
    declare(api)
    with pytest.raises(ConfigurationError, match=r"shop\.give is declared twice"):
        declare(api)


def test_a_unique_constraint_will_do_as_key():
    """An upsert needs some constraint, not the primary one."""
    table = Table(
        "t", MetaData(), Column("n", Integer, primary_key=True), Column("a", Integer), UniqueConstraint("a")
    )
    with pytest.raises(ConfigurationError, match="unique"):
        declare(table=table, key=("n", "a"))
    assert declare(table=table, key="a").key == ("a",)


def test_symbols_asked_for():
    """Each once, in order; else the declared ones; what only planning finds out is not asked for here."""
    assert declare().check_symbols(["C", "A", "C"]) == ("C", "A")
    assert declare().check_symbols(()) == declare().check_symbols() == ("A", "B")
    moving = declare(symbols=lambda: 1 / 0)
    assert (moving.check_symbols(), moving.check_symbols(["A"])) == ((), ("A",))
    assert (moving.has_source, moving.symbols_from) == (True, "function")


def sourced(source, table=None):
    """An endpoint with these symbols, after another one, with or without a table."""
    api = shop()

    def owners(row, unit):
        return row

    api.endpoint("/owners", key=("shop", "id") if table is not None else "id", table=table)(owners)
    return declare(api, symbols=source)


@pytest.mark.parametrize(
    ("source", "table", "said"),
    [
        (
            FromEndpoint("owner", field="id"),
            None,
            r"shop\.give: symbols come from endpoint 'owner', .*: owners",
        ),
        (FromEndpoint("give", field="id"), None, r"shop\.give: symbols come from endpoint 'give'"),
        (
            FromEndpoint("owners", field="gid"),
            orders_table,
            r"column 'gid', which table orders .* it has shop, id",
        ),
        (
            FromEndpoint("owners", field="price"),
            orders_table,
            r"column 'price' .* Decimal; symbols are texts",
        ),
        (FromEndpoint("owners", field="id", refresh="soon"), None, r"shop\.give: symbols: refresh is 'soon'"),
        (FromTable(orders_table, "gid"), None, r"column 'gid'"),
        (FromTable("orders", "id"), None, r"shop\.give: FromTable takes a table, and not str"),
        (3, None, r"symbols is 3, but has to be a list of symbols, a function, FromTable or FromEndpoint"),
    ],
)
def test_a_source_of_symbols_that_is_wrong(source, table, said):
    """Found at import, with what there is."""
    with pytest.raises(ConfigurationError, match=said):
        sourced(source, table)


def test_sources_of_symbols():
    """They need not be there to be declared; an endpoint has symbols where its source has."""
    rows = sourced(FromEndpoint("owners", field="anything"))
    assert (rows.symbols_from, rows.has_source, rows.has_symbols) == ("shop.owners", True, True)
    assert rows.symbols.refresh_s == 3600
    table = sourced(FromTable(orders_table, "shop", where=orders_table.c.paid, refresh="5m"), orders_table)
    assert (table.symbols_from, table.symbols.refresh_s) == ("table orders", 300)
    assert rows.check_symbols() == ()
    api = shop()
    api.endpoint("/{symbol}", key="id", symbols=[])(give)
    api.endpoint("/x/{symbol}", key="id", symbols=FromEndpoint("give", field="id"))(take)
    assert not api.endpoints["take"].has_symbols


def test_an_endpoint_without_symbols():
    """It is one unit, and a symbol for it is a mistake."""
    endpoint = declare(path="/orders", symbols=None)
    assert endpoint.check_symbols() == ("",)
    with pytest.raises(ConfigurationError, match=r"shop\.give has no symbols"):
        endpoint.check_symbols(["A"])


@pytest.mark.parametrize("symbol", ["", " \n", "a\0", "x" * 201, None, 5, "..", "b"])
def test_a_symbol_that_is_none(symbol):
    """Empty, unprintable, endless, not a text, or against the declared pattern."""
    with pytest.raises(ConfigurationError, match=r"shop\.give: .* symbol"):
        declare(symbol_pattern="[A-Z.]*").check_symbols([symbol])


def test_symbols_that_are_yet_to_be_named():
    """A declaration may leave them to the installation, which is told so."""
    with pytest.raises(ConfigurationError, match=r"shop\.give has no symbols yet"):
        declare(symbols=[]).check_symbols()


def test_weights():
    """A number, or a function of the unit that keeps to its word."""
    assert declare(weight=3).weigh(unit()) == 3.0
    endpoint = declare(weight=lambda unit: 50 if unit.symbol == "ALL" else 1, weight_max=40)
    assert (endpoint.weigh(unit()), endpoint.weight_max) == (1.0, 40.0)
    with pytest.raises(ConfigurationError, match=r"weight gave 50; it may give up to 40"):
        endpoint.weigh(unit("ALL"))


def bars(**options):
    """The bars of a shop, on the real table."""

    def bars(row, unit):
        return {"symbol": "A", "interval": "1m", "open_time": ms(row), "trades": None} | dict.fromkeys(
            ("open", "high", "low", "close", "volume"), Decimal(1)
        )

    options = {"cursor": Cursor("open_time", lag="2m", chunk="1d")} | options
    return declare(
        parse=bars,
        page=Bars("1m", start="from", end="to", size=10),
        table=ohlcv,
        key=("symbol", "interval", "open_time"),
        **options,
    )


def ticks(*minutes: float) -> list[int]:
    return [int((T0 + m * MINUTE).timestamp() * 1000) for m in minutes]


def test_a_window_of_bars():
    """From cursor less lag, or one page back; to the last complete bar."""
    last = NOW.replace(second=0)
    assert bars().window("A", None, NOW) == (last - 10 * MINUTE, last)
    assert bars().window("A", "2026-01-02T02:00:00.000000Z", NOW) == (last - 66 * MINUTE, last)


def test_a_window_is_never_empty():
    """A cursor at the last bar, or from a clock ahead of ours, reads that bar again."""
    last = NOW.replace(second=0)
    for cursor in ("2026-01-02T03:03:00.000000Z", "2026-01-02T09:00:00.000000Z"):
        start, end = bars(cursor=Cursor("open_time")).window("A", cursor, NOW)
        assert (start, end) == (last - MINUTE, last)


def test_a_window_without_bars():
    """Everything since the cursor, less its lag; everything where there is none."""
    endpoint = orders(cursor=Cursor("at", lag="2m"))
    assert endpoint.window("A", None, NOW) == (None, None)
    assert endpoint.window("A", "2026-01-01T00:02:00.000000Z", NOW) == (T0, None)
    assert orders(cursor=Cursor("shop")).window("A", "m", NOW) == (None, None)
    assert orders().window("A", None, NOW) == (None, None)


def test_a_cursor_that_is_no_time():
    """Somebody wrote into the table: said with endpoint, symbol and value."""
    with pytest.raises(ConfigurationError, match=r"cursor of shop\.bars / A is 'yesterday'"):
        bars().window("A", "yesterday", NOW)


def test_chunks_of_bars():
    """From the first boundary in the range to the last one, cut by `chunk`."""
    found = list(bars().chunks(T0 + 30 * timedelta(seconds=1), T0 + timedelta(days=1, minutes=5, seconds=9)))
    assert found == [
        (T0 + MINUTE, T0 + MINUTE + timedelta(days=1)),
        (T0 + MINUTE + timedelta(days=1), T0 + timedelta(days=1, minutes=5)),
    ]


@pytest.mark.parametrize(
    ("make", "length", "said"),
    [
        (bars, -MINUTE, "ends .* before it starts"),
        (bars, timedelta(0), "before it starts"),
        (bars, MINUTE / 2, r"shop\.bars: no bar of 1m lies completely"),
        (orders, MINUTE, r"shop\.orders cannot be asked for a range"),
    ],
)
def test_a_range_that_makes_no_sense(make, length, said):
    """Said at once, and not when the first chunk is taken."""
    with pytest.raises(ConfigurationError, match=said):
        make().chunks(T0, T0 + length)


def test_who_takes_a_range():
    """Bars do, and whoever sends a cursor of time; a text says nothing of time."""
    assert bars().takes_range
    assert orders(cursor=Cursor("at", param="since")).takes_range
    assert not orders(cursor=Cursor("at")).takes_range
    assert not orders(cursor=Cursor("shop", param="after")).takes_range
    assert not orders().takes_range


def test_the_cursor_of_a_finished_unit():
    """Bars: the window's last bar even where nothing was traded; others: what was seen."""
    done = unit(start=T0, end=T0 + 5 * MINUTE)
    assert bars().finished(done, None) == "2026-01-01T00:04:00.000000Z"
    assert bars().finished(done, "2026-01-01T00:02:00.000000Z") == "2026-01-01T00:04:00.000000Z"
    assert orders(cursor=Cursor("at")).finished(done, None) is None
    assert orders(cursor=Cursor("at")).finished(done, "x") == "x"


def test_only_complete_bars_inside_the_window_are_kept():
    """Neither those before its start nor the one that is still growing; newest first or not."""
    asked = unit(start=T0, end=T0 + 3 * MINUTE)
    page = bars().read(asked, bars().first(asked), answer(ticks(3, 2.5, 2, 1, 0, -1)))
    assert [row["open_time"] for row in page.rows] == [T0 + m * MINUTE for m in (2, 1, 0)]
    assert (page.cursor, page.next) == ("2026-01-01T00:02:00.000000Z", None)


def test_the_servers_clock_counts_too():
    """A bar that is complete by our clock and not by the server's still grows."""
    asked = unit(start=T0, end=T0 + 3 * MINUTE)
    for said, count in (("Thu, 01 Jan 2026 00:02:30 GMT", 2), ("Thu, 01 Jan 2026 00:03:00 GMT", 3), ("?", 3)):
        page = bars().read(asked, bars().first(asked), answer(ticks(0, 1, 2), Date=said))
        assert len(page.rows) == count


def test_rows_outside_a_window_of_time_are_dropped():
    """start <= t < end, where there is a start or an end."""
    times = iter([T0 - MINUTE, T0, T0 + MINUTE])
    n = iter(range(3))
    endpoint = orders(lambda: order(id=next(n), at=next(times)), cursor=Cursor("at"))
    page = endpoint.read(unit(start=T0, end=T0 + MINUTE), {}, answer([1, 2, 3]))
    assert [row["at"] for row in page.rows] == [T0]


def test_of_rows_with_one_key_the_last_counts():
    """PostgreSQL takes no row twice in one statement."""
    prices = iter([Decimal(1), Decimal(2)])
    page = orders(lambda: order(price=next(prices))).read(unit(), {}, answer([1, 2]))
    assert [row["price"] for row in page.rows] == [Decimal(2)]


def test_rows_lie_where_the_declaration_says():
    """At a dotted path, or the body itself."""
    endpoint = declare(rows="result.items")
    page = endpoint.read(unit(), {}, answer({"result": {"items": [{"id": 1}]}}))
    assert [row["data"] for row in page.rows] == [{"id": 1}]
    for body in ({}, {"result": None}, {"result": {"items": {}}}, {"result": [1]}, [1]):
        with pytest.raises(BadPayloadError, match=r"result\.items"):
            endpoint.read(unit(), {}, answer(body))


def test_rows_lie_where_a_function_says():
    """It may leave some out, and has to find a list."""
    endpoint = declare(rows=lambda body: [each for each in body["result"] if each["id"]])
    page = endpoint.read(unit(), {}, answer({"result": [{"id": 1}, {"id": None}]}))
    assert [row["data"] for row in page.rows] == [{"id": 1}]
    for body in ({}, {"result": None}, {"result": [1]}, [1]):
        with pytest.raises(BadPayloadError, match=r"shop\.give"):
            endpoint.read(unit(), {}, answer(body))
    with pytest.raises(BadPayloadError, match="function in `rows`, not an object"):
        declare(rows=lambda body: body).read(unit(), {}, answer({}))


@pytest.mark.parametrize("rows", ["", 3, [], lambda: None, list.append])
def test_rows_that_are_no_place(rows):
    """Said at import."""
    with pytest.raises(ConfigurationError, match=r"shop\.give: rows is .* but has to be a path"):
        declare(rows=rows)


def test_the_parts_of_a_symbol():
    """The named groups of its pattern fill placeholders too."""
    endpoint = declare(
        path="/tokens/{address}",
        params={"chain": "{chain}"},
        symbols=["eth:0x1"],
        symbol_pattern="(?P<chain>[a-z]+):(?P<address>0x[0-9a-f]+)",
    )
    request = endpoint.request(unit("eth:0x1"), {})
    assert (request.url, request.params) == ("https://shop.example/v1/tokens/0x1", {"chain": "eth"})
    with pytest.raises(ConfigurationError, match=r"uses \{coin\}; it may use \{symbol\}, \{chain\}$"):
        declare(path="/tokens/{coin}", symbol_pattern="(?P<chain>.*)")


BROKEN = [
    ("id", None, "id is missing"),
    ("id", "1", "id is str instead of int"),
    ("id", True, "id is bool instead of int"),
    ("id", 2**31, "id is too large"),
    ("shop", "", None),
    ("shop", "x" * 11, "shop is longer than 10"),
    ("shop", "a\0", "shop holds characters"),
    ("shop", "\ud800", "shop holds characters"),
    ("at", None, "at is missing"),
    ("at", "2026-01-01", "at is str instead of datetime"),
    ("at", datetime(2026, 1, 1), "at has no time zone"),
    ("price", None, "price is missing"),
    ("price", 1.5, "price is float instead of Decimal"),
    ("price", Decimal("NaN"), "price is no number"),
    ("price", Decimal("1e999999"), "price is no number"),
    ("paid", 1, "paid is int instead of bool"),
    ("due", T0, "due is datetime instead of date"),
    ("raw", None, "raw is missing"),
    ("raw", {"a": object()}, "cannot be kept as JSON"),
    ("colour", "red", "the table has no column colour"),
]


@pytest.mark.parametrize(("field", "value", "said"), BROKEN, ids=[f"{f}-{s}" for f, _, s in BROKEN])
def test_one_broken_value_breaks_the_row(field, value, said):
    """And a page of one row with it; the error names the field and shows the body."""
    endpoint = orders(lambda: order(**{field: value}))
    if said is None:
        assert endpoint.read(unit(), {}, answer([1])).rows[0][field] == value
        return
    with pytest.raises(BadPayloadError, match=said) as caught:
        endpoint.read(unit(), {}, answer(["the body"]))
    assert str(caught.value).startswith("shop.orders: ")
    assert '["the body"]' in str(caught.value)


def test_a_field_that_is_not_there():
    """Only what may be null or has a default can be left out, and then by all rows of a page alike."""
    row = order()
    del row["price"]
    with pytest.raises(BadPayloadError, match="price is missing"):
        orders(lambda: row).read(unit(), {}, answer([1]))
    assert "seen" not in orders().read(unit(), {}, answer([1])).rows[0]
    rows = iter([order(), order(id=2, seen=1)])
    page = orders(lambda: next(rows)).read(unit(), {}, answer([1, 2]))
    assert [row["id"] for row in page.rows] == [1]
    assert page.bad[0].reason == "ValueError: rows differ: some have seen, others do not"


def broken_at(*places):
    """An endpoint whose parse function raises for these rows."""

    def give(row, unit):
        if row["id"] in places:
            raise KeyError("colour")
        return row

    return declare(parse=give)


@pytest.mark.parametrize(
    ("bad", "said"), [((1,), None), ((1, 2), None), ((1, 2, 3), "3 of 4 rows"), ((), None)]
)
def test_up_to_half_of_the_rows_may_be_bad(bad, said):
    """They are set apart; when it is more, the answer is broken, and nothing of it is kept."""
    body = [{"id": n} for n in (1, 2, 3, 4)]
    if said:
        with pytest.raises(BadPayloadError, match=f"{said} are broken, the first by KeyError: 'colour'"):
            broken_at(*bad).read(unit(), {}, answer(body))
        return
    page = broken_at(*bad).read(unit(), {}, answer(body))
    assert [row["data"]["id"] for row in page.rows] == [n for n in (1, 2, 3, 4) if n not in bad]
    assert [json.loads(row.raw) for row in page.bad] == [{"id": n} for n in bad]
    assert page.bad_rows == len(bad)


def test_a_bad_row_moves_no_cursor():
    """Only what is stored does."""
    times = iter([T0, "never"])
    n = iter(range(2))
    endpoint = orders(lambda: order(id=next(n), at=next(times)), cursor=Cursor("at"))
    page = endpoint.read(unit(), {}, answer([1, 2]))
    assert (len(page.rows), page.bad_rows, page.cursor) == (1, 1, "2026-01-01T00:00:00.000000Z")
    untyped = declare(cursor=Cursor("at", lag="1m"))
    with pytest.raises(BadPayloadError, match="at is str, which is no cursor"):
        untyped.read(unit(), {}, answer([{"id": 1, "at": "x"}]))


def test_bad_rows_are_bounded():
    """The first hundred of a page, 16 KB of each, and a count of all."""
    long = "é" * 20_000
    body = [{"id": n} for n in range(300)] + [{"id": None, "note": long}] * 150
    page = declare().read(unit(), {}, answer(body))
    assert (len(page.bad), page.bad_rows, len(page.rows)) == (100, 150, 300)
    assert 16_380 < len(page.bad[0].raw.encode()) <= 16_384


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ({"a": Decimal("1e-9"), "b": "\ud800\0"}, '{"a": 1e-09, "b": "\ufffd\ufffd"}'),
        ({"a": Decimal("1.12345678901234567890")}, '{"a": "1.12345678901234567890"}'),
        ([1, None], "[1, null]"),
        (object(), '"<object>"'),
        (float("nan"), '"<float>"'),
    ],
)
def test_how_a_bad_row_is_kept(raw, text):
    """As JSON with all digits, that any database takes; of an object no more than its type."""
    assert as_text(raw) == text


def test_a_row_nested_without_end():
    """Is a bad row among others, and not the end of them."""
    page = declare().read(
        unit(), {}, answer(b'[{"id": 1}, {"id": 2, "x": ' + b"[" * 600 + b"]" * 600 + b"}]")
    )
    assert (len(page.rows), page.bad_rows) == (1, 1)
    assert page.bad[0].raw == '"<dict>"'


def test_texts_that_no_database_stores():
    """NUL and half surrogates become a mark; the row is worth more than they are."""
    endpoint = orders(lambda: order(note="a\0b\ud800ü😀", raw={"x\0": ["\udfff"]}))
    row = endpoint.read(unit(), {}, answer([1])).rows[0]
    assert row["note"] == "a\ufffdb\ufffdü😀"
    assert row["raw"] == {"x\ufffd": ["\ufffd"]}


def test_json_columns_keep_every_digit():
    """A number where JSON can hold it exactly, else its text."""
    endpoint = orders(lambda: order(raw=json.loads("[1.10, 1.12345678901234567890]", parse_float=Decimal)))
    assert endpoint.read(unit(), {}, answer([1])).rows[0]["raw"] == [1.1, "1.12345678901234567890"]


def test_rows_without_a_table_become_records():
    """Key, symbol and the row as JSON, ready for the table of records."""

    def orders(row, unit):
        return {"shop": unit.symbol, "id": row, "at": T0, "on": date(2026, 1, 1), "price": Decimal("1.5")}

    endpoint = declare(parse=orders, key=("shop", "id"), cursor=Cursor("at", lag="1m"))
    page = endpoint.read(unit(), {}, answer([7, 7, 8]))
    data = {"shop": "A", "id": 7, "at": "2026-01-01T00:00:00Z", "on": "2026-01-01", "price": 1.5}
    assert page.rows[0] == {"endpoint": "orders", "key": '["A", 7]', "symbol": "A", "data": data}
    assert len(page.rows) == 2
    assert page.cursor == "2026-01-01T00:00:00.000000Z"
    assert endpoint.table is records
    stamped = endpoint.stamped(page.rows)[0]
    assert stamped["source"] == "shop"
    assert {c.name for c in records.columns} == stamped.keys()


@pytest.mark.parametrize("key", [None, [], {}, True, "x" * 501])
def test_a_record_needs_a_key(key):
    """A text, a whole number, a time; never null."""
    with pytest.raises(BadPayloadError, match=r"id|key"):
        declare().read(unit(), {}, answer([{"id": key}]))


def test_rows_are_stamped_where_the_table_tells_sources_apart():
    """A table of one API's own has no such column."""
    assert bars().stamped([{"symbol": "A"}]) == [{"source": "shop", "symbol": "A"}]
    assert orders().stamped([{"id": 1}]) == [{"id": 1}]


def test_a_text_as_cursor():
    """The highest one in text order."""
    names = iter("bca")
    endpoint = orders(lambda: order(shop=next(names)), cursor=Cursor("shop", param="after"))
    assert endpoint.read(unit(), {}, answer([1, 2, 3])).cursor == "c"


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"[]", None),
        (204, b"", None),
        (400, b"", ValidationError),
        (401, b"", InvalidCredentialsError),
        (401, b"The token has expired", TokenExpiredError),
        (402, b"", APIError),
        (403, b"", InvalidCredentialsError),
        (404, b"", NotFoundError),
        (408, b"", ApiTimeoutError),
        (410, b"", NotFoundError),
        (422, b"", ValidationError),
        (429, b"", RateLimitError),
        (451, b"", APIError),
        (500, b"", ServerError),
        (503, b"", ServerError),
        (520, b"", ServerError),
        (301, b"", APIError),
        (304, b"", APIError),
        (101, b"", APIError),
        (999, b"", APIError),
    ],
)
def test_what_a_status_means(status, body, kind):
    """Without any rule of the API's own."""
    error = shop().error_of(answer(body, status))
    assert type(error) is (kind or type(None))


def test_an_apis_own_rules_come_first():
    """By status, by pattern, by both; the first that matches."""
    api = shop(
        rules=[
            Rule("rate_limited", status=200, body=r'"EAPI:Rate limit', retry_after="5s"),
            Rule("banned", status=(418, 403), retry_after="2m"),
            Rule("invalid_symbol", body="-1121"),
        ]
    )
    limited = api.error_of(answer({"error": ["EAPI:Rate limit exceeded"]}))
    assert (type(limited), limited.retry_after_s) == (RateLimitError, 5.0)
    assert type(api.error_of(answer({}, 418))) is BannedError
    assert type(api.error_of(answer({"code": -1121}, 500))) is ValidationError
    assert api.error_of(answer({"error": []})) is None


def test_a_rule_says_of_whom_its_error_speaks():
    """A server that fails for one symbol only, and a page that is gone for all of them."""
    api = shop(
        rules=[
            Rule("server_error", status=500, body="no such pair", scope="symbol"),
            Rule("not_found", status=410, scope="endpoint"),
        ]
    )
    assert (api.error_of(answer("no such pair", 500)).scope, api.error_of(answer({}, 500)).scope) == (
        Scope.SYMBOL,
        Scope.SERVICE,
    )
    gone = api.error_of(answer({}, 410))
    assert (gone.scope, gone.trips, gone.label) == (Scope.SERVICE, True, "endpoint:not_found")


@pytest.mark.parametrize(
    ("how", "sent"),
    [
        ("naive", "2026-11-25T07:00:00"),
        ("offset", "2026-11-25T07:00:00+00:00"),
        ("http", "Wed, 25 Nov 2026 07:00:00 GMT"),
        ("iso", "2026-11-25T07:00:00.250000Z"),
    ],
)
def test_a_cursor_in_a_header(how, sent):
    """As the API writes times there; not in a first run."""
    endpoint = orders(cursor=Cursor("at", header="If-Modified-Since", unit=how), headers={"X-Plan": "free"})
    since = datetime(2026, 11, 25, 7, 0, 0, 250000, tzinfo=UTC)
    request = endpoint.request(unit(start=since), {})
    assert request.headers == {"X-Plan": "free", "If-Modified-Since": sent}
    assert request.params == {}
    assert endpoint.request(unit(), {}).headers == {"X-Plan": "free"}
    assert endpoint.takes_range


def test_a_cursor_in_a_header_of_records():
    """Only times can be written as times; without a table the declaration says so."""
    endpoint = declare(cursor=Cursor("at", header="If-Modified-Since", unit="naive"))
    assert endpoint.timed
    assert endpoint.window("A", "2026-01-01T00:00:00.000000Z", NOW) == (T0, None)


def test_the_servers_wait_beats_the_rules():
    """Retry-After is read in any case; the rule's is for want of one."""
    api = shop(rules=[Rule("banned", status=418, retry_after="2m")])
    assert api.error_of(answer({}, 418, RETRY_AFTER="7")).retry_after_s == 7.0
    assert api.error_of(answer({}, 418)).retry_after_s == 120.0
    assert api.error_of(answer({}, 503, retry_after="9")).retry_after_s == 9.0
    assert api.error_of(answer({}, 429)).retry_after_s is None


def test_a_redirect_names_the_host_only():
    """What else the address holds is nobody's business."""
    for location, host in (
        ("https://user:pw@other.example/x?key=1", "other.example"),
        ("/login", "another path"),
        ("http://[", "an address that is none"),
    ):
        text = str(shop().error_of(answer(b"", 302, Location=location)))
        assert host in text
        assert "pw" not in text
        assert "key" not in text


def test_an_error_shows_the_first_200_characters():
    """And no more, whatever they are."""
    body = "é" * 150 + "x" * 5000
    with pytest.raises(BadPayloadError) as caught:
        declare().read(unit(), {}, answer(body.encode()))
    assert body[:200] in str(caught.value)
    assert body[:201] not in str(caught.value)


def paged(**options):
    return declare(
        shop(rules=[Rule("restart", status=400, body="token")]),
        page=Token(param="page", at="next"),
        rows="data",
        **options,
    )


def test_a_stale_checkpoint_begins_again_once():
    """The token expired while the unit waited: from the first page, and after that it is an error."""
    endpoint = paged()
    stale = answer({"error": "token expired"}, 400)
    assert endpoint.api.error_of(stale) is None
    page = endpoint.read(unit(), {"token": "old"}, stale)
    assert (page.rows, page.cursor) == ([], None)
    assert endpoint.request(unit(), page.next).params == {}
    second = endpoint.read(unit(), page.next, answer({"data": [], "next": "new"})).next
    assert endpoint.request(unit(), second).params == {"page": "new"}
    for checkpoint in (second, page.next):
        with pytest.raises(ValidationError, match="shop answered 400"):
            endpoint.read(unit(), checkpoint, stale)


def test_a_400_on_the_first_page_is_no_stale_checkpoint():
    """There is no token that could have expired."""
    with pytest.raises(ValidationError):
        paged().read(unit(), {}, answer({"error": "token"}, 400))


def test_checkpoints_are_json():
    """They live in SQL."""
    page = paged().read(unit(), {}, answer({"data": [], "next": "abc"}))
    assert json.loads(json.dumps(page.next)) == page.next


def test_an_error_in_the_parse_function_is_the_bodys():
    """Whatever it trips over, a page of such rows is a bad payload that says so."""

    def orders(row, unit):
        return {"id": row["id"] + 1 / 0}

    with pytest.raises(BadPayloadError, match=r"shop\.orders: ZeroDivisionError"):
        declare(parse=orders).read(unit(), {}, answer([{"id": 1}]))


def test_a_parse_function_may_say_what_is_wrong():
    """Its own error of ours goes through as it is."""

    def orders(row, unit):
        raise NotFoundError("delisted")

    with pytest.raises(NotFoundError, match="delisted"):
        declare(parse=orders).read(unit(), {}, answer([1]))


@pytest.mark.parametrize("value", [1, "1.50", Decimal("1.50"), "-0.00000001", "1e-8"])
def test_numbers(value):
    """Exact, from text, whole numbers and Decimals."""
    assert number(value) == Decimal(value)


@pytest.mark.parametrize("value", [None, True, 1.5, "", "x", "NaN", "Infinity", "1e99", [], {}, [0, [1], 0]])
def test_what_is_no_number(value):
    """A float has lost digits already; true is not 1."""
    with pytest.raises((TypeError, ValueError, ArithmeticError)):
        number(value)


def test_times():
    """Always aware, always UTC."""
    assert ms(1767225600001) == T0 + timedelta(milliseconds=1)
    assert iso("2026-01-01T01:00:00+01:00") == T0
    for wrong in ("2026-01-01T00:00:00", "", None, 5):
        with pytest.raises((TypeError, ValueError)):
            iso(wrong)
    for wrong in (True, 1.5, "1", None, 10**20):
        with pytest.raises((TypeError, ValueError, OverflowError)):
            ms(wrong)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.sampled_from(["1.5", 1767225600000]),
    lambda inner: (
        st.lists(inner, max_size=12)
        | st.dictionaries(st.text(max_size=5) | st.sampled_from(["id", "data"]), inner)
    ),
    max_leaves=30,
)
bodies = st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode())


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(body=bodies, status=st.sampled_from([200, 200, 200, 404, 503]), rows=st.sampled_from([None, "data"]))
def test_no_body_gets_through_broken(body, status, rows):
    """However odd: checked rows or an error of the API's family."""
    endpoint = declare(rows=rows)
    try:
        page = endpoint.read(unit(), {}, answer(body, status))
    except APIError:
        return
    for row in page.rows:
        assert row["key"] is not None
        assert row["data"]["id"] is not None
        json.dumps(row).encode()


@given(value=json_values)
def test_plain_is_json(value):
    """What it gives, every JSON column takes."""
    try:
        found = plain(json.loads(json.dumps(value), parse_float=Decimal, parse_constant=str))
    except (TypeError, ValueError):
        return
    json.dumps(found, allow_nan=False).encode()


def test_a_body_nested_without_end():
    """Deeper than Python recurses is a bad payload, not a crash."""
    for body in (b"[" * 100_000, b'{"a":' * 100_000, b"[" * 900 + b"]" * 900):
        with pytest.raises(BadPayloadError):
            declare().read(unit(), {}, answer(body))


def test_single_is_the_default_page():
    """One answer, no more."""
    assert declare().page == Single()
    assert declare().read(unit(), {}, answer([{"id": 1}])).next is None


@pytest.mark.parametrize(("value", "is_"), [(7, 7), ("7", 7), ("-12", -12), ("0" * 3, 0), (10**30, 10**30)])
def test_whole_numbers(value, is_):
    """Also as text: APIs write those so that JavaScript cannot round."""
    assert whole(value) == is_


@pytest.mark.parametrize("value", [None, True, "", "1.0", "1e3", " 1", "٣", "9" * 101, 1.0, Decimal(1), []])
def test_what_is_no_whole_number(value):
    """Nothing is rounded, and nothing guessed."""
    with pytest.raises(TypeError):
        whole(value)
