"""Coinbase Exchange: candles of one minute.

Documented (docs.cdp.coinbase.com/exchange/rest-api/rate-limits and its page on candles, read 2026-11): 10
requests per second and IP address, bursts of 15, and no header that tells; 300 candles a request, a wider
window is rejected. Candles come newest first, minutes without trades have none, and some may lie before the
start.
"""

from typing import Any

from tasks.collectors import Api, Bars, Cursor, Limit, Unit, number, seconds
from tasks.data import ohlcv

coinbase = Api(
    "coinbase",
    "https://api.exchange.coinbase.com",
    limits=[Limit("10/1s", per="ip", reserve=0.3)],
)


@coinbase.endpoint(
    "/products/{symbol}/candles",
    symbols=["BTC-USD", "ETH-USD"],
    symbol_pattern=r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}",
    params={"granularity": "{interval_s}"},
    page=Bars("1m", start="start", end="end", size=300, unit="iso"),
    cursor=Cursor("open_time", lag="2m", chunk="7d"),
    table=ohlcv,
    key=("symbol", "interval", "open_time"),
    every="1m",
)
def candles(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn `[time, low, high, open, close, volume]` into a bar; mind the order."""
    return {
        "symbol": unit.symbol,
        "interval": "1m",
        "open_time": seconds(row[0]),
        "open": number(row[3]),
        "high": number(row[2]),
        "low": number(row[1]),
        "close": number(row[4]),
        "volume": number(row[5]),
        "trades": None,
    }
