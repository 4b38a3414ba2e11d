"""Kraken: bars of the newest 720 intervals, and errors inside answers of status 200."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from tests.upstream.apis.base import Answer, Api, Charge, RejectedError, Request, encode
from tests.upstream.data import LISTED_AT_S, _bar

INTERVALS = (1, 5, 15, 30, 60, 240, 1440, 10_080, 21_600)  # minutes
MOST = 720
NAMES = {"XBTUSD": "XXBTZUSD", "ETHUSD": "XETHZUSD", "LTCEUR": "XLTCZEUR"}  # as Kraken calls them itself


def _money(cents: int) -> str:
    return f"{cents // 100}.{cents % 100:02d}"


def bar(pair: str, at: int, width_s: int, now: float | None = None) -> list[Any]:
    """One row; with `now` inside the bar the unfinished one, whose figures will change."""
    elapsed = width_s if now is None else min(width_s, max(0, int(now) - at))
    first, high, low, last, volume, trades = _bar(f"kraken {pair}", at, width_s, elapsed)
    average = (high + low) // 2 if volume else 0
    prices = [_money(each) for each in (first, high, low, last, average)]
    return [at, *prices, f"{volume // 1000}.{volume % 1000:03d}00000", trades]


def bars(pair: str, since_s: int, width_s: int, now: float) -> list[list[Any]]:
    """The newest 720 that began after a moment, the last of them the one that is running."""
    current = int(now) // width_s * width_s
    first = max(LISTED_AT_S, current - (MOST - 1) * width_s, since_s // width_s * width_s + width_s)
    return [
        bar(pair, at, width_s, now if at == current else None) for at in range(first, current + 1, width_s)
    ]


def expected(pair: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """What has to be stored of the minutes between two full ones."""
    minutes = int((end - start) / timedelta(minutes=1))
    rows = [bar(pair, int(start.timestamp()) + 60 * n, 60) for n in range(minutes)]
    names = ("open", "high", "low", "close")
    return [
        {
            "source": "kraken",
            "symbol": pair,
            "interval": "1m",
            "open_time": datetime.fromtimestamp(row[0], UTC),
            **{name: Decimal(text) for name, text in zip(names, row[1:5], strict=True)},
            "volume": Decimal(row[6]),
            "trades": row[7],
        }
        for row in rows
    ]


class Kraken(Api):
    """One request a second for each address and pair; who asks more is told so in a 200."""

    name, prefix = "kraken", "0/public/"
    documented = {"amount": 1, "window_s": 1}

    def key(self, request: Request) -> str:
        if not request.headers.get("user-agent"):
            raise RejectedError(403, {"error": ["EGeneral:Permission denied"]})
        return request.address

    def charges(self, request: Request, key: str) -> list[Charge]:
        pair = request.query.get("pair", "")
        return [(self.meter, f"{key} {pair}", 1)] if request.path == "OHLC" else []

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(200, self._errors("EGeneral:Too many requests"))

    @staticmethod
    def _errors(*errors: str) -> bytes:
        return encode({"error": list(errors)})

    def trouble(self, status: int) -> bytes:
        return self._errors("EAPI:Rate limit exceeded" if status == 429 else "EService:Unavailable")

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        if request.path == "SystemStatus":
            at = datetime.fromtimestamp(int(now), UTC).isoformat().replace("+00:00", "Z")
            return encode({"error": [], "result": {"status": "online", "timestamp": at}})
        if request.path != "OHLC":
            return self._errors("EGeneral:Unknown method")
        return self._ohlc(request.query, bad, now)

    def _ohlc(self, query: Mapping[str, str], bad: frozenset[str], now: float) -> bytes:
        pair, interval, since = query.get("pair", ""), query.get("interval", "1"), query.get("since", "0")
        if not re.fullmatch("[A-Z0-9.]{5,12}", pair) or pair.startswith("BAD") or pair in bad:
            return self._errors("EQuery:Unknown asset pair")
        if interval not in map(str, INTERVALS) or not re.fullmatch(r"\d{1,10}", since):
            return self._errors("EGeneral:Invalid arguments")
        rows = bars(pair, int(since), 60 * int(interval), now)
        last = rows[-2][0] if len(rows) > 1 else int(since)
        name = NAMES.get(pair, pair)
        return encode({"error": [], "result": {name: rows, "last": str(last) if last % 120 else last}})
