"""Binance spot market: bars of one minute.

Documented (github.com/binance/binance-spot-api-docs, rest-api.md, read 2026-11): 6,000 weight per minute and
IP address, klines weigh 2; 429 asks to slow down and 418 bans the address, both with Retry-After in seconds;
403 is the firewall. `GET /api/v3/exchangeInfo` is the authority: where it names other limits, put them in the
settings.
"""

from typing import Any

from tasks.collectors import Api, Bars, Cursor, Limit, Rule, Unit, ms, number
from tasks.data import ohlcv

binance = Api(
    "binance",
    "https://api.binance.com",
    limits=[Limit("6000/1m", per="ip", used="X-MBX-USED-WEIGHT-1M", reserve=0.3)],
    rules=[Rule("rate_limited", status=429), Rule("banned", status=(418, 403), retry_after="2m")],
)


@binance.endpoint(
    "/api/v3/klines",
    symbols=["BTCUSDT", "ETHUSDT"],
    symbol_pattern=r"[A-Z0-9._-]{1,20}",
    params={"symbol": "{symbol}", "interval": "{interval}"},
    page=Bars("1m", start="startTime", end="endTime", size=1000, size_param="limit"),
    cursor=Cursor("open_time", lag="2m", chunk="7d"),
    table=ohlcv,
    key=("symbol", "interval", "open_time"),
    weight=2,
    every="1m",
)
def klines(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn `[open time, open, high, low, close, volume, close time, quote volume, trades, …]` into a bar."""
    return {
        "symbol": unit.symbol,
        "interval": "1m",
        "open_time": ms(row[0]),
        "open": number(row[1]),
        "high": number(row[2]),
        "low": number(row[3]),
        "close": number(row[4]),
        "volume": number(row[5]),
        "trades": row[8],
    }
