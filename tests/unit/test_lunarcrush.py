"""LunarCrush: coins as they stand, and their hours; most figures may be missing."""

import json
from datetime import timedelta
from decimal import Decimal

import pytest

from resilience.errors import (
    BadPayloadError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
)
from tasks.collectors import Answer, Unit
from tasks.collectors.lunarcrush import lunarcrush
from tasks.collectors.registry import load
from tasks.data import lunarcrush_coins, lunarcrush_hours
from tests.unit.bodies import BODIES, T0, T0_S

COINS, HOURS = lunarcrush.endpoints["coins"], lunarcrush.endpoints["hours"]
HOUR = timedelta(hours=1)


def unit(hours=2) -> Unit:
    return Unit(1, 1, "lunarcrush", "hours", "btc", T0, T0 + hours * HOUR, None)


def whole() -> Unit:
    return Unit(1, 1, "lunarcrush", "coins", "", None, None, None)


def read(body, status=200, endpoint=HOURS):
    asked = unit() if endpoint is HOURS else whole()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return endpoint.read(asked, endpoint.first(asked), Answer(status, {}, data, 0.1))


def hour(n=0, **changed) -> dict:
    return {"time": T0_S + 3600 * n, "close": 1.5} | changed


def test_the_requests_are_as_documented():
    """Buckets of an hour between two Unix times; the list takes nothing."""
    request = HOURS.request(unit(), HOURS.first(unit()))
    assert request.url == "https://lunarcrush.com/api4/public/coins/btc/time-series/v2"
    assert request.params == {"bucket": "hour", "start": str(T0_S), "end": str(T0_S + 7199)}
    request = COINS.request(whole(), COINS.first(whole()))
    assert (request.url, request.params) == ("https://lunarcrush.com/api4/public/coins/list/v1", {})


def test_an_hour_becomes_a_row():
    """Every digit; what is missing is null and no zero."""
    first, second = read(BODIES["lunarcrush.hours"].value).rows
    assert first.keys() == second.keys() == {column.name for column in lunarcrush_hours.columns}
    assert (first["coin"], first["at"], first["close"]) == ("btc", T0, Decimal("87648.21"))
    assert (first["interactions"], first["social_dominance"]) == (1_234_567, Decimal("21.3456"))
    assert (second["at"], second["open"]) == (T0 + HOUR, Decimal("87648.21"))
    assert {second[name] for name in ("high", "close", "galaxy_score", "alt_rank")} == {None}


def test_coins_become_rows():
    """Ours beside the original."""
    body = BODIES["lunarcrush.coins"].value
    first, second = read(body, endpoint=COINS).rows
    assert first.keys() == second.keys() == {column.name for column in lunarcrush_coins.columns}
    assert (first["id"], first["symbol"], first["price"]) == (1, "BTC", Decimal("87648.21"))
    assert first["data"] == body["data"][0]
    assert (second["id"], second["price"], second["galaxy_score"]) == (77, None, None)
    assert second["alt_rank"] == 4001


def test_the_hour_that_runs_is_not_stored():
    """Nor one outside of the window."""
    page = read({"data": [hour(n) for n in (-1, 0, 1, 2)]})
    assert [row["at"] for row in page.rows] == [T0, T0 + HOUR]
    assert page.cursor == "2026-01-01T01:00:00.000000Z"


def test_a_month_is_a_page():
    """Whatever it holds: an hour in which nobody spoke is a gap and no end."""
    asked = unit(1000)
    checkpoint, starts = HOURS.first(asked), []
    while checkpoint is not None:
        starts.append(int(HOURS.request(asked, checkpoint).params["start"]))
        checkpoint = HOURS.read(asked, checkpoint, Answer(200, {}, b'{"data":[]}', 0.1)).next
    assert starts == [T0_S, T0_S + 720 * 3600]


BROKEN = {
    "truncated": json.dumps({"data": [hour()]}).encode()[:-3],
    "null": b"null",
    "a list": [hour()],
    "no data": {"config": {}},
    "data of null": {"data": None},
    "an hour of null": {"data": [None]},
    "a time of null": {"data": [hour(time=None)]},
    "a time of text": {"data": [hour(time=str(T0_S))]},
    "a time in milliseconds": {"data": [hour(time=T0_S * 1000)]},
    "a price of words": {"data": [hour(close="high")]},
    "a price of true": {"data": [hour(close=True)]},
    "an endless price": b'{"data":[{"time":%d,"close":1e999}]}' % T0_S,
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that names the endpoint."""
    with pytest.raises(BadPayloadError, match=r"lunarcrush\.hours"):
        read(body)


@pytest.mark.parametrize(
    "changed", [{"id": None}, {"id": "1"}, {"symbol": None}, {"name": 7}, {"price": "dear"}]
)
def test_a_broken_coin(changed):
    """Its id, symbol and name are always there."""
    with pytest.raises(BadPayloadError, match=r"lunarcrush\.coins"):
        read({"data": [BODIES["lunarcrush.coins"].value["data"][0] | changed]}, endpoint=COINS)


@pytest.mark.parametrize(
    ("status", "kind"), [(401, InvalidCredentialsError), (404, NotFoundError), (429, RateLimitError)]
)
def test_documented_errors(status, kind):
    """As the status says."""
    with pytest.raises(kind) as caught:
        read({"error": "no"}, status)
    assert type(caught.value) is kind


def test_larger_plans_say_so_in_the_settings():
    """Calls by minute and by day."""
    changed = load(["lunarcrush"], {"lunarcrush": {"limits": ["100/1m", "20000/1d"]}})["lunarcrush"]
    assert [(each.spec, each.kind) for each in changed.limits] == [
        ("100/1m", "bucket"),
        ("20000/1d", "budget"),
    ]


def test_coins_are_in_small_letters():
    """One coin, one name."""
    assert HOURS.check_symbols() == ("btc", "eth")
    with pytest.raises(ConfigurationError, match="'BTC' is no symbol"):
        HOURS.check_symbols(["BTC"])
