"""Binance: bars, weights, and bans."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tests.upstream.apis.base import Answer, Api, Charge, RejectedError, Request, encode, retry_after
from tests.upstream.data import LISTED_AT_S, kline, klines

STEPS_MS = {
    f"{count}{unit}": count * size * 1000
    for unit, size, counts in (
        ("s", 1, (1,)),
        ("m", 60, (1, 3, 5, 15, 30)),
        ("h", 3600, (1, 2, 4, 6, 8, 12)),
        ("d", 86_400, (1, 3)),
    )
    for count in counts
}


def expected(symbol: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """What has to be stored of the minutes of a window."""
    names = ("open", "high", "low", "close", "volume")
    begin, over = (int(at.timestamp() * 1000) for at in (start, end))
    return [
        {
            "source": "binance",
            "symbol": symbol,
            "interval": "1m",
            "open_time": datetime.fromtimestamp(row[0] / 1000, UTC),
            **dict(zip(names, map(Decimal, row[1:6]), strict=True)),
            "trades": row[8],
        }
        for row in klines(symbol, begin, over, 60_000)
    ]


@lru_cache(maxsize=512)
def _page(symbol: str, first: int, end: int, step: int) -> str:
    return json.dumps(klines(symbol, first, end, step), separators=(",", ":"))[1:-1]


class Binance(Api):
    """
    6,000 of weight a minute per address, seen through a sliding window (stricter than the real one's fixed minutes).

    Over it: 429 until Retry-After has passed; who still calls then (one sixtieth of the window is granted to what
    was on its way) is banned with 418 for two windows.
    """

    name, prefix, unit = "binance", "api/v3/", "weight"
    documented = {"amount": 6000, "window_s": 60}

    def rescale(self, limits: Mapping[str, float]) -> None:
        super().rescale(limits)
        self.refused: dict[str, tuple[float, float]] = {}  # address → since, until
        self.banned: dict[str, float] = {}

    def weight(self, path: str) -> int:
        return 2 if path == "klines" else 1

    def refuse(self, charges: list[Charge], now: float) -> Answer | None:
        ((_, key, _),) = charges
        since, until = self.refused.get(key, (0.0, 0.0))
        grace_s = self.meter.window_s / 60
        if now < until and now > since + grace_s and self.banned.get(key, 0.0) <= now:
            self.banned[key] = now + 2 * self.meter.window_s
        if now < self.banned.get(key, 0.0):
            self.meter.refused += 1
            return Answer(418, self.trouble(418), retry_after(self.banned[key] - now))
        if now < until:
            self.meter.refused += 1
            return self.too_many(until - now, self.unit)
        answer = super().refuse(charges, now)
        if answer is not None:
            self.refused[key] = (now, now + int(answer.headers["Retry-After"]))
        return answer

    def headers(self, key: str, now: float) -> dict[str, str]:
        return {"X-MBX-USED-WEIGHT-1M": str(self.meter.granted[key].at(now))}

    def trouble(self, status: int) -> bytes:
        if status in {418, 429}:
            return encode({"code": -1003, "msg": "Too much request weight used."})
        return encode({"code": -1000, "msg": "An unknown error occurred."})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        match request.path:
            case "ping":
                return b"{}"
            case "time":
                return encode({"serverTime": int(now * 1000)})
            case "klines":
                return self._klines(request.query, bad, int(now * 1000))
        raise RejectedError(404, {"code": -1000, "msg": "No such path."})

    def _klines(self, query: Mapping[str, str], bad: frozenset[str], now_ms: int) -> bytes:
        symbol, interval = query.get("symbol", ""), query.get("interval", "")
        for field_name in ("symbol", "interval"):
            if not query.get(field_name):
                raise RejectedError(
                    400, {"code": -1102, "msg": f"Mandatory parameter '{field_name}' was not sent."}
                )
        if not re.fullmatch("[A-Z0-9]{5,12}", symbol) or symbol.startswith("BAD") or symbol in bad:
            raise RejectedError(400, {"code": -1121, "msg": "Invalid symbol."})
        if interval not in STEPS_MS:
            raise RejectedError(400, {"code": -1120, "msg": "Invalid interval."})
        step = STEPS_MS[interval]
        limit = min(1000, self._whole(query, "limit", 500))
        if limit < 1:
            raise RejectedError(400, {"code": -1100, "msg": "Parameter 'limit' is out of range."})
        current = now_ms // step * step
        last = min(current, self._whole(query, "endTime", now_ms) // step * step)
        listed = -(-LISTED_AT_S * 1000 // step) * step
        if "startTime" in query:
            first = max(listed, -(-self._whole(query, "startTime", 0) // step) * step)
            last = min(last, first + (limit - 1) * step)
        else:
            first = max(listed, last - (limit - 1) * step)
        parts = [_page(symbol, first, min(last + step, current), step)] if first <= last else []
        if first <= last == current:
            parts.append(encode(kline(symbol, current, step, now_ms)).decode())
        return f"[{','.join(filter(None, parts))}]".encode()

    @staticmethod
    def _whole(query: Mapping[str, str], name: str, default: int) -> int:
        text = query.get(name, str(default))
        if not re.fullmatch(r"\d{1,16}", text):
            raise RejectedError(
                400, {"code": -1100, "msg": f"Illegal characters found in parameter '{name}'."}
            )
        return int(text)
