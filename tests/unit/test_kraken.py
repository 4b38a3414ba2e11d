"""Kraken's bars: the newest 720, under another name, with errors inside good answers."""

import json
from datetime import timedelta
from decimal import Decimal

import pytest

from resilience.errors import (
    BadPayloadError,
    BannedError,
    ConfigurationError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from tasks.backfill import order
from tasks.collectors import Answer, Unit
from tasks.collectors.kraken import kraken
from tasks.data import ohlcv
from tests.unit.bodies import T0, T0_S

OHLC = kraken.endpoints["ohlc"]
MINUTE = timedelta(minutes=1)


def unit(minutes=5) -> Unit:
    return Unit(1, 1, "kraken", "ohlc", "XBTUSD", T0, T0 + minutes * MINUTE, None)


def bar(n=0, **changed) -> list:
    row = [T0_S + 60 * n, "1.10", "1.30", "1.00", "1.20", "1.15", "7.50000000", 42]
    for place, value in changed.items():
        row[int(place[1:])] = value
    return row


def body_of(*rows, **more) -> dict:
    """An answer with these bars, and the one that is running."""
    return {"error": [], "result": {"XXBTZUSD": [*rows, bar(len(rows))], "last": T0_S} | more}


def read(body, status=200):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OHLC.read(unit(), OHLC.first(unit()), Answer(status, {}, data, 0.1))


def test_the_request_is_as_documented():
    """A pair, minutes, and the second before the first bar: `since` names one that is not sent again."""
    request = OHLC.request(unit(), OHLC.first(unit()))
    assert request.url == "https://api.kraken.com/0/public/OHLC"
    assert request.params == {"pair": "XBTUSD", "interval": "1", "since": str(T0_S - 1)}


def test_a_row_becomes_a_bar():
    """Under the symbol that was asked for."""
    page = read(body_of(bar()))
    assert page.rows == [
        {
            "symbol": "XBTUSD",
            "interval": "1m",
            "open_time": T0,
            "open": Decimal("1.10"),
            "high": Decimal("1.30"),
            "low": Decimal("1.00"),
            "close": Decimal("1.20"),
            "volume": Decimal("7.50000000"),
            "trades": 42,
        }
    ]
    assert (page.next, page.cursor) == (None, "2026-01-01T00:00:00.000000Z")
    assert {"source", *page.rows[0]} == {column.name for column in ohlcv.columns}


def test_the_unfinished_bar_is_not_stored():
    """It is always the last one; `last` may be a text."""
    page = read(body_of(*(bar(n) for n in range(3)), last=str(T0_S)))
    assert [row["open_time"] for row in page.rows] == [T0 + n * MINUTE for n in range(3)]


def test_nothing_new():
    """Then there is only the unfinished one, or none."""
    assert read(body_of()).rows == read(body_of(XXBTZUSD=[])).rows == []


def test_a_run_after_a_long_time():
    """What Kraken has forgotten is not asked for; the first run reads all there is."""
    now = T0 + timedelta(days=2, seconds=30)
    oldest = T0 + timedelta(days=2) - 719 * MINUTE
    for cursor in (None, "2026-01-01T00:00:00.000000Z"):
        assert OHLC.window("XBTUSD", cursor, now) == (oldest, T0 + timedelta(days=2))
    recent = OHLC.window("XBTUSD", "2026-01-02T23:00:00.000000Z", now)
    assert recent == (T0 + timedelta(days=1, hours=22, minutes=58), T0 + timedelta(days=2))


def test_a_backfill_beyond_the_horizon():
    """Is refused, and told why; within it is one window."""
    now = T0 + timedelta(days=2)
    said = (
        r"kraken\.ohlc: the range starts at 2026-01-01 00:00, but .* nothing from before 2026-01-02 12:01 UTC"
    )
    with pytest.raises(ConfigurationError, match=said):
        order(OHLC, T0, now, None, now=now)
    OHLC.check_range(now - timedelta(hours=11), now)
    assert len(list(OHLC.chunks(now - timedelta(hours=11), now))) == 1


BROKEN = {
    "nothing": b"",
    "truncated": json.dumps(body_of(bar())).encode()[:-5],
    "null": b"null",
    "a list": [bar()],
    "no result": {"error": []},
    "a result of null": {"error": [], "result": None},
    "no pair": {"error": [], "result": {"last": T0_S}},
    "two pairs": body_of(bar(), XETHZUSD=[bar()]),
    "bars of null": {"error": [], "result": {"XXBTZUSD": None, "last": T0_S}},
    "an unknown error": {"error": ["EFunding:Unknown"]},
    "a row of null": body_of(None),
    "a short row": body_of(bar()[:6]),
    "a time of text": body_of(bar(_0=str(T0_S))),
    "a time in milliseconds": body_of(bar(_0=T0_S * 1000)),
    "a price of null": body_of(bar(_1=None)),
    "a price of words": body_of(bar(_4="n/a")),
    "an endless volume": body_of(bar(_6="1e999999")),
    "trades of fractions": body_of(bar(_7=4.2)),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that names the endpoint."""
    with pytest.raises(BadPayloadError, match=r"kraken\.ohlc"):
        read(body)


@pytest.mark.parametrize(
    ("said", "kind", "wait_s"),
    [
        ("EAPI:Rate limit exceeded", RateLimitError, 5),
        ("EGeneral:Too many requests", RateLimitError, 5),
        ("EGeneral:Temporary lockout", BannedError, 900),
        ("EQuery:Unknown asset pair", ValidationError, None),
        ("EGeneral:Invalid arguments", ValidationError, None),
        ("EGeneral:Internal error", ServerError, None),
        ("EService:Unavailable", ServerError, None),
        ("EService:Busy", ServerError, None),
    ],
)
def test_documented_errors(said, kind, wait_s):
    """In answers of status 200."""
    with pytest.raises(kind) as caught:
        read({"error": [said]})
    assert (type(caught.value), caught.value.retry_after_s) == (kind, wait_s)


def test_the_firewall():
    """520 is a failure of the server like others."""
    with pytest.raises(ServerError):
        read(b"<html>", 520)
