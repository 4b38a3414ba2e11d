"""LunarCrush: a list of coins and the hours of each, with figures that are not known, and hours that change."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.upstream.apis.base import Answer, Api, RejectedError, Request, encode
from tests.upstream.data import LISTED_AT_S, mix, seed

HOUR_S = 3600
SETTLED_S = 4 * HOUR_S  # after which an hour changes no more
SYMBOLS = ["btc", "eth", *(f"c{n}" for n in range(3, 251))]
FIGURES = (
    "open", "high", "low", "close", "volume_24h", "market_cap", "interactions", "contributors_active",
    "posts_active", "sentiment", "social_dominance", "galaxy_score", "alt_rank",
)  # fmt: skip


def _figure(own: int, number: int, place: int) -> int | float | None:
    """One figure: unknown now and then, a whole number or one with two digits."""
    bits = mix(own + place, number)
    if bits % 13 == 0:
        return None
    return (bits >> 8) % 1_000_000 if place % 2 else (bits >> 8) % 100_000_000 / 100


def coins(now: float) -> list[dict[str, Any]]:
    """All coins, as they stand in this hour."""
    hour = int(now) // HOUR_S
    return [
        {
            "id": n,
            "symbol": symbol.upper(),
            "name": f"Coin {n}",
            **{
                name: _figure(seed(symbol), hour, place)
                for place, name in enumerate(
                    ("price", "volume_24h", "market_cap", "alt_rank", "galaxy_score")
                )
            },
            "categories": "layer-1" if n % 2 else "",
        }
        for n, symbol in enumerate(SYMBOLS, 1)
    ]


def hours(coin: str, since_s: int, until_s: int, now: float) -> list[dict[str, Any]]:
    """The hours that begin between two moments, both included, also the one that runs; some are not there."""
    own = seed(f"hours {coin}")
    first = max(LISTED_AT_S, -(-since_s // HOUR_S) * HOUR_S)
    return [
        {
            "time": at,
            **{name: _figure(own, _version(at, now), place) for place, name in enumerate(FIGURES)},
            "contributors_created": mix(own, at) % 1000,
            "spam": mix(own, at) % 100,
        }
        for at in range(first, min(until_s, int(now)) + 1, HOUR_S)
        if mix(own, at) % 29
    ]


def _version(at: int, now: float) -> int:
    """Figures are those of the hour once it is settled, and until then of the moment's hour too."""
    return at if now >= at + SETTLED_S else at + 1 + int(now) // HOUR_S


def _decimal(value: float | None) -> Decimal | None:
    return None if value is None else Decimal(str(value))


def expected(coin: str, start: datetime, end: datetime, now: float) -> list[dict[str, Any]]:
    """What has to be stored of the hours between two full ones, as it stood at a moment."""
    return [
        {
            "coin": coin,
            "at": datetime.fromtimestamp(row["time"], UTC),
            **{name: _decimal(row[name]) for name in FIGURES},
        }
        for row in hours(coin, int(start.timestamp()), int(end.timestamp()) - 1, now)
    ]


def expected_coins(now: float) -> list[dict[str, Any]]:
    """What has to be stored of the list, as it stood at a moment."""
    return [
        {
            "id": row["id"],
            "symbol": row["symbol"],
            "name": row["name"],
            **{name: _decimal(row[name]) for name in ("price", "market_cap", "galaxy_score", "alt_rank")},
            "data": row,
        }
        for row in coins(now)
    ]


class Lunarcrush(Api):
    """10 a minute and 2,000 a day for each key; a 429 names no wait."""

    name, prefix = "lunarcrush", "api4/public/"
    documented = {"amount": 10, "window_s": 60}
    further = {"day": (2000, 86_400)}

    def key(self, request: Request) -> str:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token or token.startswith("BAD"):
            raise RejectedError(401, {"error": "Unauthorized"})
        return token

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def trouble(self, status: int) -> bytes:
        return encode({"error": "Rate limit exceeded" if status == 429 else "Internal server error"})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        if request.path == "coins/list/v1":
            return encode({"config": {"generated": int(now)}, "data": coins(now)})
        found = re.fullmatch("coins/([A-Za-z0-9-]+)/time-series/v2", request.path)
        coin = found[1].lower() if found else ""
        if coin not in SYMBOLS or coin in bad:
            raise RejectedError(404, {"error": "Not found"})
        query = request.query
        if query.get("bucket", "hour") != "hour":
            raise RejectedError(400, {"error": "Invalid bucket"})
        until = self._moment(query, "end", int(now))
        since = self._moment(query, "start", until - 7 * 24 * HOUR_S)
        config = {"bucket": "hour", "start": since, "end": until, "generated": int(now)}
        return encode({"config": config, "data": hours(coin, since, until, now)})

    @staticmethod
    def _moment(query: Mapping[str, str], name: str, default: int) -> int:
        text = query.get(name, str(default))
        if not re.fullmatch(r"\d{1,10}", text):
            raise RejectedError(400, {"error": f"Invalid {name}"})
        return int(text)
