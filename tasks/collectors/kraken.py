"""Kraken spot market: bars of one minute.

Documented (docs.kraken.com/api and support.kraken.com, pages on OHLC data, errors and rate limits, read
2026-11): the newest 720 bars and never older ones, the last of them unfinished; one request a second for each
pair and IP address. Here it is one in two seconds for a pair: of two calls the second may be faster on its
way. Errors stand in an answer of status 200. The name of a pair in the answer is Kraken's own, and not always
the one that was asked for.
"""

from typing import Any

from tasks.collectors import Api, Bars, Cursor, Limit, Rule, Unit, number, seconds, whole
from tasks.data import ohlcv


def _error(names: str) -> str:
    return rf'"error"\s*:\s*\[\s*"E({names})'


kraken = Api(
    "kraken",
    "https://api.kraken.com/0",
    limits=[Limit("1/2s", per="symbol")],
    rules=[
        Rule(
            "rate_limited", body=_error("API:Rate limit|General:Too many|Service:Throttled"), retry_after="5s"
        ),
        Rule("banned", body=_error("General:Temporary lockout"), retry_after="15m"),
        Rule("invalid_symbol", body=_error("Query:")),
        Rule("validation", body=_error("General:Invalid")),
        Rule("server_error", body=_error("Service:|General:Internal")),
    ],
)


def _bars(body: Any) -> Any:
    """The rows of the one pair that was asked for, but for the last: by Kraken's clock it is not over."""
    (name,) = body["result"].keys() - {"last"}
    return body["result"][name][:-1]


@kraken.endpoint(
    "/public/OHLC",
    symbols=["XBTUSD", "ETHUSD"],
    symbol_pattern=r"[A-Z0-9.]{2,20}",
    params={"pair": "{symbol}", "interval": "1"},
    page=Bars("1m", start="since", size=719, unit="s"),
    rows=_bars,
    cursor=Cursor("open_time", lag="2m"),
    table=ohlcv,
    key=("symbol", "interval", "open_time"),
    every="1m",
)
def ohlc(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn `[time, open, high, low, close, average, volume, trades]` into a bar."""
    return {
        "symbol": unit.symbol,
        "interval": "1m",
        "open_time": seconds(row[0]),
        "open": number(row[1]),
        "high": number(row[2]),
        "low": number(row[3]),
        "close": number(row[4]),
        "volume": number(row[6]),
        "trades": whole(row[7]),
    }
