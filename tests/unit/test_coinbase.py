"""Coinbase candles: their odd order of fields, their windows, their gaps."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from resilience.errors import (
    APIError,
    BadPayloadError,
    NotFoundError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from tasks.collectors import Answer, Unit
from tasks.collectors.coinbase import coinbase
from tasks.data import ohlcv

CANDLES = coinbase.endpoints["candles"]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_S = 1767225600
MINUTE = timedelta(minutes=1)
RECORDED = Path(__file__).parents[3] / "shared/bodies/coinbaseexchange/ccxt_static_response.json"


def unit(minutes=5, start=T0) -> Unit:
    return Unit(1, 1, "coinbase", "candles", "BTC-USD", start, start + minutes * MINUTE, None)


def candle(n=0) -> list:
    return [T0_S + 60 * n, 1.00, 1.30, 1.10, 1.20, 7.5]


def read(body, status=200, asked=None):
    asked = asked or unit()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return CANDLES.read(asked, CANDLES.first(asked), Answer(status, {}, data, 0.1))


def test_the_request_is_as_documented():
    """Granularity in seconds and a window in ISO 8601."""
    asked = unit()
    request = CANDLES.request(asked, CANDLES.first(asked))
    assert request.url == "https://api.exchange.coinbase.com/products/BTC-USD/candles"
    assert request.params == {
        "granularity": "60",
        "start": "2026-01-01T00:00:00Z",
        "end": "2026-01-01T00:04:59Z",
    }


def test_no_window_is_wider_than_300_candles():
    """A wider one is rejected as a whole."""
    asked = unit(1000)
    checkpoint, spans = CANDLES.first(asked), []
    while checkpoint is not None:
        sent = CANDLES.request(asked, checkpoint).params
        spans.append(datetime.fromisoformat(sent["end"]) - datetime.fromisoformat(sent["start"]))
        checkpoint = CANDLES.read(asked, checkpoint, Answer(200, {}, b"[]", 0.1)).next
    assert len(spans) == 4
    assert max(spans) < 300 * MINUTE


def test_a_candle_becomes_a_bar():
    """Low comes before high, and both before open; digits stay as they were written."""
    page = read(b"[[1767225600, 1.00, 1.30, 1.10, 1.20, 7.50000001]]")
    assert page.rows == [
        {
            "symbol": "BTC-USD",
            "interval": "1m",
            "open_time": T0,
            "open": Decimal("1.10"),
            "high": Decimal("1.30"),
            "low": Decimal("1.00"),
            "close": Decimal("1.20"),
            "volume": Decimal("7.50000001"),
            "trades": None,
        }
    ]
    assert {"source", *page.rows[0]} == {column.name for column in ohlcv.columns}


def test_the_recorded_answer():
    """What a client library recorded, and what it made of it."""
    if not RECORDED.exists():
        pytest.skip(f"no example bodies in {RECORDED.parent}")
    example = json.loads(RECORDED.read_text())["fetchOHLCV"]
    at_ms, *values = example["parsedResponse"][0]
    start = datetime.fromtimestamp(at_ms / 1000, UTC)
    row = read(example["httpResponse"], asked=unit(60, start)).rows[0]
    assert row["open_time"] == start
    assert [row[name] for name in ("open", "high", "low", "close", "volume")] == [
        Decimal(str(v)) for v in values
    ]


def test_newest_first_with_a_gap_and_a_row_before_the_start():
    """Kept are complete candles of the window; the newest is still growing."""
    page = read([candle(n) for n in (5, 4, 1, 0, -1)])
    assert [row["open_time"] for row in page.rows] == [T0 + n * MINUTE for n in (4, 1, 0)]
    assert page.cursor == "2026-01-01T00:04:00.000000Z"


BROKEN = {
    "truncated": json.dumps([candle()]).encode()[:-3],
    "html": b"<html>Cloudflare</html>",
    "null": b"null",
    "a message in a 200": b'{"message":"hm"}',
    "a row of nulls": [[None] * 6],
    "a short row": [candle()[:4]],
    "a time in milliseconds": [[T0_S * 1000, *candle()[1:]]],
    "a time with fractions": [[T0_S + 0.5, *candle()[1:]]],
    "a price of list": [[T0_S, [1], 1, 1, 1, 1]],
    "Infinity": b"[[1767225600, 1, Infinity, 1, 1, 1]]",
    "a price without end": b"[[1767225600, 1, 1e400, 1, 1, 1]]",
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that shows its beginning."""
    with pytest.raises(BadPayloadError, match=r"coinbase\.candles") as caught:
        read(body)
    text = body.decode() if isinstance(body, bytes) else json.dumps(body)
    assert text[:200] in str(caught.value)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (404, {"message": "NotFound"}, NotFoundError),
        (429, {"message": "Public rate limit exceeded"}, RateLimitError),
        (400, {"message": "granularity too small for the requested time range"}, ValidationError),
        (500, {"message": "Internal server error"}, ServerError),
    ],
)
def test_documented_errors(status, body, kind):
    """None of them says how long to wait."""
    with pytest.raises(APIError) as caught:
        read(body, status)
    assert type(caught.value) is kind
    assert caught.value.retry_after_s is None


@pytest.mark.parametrize("symbol", ["BTCUSD", "btc-usd", "BTC-USD/..", "-", ""])
def test_a_symbol_of_another_kind(symbol):
    """Refused before it costs a call."""
    with pytest.raises(Exception, match=r"coinbase\.candles: .* is no symbol"):
        CANDLES.check_symbols([symbol])
