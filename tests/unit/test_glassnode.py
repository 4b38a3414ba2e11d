"""Glassnode's metrics: a range in one answer, gaps, and headers in seconds."""

import json
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from resilience.errors import (
    APIError,
    BadPayloadError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    ValidationError,
)
from resilience.headers import quota_from
from tasks.collectors import Answer, Unit
from tasks.collectors.glassnode import glassnode
from tasks.data import glassnode_metrics
from tests.unit.bodies import T0, T0_S

PRICE, ACTIVE = glassnode.endpoints["price"], glassnode.endpoints["active_addresses"]
DAY = timedelta(days=1)
RECORDED = Path(__file__).parents[3] / "shared/bodies/glassnode/timeseries-ssr-pit-btc.json"


def unit(days=5) -> Unit:
    return Unit(1, 1, "glassnode", "price", "BTC", T0, T0 + days * DAY, None)


def read(body, status=200, endpoint=PRICE, asked=None, **headers):
    asked = asked or unit()
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return endpoint.read(asked, endpoint.first(asked), Answer(status, given, data, 0.1))


def points(*values):
    return [{"t": T0_S + 86_400 * n, "v": value} for n, value in enumerate(values)]


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [(PRICE, "/v1/metrics/market/price_usd_close"), (ACTIVE, "/v1/metrics/addresses/active_count")],
)
def test_the_request_is_as_documented(endpoint, path):
    """Asset, resolution, and the range in Unix seconds."""
    request = endpoint.request(unit(), endpoint.first(unit()))
    assert request.url == f"https://api.glassnode.com{path}"
    assert request.params == {
        "a": "BTC",
        "i": "24h",
        "s": str(T0_S),
        "u": str(T0_S + 5 * 86_400 - 1),
    }


def test_points_become_rows():
    """Every digit; two metrics of one day are two rows."""
    row = {"metric": "market/price_usd_close", "asset": "BTC", "at": T0, "value": Decimal("87648.2196")}
    assert read(b'[{"t":%d,"v":87648.2196}]' % T0_S).rows == [row]
    assert read(points(912_345), endpoint=ACTIVE).rows == [
        row | {"metric": "addresses/active_count", "value": Decimal(912_345)}
    ]
    assert row.keys() == {column.name for column in glassnode_metrics.columns}


def test_a_gap_is_no_zero():
    """A day without a value has no row, and zero is one."""
    page = read(points(1, None, 0))
    assert [(row["at"], row["value"]) for row in page.rows] == [(T0, 1), (T0 + 2 * DAY, 0)]
    assert (page.next, page.cursor) == (None, "2026-01-03T00:00:00.000000Z")


def test_only_gaps_and_nothing_at_all():
    """An asset that has no such metric yet: the cursor goes on all the same."""
    for body in (points(None, None), []):
        page = read(body)
        assert page.rows == []
        assert PRICE.finished(unit(), page.cursor) == "2026-01-05T00:00:00.000000Z"


def test_the_newest_points_are_read_again():
    """They are revised: three days are asked for anew."""
    start, end = PRICE.window("BTC", "2026-01-09T00:00:00.000000Z", T0 + timedelta(days=9, hours=7))
    assert (start, end) == (T0 + 5 * DAY, T0 + 9 * DAY)


def test_a_point_of_many_values():
    """A metric with several values in `o` is none of ours, and said to be so."""
    with pytest.raises(BadPayloadError, match="KeyError: 'v'"):
        read([{"t": T0_S, "o": {"h": 1, "l": 2}}])
    if not RECORDED.exists():
        pytest.skip(f"no example bodies in {RECORDED.parent}")
    recorded = json.loads(RECORDED.read_text())["body"]
    with pytest.raises(BadPayloadError, match="KeyError: 'v'"):
        read(recorded)
    first = recorded[0]["t"]
    start = T0.fromtimestamp(first, T0.tzinfo)
    asked = Unit(1, 1, "glassnode", "price", "BTC", start, start + 9 * DAY, None)
    page = read([{"t": point["t"], "v": point["o"]["v"]} for point in recorded], asked=asked)
    assert [row["at"] for row in page.rows] == [start, start + DAY, start + 2 * DAY]


BROKEN = {
    "nothing": b"",
    "truncated": json.dumps(points(1, 2)).encode()[:-3],
    "html": b"<html></html>",
    "null": b"null",
    "an object": {"t": T0_S, "v": 1},
    "a text": b'"abc"',
    "an empty text": b'""',
    "a point of null": [None],
    "a point of list": [[T0_S, 1]],
    "a value of text": points("n/a"),
    "a value of true": points(True),
    "a value of NaN": b'[{"t":%d,"v":NaN}]' % T0_S,
    "an endless value": b'[{"t":%d,"v":1e999}]' % T0_S,
    "no time": [{"v": 1}],
    "a time of text": [{"t": str(T0_S), "v": 1}],
    "a time in milliseconds": [{"t": T0_S * 1000, "v": 1}],
    "one good, two bad": [*points(1), {"t": None, "v": 2}, 7],
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError: most of it is no metric."""
    with pytest.raises(BadPayloadError, match=r"glassnode\.price"):
        read(body)


def test_one_broken_point():
    """It is set apart; a gap is none."""
    page = read([*points(1, None, 3), {"t": T0_S}])
    assert [row["value"] for row in page.rows] == [1, 3]
    assert [bad.reason for bad in page.bad] == ["KeyError: 'v'"]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ValidationError),
        (401, InvalidCredentialsError),
        (403, InvalidCredentialsError),
        (404, NotFoundError),
        (429, RateLimitError),
    ],
)
def test_documented_errors(status, kind):
    """As the status says."""
    with pytest.raises((APIError, InvalidCredentialsError)) as caught:
        read({"error": "no"}, status)
    assert type(caught.value) is kind


def test_headers_are_in_seconds():
    """What remains of the minute, and how long it lasts; a 429 waits for that."""
    headers = {"x-rate-limit-limit": "600", "x-rate-limit-remaining": "0", "x-rate-limit-reset": "42"}
    quota = quota_from(headers, glassnode.limits[0])
    assert (quota.remaining, quota.reset_s) == (0, 42)
    with pytest.raises(RateLimitError) as caught:
        read({}, 429, **headers)
    assert caught.value.retry_after_s == 42


def test_assets():
    """Letters and digits, capital ones."""
    assert PRICE.check_symbols() == ("BTC", "ETH")
    with pytest.raises(ConfigurationError, match="'btc' is no symbol"):
        PRICE.check_symbols(["btc"])
