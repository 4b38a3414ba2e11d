"""Bars through ccxt, the real one, with our session: against the fake APIs and a server that fails."""

import json
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from resilience.errors import ConfigurationError
from tasks.collectors.registry import endpoint_of, load
from tasks.data import ohlcv
from tasks.limits import circuit_of
from tests.upstream import data

from .conftest import connect

DATABASES = ("sqlite",)
CCXT = Path(sys.prefix) / "ccxt"
START = datetime(2026, 1, 5, tzinfo=UTC)
MODULE = "tests.integration.exchanges"


@pytest.fixture(autouse=True)
def with_ccxt(monkeypatch, missing_server):
    """It lies apart from the other packages; `make test` puts it there."""
    if not (CCXT / "ccxt").exists():
        missing_server("ccxt", "`make test` installs it")
    monkeypatch.syspath_prepend(CCXT)


@pytest.fixture
def exchange(fleet):
    """Have the exchange of this name called at an address."""

    def configure(name, url):
        fleet.configure({name: {"base_url": url}}, PENSTOCK_COLLECTORS=f"{MODULE}:{name}")
        connect(fleet.inbox.app)

    yield configure
    sys.modules.pop(MODULE, None)


def collect(fleet, name, symbol="BTC/USDT", minutes=60, deliveries=1):
    run = fleet.run(f"{name}.ohlcv", [symbol], START, START + timedelta(minutes=minutes))
    for _ in range(deliveries):
        fleet.inbox.deliver(f"collect.{name}")
    return fleet.unit(run)


def bars(fleet):
    names = ("open", "high", "low", "close", "volume")
    return [
        (row["open_time"], *(row[name].normalize() for name in names))
        for row in fleet.installation.rows(ohlcv)
    ]


def exact(number):
    return Decimal(str(number)).normalize()


def test_the_same_bars_as_without(fleet, exchange, upstream):
    """Page by page, every digit, and no call but for bars."""
    exchange("binance", upstream.base("binance"))
    row = collect(fleet, "binance", minutes=250)
    assert (row["outcome"], row["records"], row["calls"]) == ("stored", 250, 3)
    first, end = (int((START + timedelta(minutes=n)).timestamp() * 1000) for n in (0, 250))
    assert bars(fleet) == [
        (datetime.fromtimestamp(at / 1000, UTC), *map(exact, rest[:5]))
        for at, *rest in data.klines("BTCUSDT", first, end, 60_000)
    ]
    assert upstream.stats("binance")["requests"] == 3
    [found] = {(each["source"], each["symbol"], each["interval"]) for each in fleet.installation.rows(ohlcv)}
    assert found == ("binance", "BTC/USDT", "1m")


def test_gaps_are_no_end(fleet, exchange, upstream):
    """Minutes without trades have no row; the host of the description has a name in it."""
    exchange("coinbase", upstream.base("coinbase"))
    row = collect(fleet, "coinbase", "BTC/USD", minutes=700)
    first = int(START.timestamp())
    served = data.candles("BTC-USD", first, first + 700 * 60, 60)
    assert (row["outcome"], row["records"]) == ("stored", len(served))
    assert [(at.timestamp(), close) for at, *_, close, _ in bars(fleet)] == [
        (at, exact(repr(close))) for at, _, _, _, close, _ in reversed(served)
    ]


MARKETS = [
    {"name": f"{base}/USD", "market_symbol": f"{base.lower()}usd", "url_symbol": f"{base.lower()}usd", "market_type": "SPOT",
     "base_currency": base, "quote_currency": "USD", "counter_currency": "USD", "description": "?", "base_decimals": 8,
     "counter_decimals": 2, "minimum_order": "10.00000 USD", "minimum_order_value": "10.0", "trading": "Enabled",
     "instant_and_market_orders": "Enabled", "instant_order_counter_decimals": 2}
    for base in ("BTC", "ETH")
]  # fmt: skip


def bitstamp_bars(count):
    at = int(START.timestamp())
    rows = [
        {"timestamp": str(at + 60 * n), "open": "1.10", "high": "2", "low": "1", "close": "1.5", "volume": "0.123456789012345678"}
        for n in range(count)
    ]  # fmt: skip
    return json.dumps({"data": {"ohlc": rows, "pair": "BTC/USD"}}).encode()


def test_markets_are_asked_for_once(fleet, exchange, scripted):
    """By a call that is counted; no digit is lost."""
    exchange("bitstamp", scripted.url)
    scripted.answers = [(200, {}, json.dumps(MARKETS).encode()), (200, {}, bitstamp_bars(60))]
    rows = [collect(fleet, "bitstamp", symbol) for symbol in ("BTC/USD", "ETH/USD")]
    assert [(row["outcome"], row["calls"]) for row in rows] == [("stored", 2), ("stored", 1)]
    paths = [path.partition("?")[0] for path, _ in scripted.requests]
    assert paths[1:] == ["/api/v2/ohlc/btcusd/", "/api/v2/ohlc/ethusd/"]
    assert bars(fleet)[0][5] == Decimal("0.123456789012345678")
    row = collect(fleet, "bitstamp", "NO/SUCH")
    assert (row["outcome"], row["reason"], row["calls"]) == ("failed", "not_found", 0)


@pytest.mark.parametrize(
    ("status", "headers", "body", "error", "throttles"),
    [
        (429, {"Retry-After": "3"}, b'{"code":-1003,"msg":"Too many requests."}', "", 1),
        (418, {"Retry-After": "120"}, b'{"code":-1003,"msg":"banned"}', "", 1),
        (503, {}, b'{"code":-1000,"msg":"unknown"}', "ServerError", 0),
        (502, {}, b"<html>bad gateway</html>", "ServerError", 0),
        (200, {}, b"<html>", "BadPayloadError", 0),
        (200, {}, b'[[1, "2', "BadPayloadError", 0),
        (200, {}, b"[[null, null, null, null, null, null]]", "BadPayloadError", 0),
        (200, {}, b"null", "BadPayloadError", 0),
        (200, {}, b'{"a": 1}', "BadPayloadError", 0),
    ],
)
def test_what_is_tried_again(fleet, exchange, scripted, status, headers, body, error, throttles):
    """By what ccxt makes of the answer, or by what a row has to be."""
    exchange("binance", scripted.url)
    scripted.answers = [(status, headers, body)]
    row = collect(fleet, "binance")
    assert (row["state"] in {"sent", "waiting"}, row["throttles"]) == (True, throttles), row["error"]
    if error:
        assert (row["attempts"], row["error"]["error"]) == (1, error)
    assert fleet.installation.rows(ohlcv) == []


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b'{"code":-1121,"msg":"Invalid symbol."}', "not_found"),
        (400, b'{"code":-1100,"msg":"Illegal characters"}', "validation"),
        (401, b'{"code":-2015,"msg":"Invalid API-key"}', "invalid_credentials"),
        (451, b'{"code":0,"msg":"Service unavailable from a restricted location"}', "api_error"),
    ],
)
def test_what_is_final(fleet, exchange, scripted, status, body, reason):
    """A country that may not call is no outage, whatever ccxt says."""
    exchange("binance", scripted.url)
    scripted.answers = [(status, {}, body)]
    row = collect(fleet, "binance")
    assert (row["outcome"], row["reason"]) == ("failed", reason)
    assert len(scripted.requests) == 1


def test_an_error_in_a_200(fleet, exchange, scripted):
    """Kraken's way; ccxt knows its words."""
    exchange("kraken", scripted.url)
    scripted.answers = [(200, {}, b'{"error":["EGeneral:Too many requests"]}')]
    row = collect(fleet, "kraken", "BTC/USD")
    assert (row["throttles"], row["attempts"]) == (1, 0)


def test_the_guard_is_heard_through_it(fleet, exchange):
    """A refused connection is what it is; and once the circuit is open, nothing is called."""
    exchange("binance", "http://127.0.0.1:9")
    fleet.configure(
        {"binance": {"base_url": "http://127.0.0.1:9", "breaker": {"failures": 1}, "retry": {"attempts": 3}}}
    )
    row = collect(fleet, "binance")
    assert (row["attempts"], row["error"]["error"]) == (1, "ApiConnectionError")
    assert circuit_of(endpoint_of("binance.ohlcv")).current_state == "open"
    fleet.inbox.deliver("collect.binance")
    row = fleet.unit(1)
    assert (row["state"], row["parked_on"], row["calls"]) == ("waiting", "binance.ohlcv", 1)


def test_names():
    """`ccxt:NAME`, and what is wrong with one."""
    api = load(["ccxt:bitstamp"], {"bitstamp": {"ohlcv": {"symbols": ["BTC/USD"]}}})["bitstamp"]
    assert (api.base_url, [limit.spec for limit in api.limits]) == ("https://www.bitstamp.net", ["800/1m"])
    assert api.endpoints["ohlcv"].symbols == ("BTC/USD",)
    for name, said in (
        ("ccxt:bitstmap", "ccxt knows no exchange 'bitstmap'; did you mean bitstamp"),
        ("ccxt:Bitstamp", "ccxt knows no exchange"),
    ):
        with pytest.raises(ConfigurationError, match=said):
            load([name], {})
    from tasks.collectors.ccxt_exchange import ccxt_exchange

    with pytest.raises(ConfigurationError, match="bitstamp: interval is '7m', but it has bars of 1m, 3m"):
        ccxt_exchange("bitstamp", interval="7m")


def test_without_ccxt(monkeypatch):
    """One sentence that says what to do."""
    monkeypatch.setitem(sys.modules, "ccxt", None)
    with pytest.raises(ConfigurationError, match=r"ccxt is not installed: pip install 'penstock\[ccxt\]'"):
        load(["ccxt:gemini"], {})
