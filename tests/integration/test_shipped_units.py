"""The shipped collectors, unit by unit, against the fake APIs: what was served is stored, exactly, within the limits."""

import time
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tasks.data import (
    glassnode_metrics,
    lunarcrush_coins,
    lunarcrush_hours,
    moralis_prices,
    moralis_transfers,
    ohlcv,
    x_posts,
)
from tasks.models import cursors
from tests.upstream.apis import glassnode, kraken, lunarcrush, moralis, x

from .conftest import connect, on_both

DATABASES = ("sqlite",)
DAY, MINUTE = timedelta(days=1), timedelta(minutes=1)
SECRETS = {
    "GLASSNODE_API_KEY": "glassnode-secret-key",
    "LUNARCRUSH_API_KEY": "lunarcrush-secret-key",
    "MORALIS_API_KEY": "moralis-secret-key",
    "X_BEARER_TOKEN": "x-secret-token",
}
TOKEN = "eth:0x" + "5a" * 20
QUERY = '(pump OR "sluice gate") lang:en'


def midnight(at):
    return at.replace(hour=0, minute=0, second=0, microsecond=0)


def exact(rows):
    """Numbers without trailing zeros."""
    return [{k: v.normalize() if isinstance(v, Decimal) else v for k, v in row.items()} for row in rows]


class Shipped:
    """One shipped collector at work; its API's wall clock stands still."""

    def __init__(self, fleet, name):
        self.fleet, self.name, self.upstream = fleet, name, fleet.upstream
        self.now = datetime.now(UTC)
        fleet.configure(PENSTOCK_COLLECTORS=name, **SECRETS)
        connect(fleet.inbox.app)  # its queues follow from the collectors
        self.at(self.now)

    def at(self, now):
        """Let it be this moment for the API."""
        self.now = now
        self.upstream.control(self.name, now=now.timestamp())

    def run(self, endpoint, *args):
        """Run it to its end as a worker would, with the waits that it is told; returns its units."""
        run = self.fleet.run(f"{self.name}.{endpoint}", *args)
        queue, inbox = f"collect.{self.name}", self.fleet.inbox
        deadline = time.monotonic() + 60
        while inbox.length(queue):
            assert time.monotonic() < deadline
            message = inbox.take(queue)
            if eta := message.headers.get("eta"):
                time.sleep(max(0.0, (datetime.fromisoformat(eta) - datetime.now(UTC)).total_seconds()))
            inbox.run(message)
        return self.fleet.units(run)

    def rows(self, table, *where):
        """What is stored."""
        return exact(self.fleet.installation.rows(table, *where))

    def within_limits(self):
        """No request was over any limit, or failed."""
        stats = self.upstream.stats(self.name)
        return stats["violations"] == 0 and stats["by_status"].keys() == {"200"}


@pytest.fixture
def shipped(fleet):
    """Set one up by its name."""
    return lambda name: Shipped(fleet, name)


def stored(units):
    return [(unit["symbol"], unit["outcome"]) for unit in units]


@on_both
def test_glassnode(shipped):
    """A thousand days of two metrics and two assets; a day later the newest are revised and one is new."""
    shop, assets = shipped("glassnode"), ["BTC", "ETH"]
    end = midnight(shop.now)
    metrics = {"active_addresses": "addresses/active_count", "price": "market/price_usd_close"}
    since = {}  # as planned: it may have become midnight
    for now in (shop.now - DAY, shop.now):
        shop.at(now)
        for endpoint, metric in metrics.items():
            units = shop.run(endpoint, assets)
            assert stored(units) == [(asset, "stored") for asset in assets]
            since = {(metric, unit["symbol"]): unit["start_at"] for unit in units} | since
        served = [
            row
            for (metric, asset), start in sorted(since.items())
            for row in glassnode.expected(metric, asset, start, end, now.timestamp())
        ]
        assert shop.rows(glassnode_metrics) == exact(served)
        assert len(served) > 3700
    assert shop.within_limits()
    moved = {datetime.fromisoformat(row["value"]) for row in shop.fleet.installation.rows(cursors)}
    assert moved <= {end - DAY, end}


@on_both
def test_moralis(shipped):
    """The whole history of transfers in pages, a part of it once more in windows of a week, and two prices."""
    shop = shipped("moralis")
    (unit,) = shop.run("transfers", [TOKEN])
    assert (unit["outcome"], unit["calls"]) == ("stored", -(-unit["records"] // 100))
    assert unit["calls"] > 10
    served = moralis.expected(TOKEN, datetime(2020, 1, 1, tzinfo=UTC), shop.now)
    assert by_key(shop.rows(moralis_transfers)) == by_key(served)
    assert {len(row["value"]) for row in served} >= {78}
    end = midnight(shop.now)
    units = shop.run("transfers", [TOKEN], end - 40 * DAY, end)
    assert stored(units) == [(TOKEN, "stored")] * 6
    assert sum(unit["records"] for unit in units) == len(moralis.expected(TOKEN, end - 40 * DAY, end))
    assert by_key(shop.rows(moralis_transfers)) == by_key(served)
    moments = [shop.now, shop.now + timedelta(minutes=1)]
    for now in moments:
        shop.at(now)
        assert stored(shop.run("prices", [TOKEN])) == [(TOKEN, "stored")]
    assert shop.rows(moralis_prices) == exact(moralis.expected_price(TOKEN, at.timestamp()) for at in moments)
    assert shop.within_limits()


def by_key(rows):
    return sorted(rows, key=lambda row: (row["transaction_hash"], row["log_index"]))


@on_both
def test_kraken(shipped):
    """All that it still has of two pairs, then what is new; nothing of the bar that runs."""
    shop, pairs = shipped("kraken"), ["ETHUSD", "XBTUSD"]
    end = shop.now.replace(second=0, microsecond=0)
    first = shop.run("ohlc", pairs)
    again = shop.run("ohlc", pairs)
    assert stored(first) == stored(again) == [(pair, "stored") for pair in pairs]
    assert {unit["records"] for unit in again} <= {2, 3}
    starts = {unit["start_at"] for unit in first}
    assert starts <= {end - 719 * MINUTE, end - 718 * MINUTE}  # it may be planned in the next minute
    served = [row for pair in pairs for row in kraken.expected(pair, min(starts), end)]
    assert shop.rows(ohlcv) == exact(served)
    assert shop.within_limits()


@on_both
def test_lunarcrush(shipped):
    """The list of coins and a month of hours, whose newest change once more."""
    shop = shipped("lunarcrush")
    hour = shop.now.replace(minute=0, second=0, microsecond=0)
    starts = []
    for now in (hour - timedelta(hours=3, minutes=30), shop.now):
        shop.at(now)
        (unit,) = shop.run("hours", ["btc"])
        assert unit["outcome"] == "stored"
        starts.append(unit["start_at"])
    start = starts[0]
    assert start in {
        hour - timedelta(hours=720),
        hour - timedelta(hours=719),
    }  # planned in the next hour, perhaps
    assert shop.rows(lunarcrush_hours) == exact(lunarcrush.expected("btc", start, hour, now.timestamp()))
    assert stored(shop.run("coins", None)) == [("", "stored")]
    assert shop.rows(lunarcrush_coins) == exact(lunarcrush.expected_coins(now.timestamp()))
    assert shop.within_limits()


@on_both
def test_x(shipped):
    """A week of posts by query, a timeline, a query without a hit; a user that is not there fails alone."""
    shop = shipped("x")
    assert stored(shop.run("search", [QUERY, "nothing at all"])) == [
        (QUERY, "stored"),
        ("nothing at all", "empty"),
    ]
    served = x.expected("tweets/search/recent", QUERY, shop.now.timestamp())
    assert shop.rows(x_posts) == exact(served)
    assert len(served) > 250
    shop.upstream.control("x", bad_symbols=["404"])
    units = shop.run("posts", ["17", "404"])
    assert stored(units) == [("17", "stored"), ("404", "failed")]
    assert units[1]["reason"] == "not_found"
    served = x.expected("users/17/tweets", "17", shop.now.timestamp())
    assert shop.rows(x_posts, x_posts.c.found_by == "17") == exact(served)
    assert len(served) > 500
    assert shop.within_limits()


def test_x_goes_on_where_it_was(shipped):
    """Later posts come, and none is lost between."""
    shop = shipped("x")
    shop.at(shop.now - timedelta(hours=5))
    shop.run("search", [QUERY])
    shop.upstream.control("x", limits={})  # counts anew
    shop.at(shop.now + timedelta(hours=5))
    shop.run("search", [QUERY])
    first = x.expected("tweets/search/recent", QUERY, (shop.now - timedelta(hours=5)).timestamp())
    second = x.expected("tweets/search/recent", QUERY, shop.now.timestamp())
    served = {row["id"]: row for row in first + second}
    assert shop.rows(x_posts) == exact(served[number] for number in sorted(served))
    assert shop.within_limits()
