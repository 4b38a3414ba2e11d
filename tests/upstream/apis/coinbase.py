"""Coinbase: candles, and a limit that no header tells."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tests.upstream.apis.base import Answer, Api, RejectedError, Request, encode
from tests.upstream.data import candle, candles


def expected(product: str, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """What has to be stored of the minutes of a window."""
    names = ("low", "high", "open", "close", "volume")
    return [
        {
            "source": "coinbase",
            "symbol": product,
            "interval": "1m",
            "open_time": datetime.fromtimestamp(row[0], UTC),
            **{name: Decimal(str(value)) for name, value in zip(names, row[1:], strict=True)},
            "trades": None,
        }
        for row in reversed(candles(product, int(start.timestamp()), int(end.timestamp()), 60))
    ]


class Coinbase(Api):
    """10 a second per address from a bucket of 15; 429 without any header; at most 300 buckets in one window."""

    name = "coinbase"
    documented = {"amount": 10, "window_s": 1, "burst": 15}
    GRANULARITIES = (60, 300, 900, 3600, 21_600, 86_400)

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def trouble(self, status: int) -> bytes:
        return encode({"message": "Public rate limit exceeded" if status == 429 else "Internal server error"})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        if request.path == "time":
            iso = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            return encode({"iso": iso, "epoch": round(now, 3)})
        found = re.fullmatch("products/([^/]+)/candles", request.path)
        product = found[1] if found else ""
        if not re.fullmatch("[A-Z0-9]+-[A-Z]+", product) or product.startswith("BAD") or product in bad:
            raise RejectedError(404, {"message": "NotFound"})
        return self._candles(product, request.query, now)

    def _candles(self, product: str, query: Mapping[str, str], now: float) -> bytes:
        granularity = query.get("granularity", "60")
        if granularity not in map(str, self.GRANULARITIES):
            raise RejectedError(400, {"message": "Unsupported granularity"})
        step = int(granularity)
        current = int(now) // step * step
        first, last = current - 299 * step, current
        if "start" in query and "end" in query:  # one without the other is ignored
            start, end = self._moment(query["start"]), self._moment(query["end"])
            if end < start:
                raise RejectedError(400, {"message": "start must be before end"})
            if end // step - -(-start // step) + 1 > 300:
                raise RejectedError(
                    400, {"message": "granularity too small: more than 300 candles in this range"}
                )
            # The bucket that holds an unaligned start is sent too: a row may precede what was asked for.
            first, last = int(start // step * step), min(current, int(end // step * step))
        rows = (
            candle(product, at, step, now if at == current else None) for at in range(last, first - 1, -step)
        )
        return encode([row for row in rows if row is not None])

    @staticmethod
    def _moment(text: str) -> float:
        try:
            if re.fullmatch(r"\d+(\.\d+)?", text):
                return float(text)
            at = datetime.fromisoformat(text)
        except ValueError:
            raise RejectedError(400, {"message": "Invalid start or end"}) from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
