"""Glassnode: daily metrics in one answer, with gaps, and newest points that are revised."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.upstream.apis.base import Answer, Api, RejectedError, Request, encode
from tests.upstream.data import LISTED_AT_S, mix, seed

DAY_S = 86_400
METRICS = ("market/price_usd_close", "addresses/active_count")


def value(metric: str, asset: str, day_s: int, now: float) -> int | float | None:
    """The value of a day: null on some, and other than it will be until two days after the day is over."""
    own = seed(f"{metric} {asset}")
    bits = mix(own, day_s)
    if bits % 19 == 0:
        return None
    revised = 0 if now >= day_s + 3 * DAY_S else 1 + bits % 50
    if metric == "addresses/active_count":
        return 500_000 + (bits >> 8) % 600_000 - revised
    cents = 10_000 + own % 9_000_000
    return (cents * (900 + (bits >> 8) % 200) // 1000 - revised) / 100


def points(metric: str, asset: str, since_s: int, until_s: int, now: float) -> list[dict[str, Any]]:
    """The days that are over, from one moment to another, both included."""
    first = max(LISTED_AT_S, -(-since_s // DAY_S) * DAY_S)
    last = min(until_s, int(now) - DAY_S)
    return [{"t": at, "v": value(metric, asset, at, now)} for at in range(first, last + 1, DAY_S)]


def expected(metric: str, asset: str, start: datetime, end: datetime, now: float) -> list[dict[str, Any]]:
    """What has to be stored of the days between two midnights, as it stood at a moment."""
    return [
        {
            "metric": metric,
            "asset": asset,
            "at": datetime.fromtimestamp(point["t"], UTC),
            "value": Decimal(str(point["v"])),
        }
        for point in points(metric, asset, int(start.timestamp()), int(end.timestamp()) - 1, now)
        if point["v"] is not None
    ]


class Glassnode(Api):
    """600 a minute for each key, told in every answer; the wait is named in seconds by `x-rate-limit-reset`."""

    name, prefix = "glassnode", "v1/metrics/"
    documented = {"amount": 600, "window_s": 60}

    def key(self, request: Request) -> str:
        key = request.headers.get("x-api-key") or request.query.get("api_key", "")
        if not key or key.startswith("BAD"):
            raise RejectedError(401, {"error": "invalid API key"})
        return key

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def headers(self, key: str, now: float) -> dict[str, str]:
        window = self.meter.granted[key]
        left = self.meter.amount - window.at(now)
        return {
            "x-rate-limit-limit": str(self.meter.amount),
            "x-rate-limit-remaining": str(left),
            "x-rate-limit-reset": str(-int(-window.room_in(now, 1) // 1)),
        }

    def trouble(self, status: int) -> bytes:
        return encode({"error": "too many requests" if status == 429 else "internal error"})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        query = request.query
        if request.path not in METRICS:
            raise RejectedError(404, {"error": f"unknown metric {request.path}"})
        asset = query.get("a", "")
        if not re.fullmatch("[A-Z0-9]{2,10}", asset) or asset.startswith("BAD") or asset in bad:
            raise RejectedError(400, {"error": f"unknown asset {asset}"})
        if query.get("i", "24h") != "24h" or query.get("f", "json") != "json":
            raise RejectedError(400, {"error": "unsupported resolution or format"})
        since, until = self._moment(query, "s", LISTED_AT_S), self._moment(query, "u", int(now))
        return encode(points(request.path, asset, since, until, now))

    @staticmethod
    def _moment(query: Mapping[str, str], name: str, default: int) -> int:
        text = query.get(name, str(default))
        if not re.fullmatch(r"\d{1,10}", text):
            raise RejectedError(400, {"error": f"{name} has to be a unix timestamp"})
        return int(text)
