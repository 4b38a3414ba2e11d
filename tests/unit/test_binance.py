"""Binance klines: rows as documented, and what is made of everything else."""

import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import (
    APIError,
    BadPayloadError,
    BannedError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from tasks.collectors import Answer, Unit
from tasks.collectors.binance import binance
from tasks.data import ohlcv

KLINES = binance.endpoints["klines"]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
T0_MS = 1767225600000
MINUTE = timedelta(minutes=1)
DOCUMENTED = Path(__file__).parents[3] / "shared/bodies/binance/klines_doc_example.json"


def unit(minutes=5, start=T0) -> Unit:
    return Unit(1, 1, "binance", "klines", "BTCUSDT", start, start + minutes * MINUTE, None)


def kline(n=0, **changed) -> list:
    row = [
        T0_MS + n * 60_000,
        "1.10",
        "1.30",
        "1.00",
        "1.20",
        "7.50",
        T0_MS + n * 60_000 + 59_999,
        "8.25",
        42,
        "3",
        "4",
        "0",
    ]
    for place, value in changed.items():
        row[int(place[1:])] = value
    return row


def answer(body, status=200, **headers) -> Answer:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {name.replace("_", "-"): value for name, value in headers.items()}, data, 0.1)


def read(body, status=200, asked=None, **headers):
    asked = asked or unit()
    return KLINES.read(asked, KLINES.first(asked), answer(body, status, **headers))


def test_the_request_is_as_documented():
    """Symbol, interval, window in milliseconds with an inclusive end, and the size."""
    asked = unit()
    request = KLINES.request(asked, KLINES.first(asked))
    assert request.url == "https://api.binance.com/api/v3/klines"
    assert request.params == {
        "symbol": "BTCUSDT",
        "interval": "1m",
        "startTime": "1767225600000",
        "endTime": "1767225899999",
        "limit": "1000",
    }


def test_a_kline_becomes_a_bar():
    """Every digit of it."""
    page = read([kline()])
    assert page.rows == [
        {
            "symbol": "BTCUSDT",
            "interval": "1m",
            "open_time": T0,
            "open": Decimal("1.10"),
            "high": Decimal("1.30"),
            "low": Decimal("1.00"),
            "close": Decimal("1.20"),
            "volume": Decimal("7.50"),
            "trades": 42,
        }
    ]
    assert (page.next, page.cursor) == (None, "2026-01-01T00:00:00.000000Z")
    assert {"source", *page.rows[0]} == {column.name for column in ohlcv.columns}


def test_the_documented_example():
    """What Binance's own pages show."""
    if not DOCUMENTED.exists():
        pytest.skip(f"no example bodies in {DOCUMENTED.parent}")
    example = json.loads(DOCUMENTED.read_text())
    start = datetime(2017, 7, 3, tzinfo=UTC)
    row = read(example["klines"], asked=unit(10, start)).rows[0]
    assert row["open_time"] == start
    assert [row[name] for name in ("open", "high", "low", "close", "volume")] == [
        Decimal(text) for text in ("0.01634790", "0.80000000", "0.01575800", "0.01577100", "148976.11427815")
    ]
    assert row["trades"] == 308
    assert isinstance(binance.error_of(answer(example["error"], 400)), ValidationError)


def test_the_unfinished_candle_is_not_stored():
    """The last row of an answer grows until its minute is over."""
    page = read([kline(n) for n in range(6)])
    assert [row["open_time"] for row in page.rows] == [T0 + n * MINUTE for n in range(5)]


def test_a_window_of_three_pages():
    """A thousand minutes each, whatever they hold: a gap is not the end."""
    asked = unit(2500)
    checkpoint, starts = KLINES.first(asked), []
    while checkpoint is not None:
        starts.append(int(KLINES.request(asked, checkpoint).params["startTime"]))
        checkpoint = KLINES.read(asked, checkpoint, answer([])).next
    assert starts == [T0_MS, T0_MS + 60_000_000, T0_MS + 120_000_000]


def test_no_bars_at_all():
    """Not listed yet, or no trade: an empty page, and the cursor moves on."""
    page = read([])
    assert (page.rows, page.cursor) == ([], None)
    assert KLINES.finished(unit(), page.cursor) == "2026-01-01T00:04:00.000000Z"


BROKEN = {
    "nothing": b"",
    "truncated": json.dumps([kline(), kline(1)]).encode()[:-9],
    "html": b"<!DOCTYPE html><title>Attention Required!</title>",
    "null": b"null",
    "an object": b"{}",
    "an error in a 200": b'{"code":-1003,"msg":"Too many requests."}',
    "a text": b'"busy"',
    "not UTF-8": b'["\xff\xfe"]',
    "rows of null": b"[null,null]",
    "a row of nulls": [[None] * 12],
    "a short row": [kline()[:6]],
    "rows of objects": [{"open": "1"}],
    "one good, two bad": [kline(), kline(1, _4=None), kline(2, _0=None)],
    "a price of null": [kline(_1=None)],
    "a price of list": [kline(_2=["1", "2"])],
    "a price of true": [kline(_3=True)],
    "a price of words": [kline(_4="n/a")],
    "a price of NaN": [kline(_4="NaN")],
    "a volume of NaN": json.dumps([kline(_5=float("nan"))]).encode(),
    "an endless volume": [kline(_5="1e999999")],
    "a time of text": [kline(_0=str(T0_MS))],
    "a time of null": [kline(_0=None)],
    "a time of fractions": [kline(_0=T0_MS + 0.5)],
    "a time in microseconds": [kline(_0=T0_MS * 1000)],
    "a time far out": [kline(_0=10**30)],
    "trades of text": [kline(_8="42")],
    "trades of fractions": [kline(_8=4.2)],
    "trades of too many": [kline(_8=2**40)],
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that shows its beginning; of a page that is broken for the most part nothing is kept."""
    with pytest.raises(BadPayloadError, match=r"binance\.klines") as caught:
        read(body)
    text = body.decode("utf-8", "replace") if isinstance(body, bytes) else json.dumps(body)
    assert text[:200] in str(caught.value)


def test_a_broken_bar_is_set_apart():
    """With the reason and as it came; the others are stored."""
    page = read([kline(), kline(1, _4=None)])
    assert [row["open_time"] for row in page.rows] == [T0]
    assert page.bad_rows == 1
    assert "TypeError: None is not a number" in page.bad[0].reason
    assert json.loads(page.bad[0].raw) == kline(1, _4=None)


@pytest.mark.parametrize(
    ("status", "headers", "body", "kind", "wait_s"),
    [
        (429, {"Retry_After": "7"}, {"code": -1003, "msg": "Too many requests."}, RateLimitError, 7.0),
        (418, {"Retry_After": "120"}, {"code": -1003, "msg": "Way too many requests"}, BannedError, 120.0),
        (418, {}, {}, BannedError, 120.0),
        (403, {}, b"<html>WAF</html>", BannedError, 120.0),
        (400, {}, {"code": -1121, "msg": "Invalid symbol."}, ValidationError, None),
        (500, {}, {"code": -1000, "msg": "An unknown error"}, ServerError, None),
        (503, {}, b"<html>", ServerError, None),
    ],
)
def test_documented_errors(status, headers, body, kind, wait_s):
    """Status and Retry-After as Binance describes them."""
    with pytest.raises(APIError) as caught:
        read(body, status, **headers)
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.retry_after_s) == (status, wait_s)


@pytest.mark.parametrize("symbol", ["btcusdt", "BTC/USDT", "BTC USDT", "B" * 21, ""])
def test_a_symbol_of_another_kind(symbol):
    """Refused before it costs a call."""
    with pytest.raises(Exception, match=r"binance\.klines: .* is no symbol"):
        KLINES.check_symbols([symbol])


cells = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.lists(st.integers(), max_size=2)
)
rows = st.lists(
    st.lists(cells | st.sampled_from(kline()), max_size=12) | st.just(kline()) | cells, max_size=5
)


@given(body=rows.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=100))
def test_no_body_yields_a_broken_bar(body):
    """However odd: complete bars or an error of the API's family."""
    try:
        page = read(body)
    except APIError:
        return
    for row in page.rows:
        assert all(row[name] is not None for name in KLINES.key)
        assert all(type(row[name]) is Decimal for name in ("open", "high", "low", "close", "volume"))
