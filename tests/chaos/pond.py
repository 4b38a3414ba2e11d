"""The collector of the fault runs: many small units, no limit but the machine."""

import os
import signal
from decimal import Decimal

from tasks.collectors import Api, Bars, Cursor, Limit, ms
from tasks.data import ohlcv

pond = Api(
    "pond",
    os.environ["POND_URL"],
    limits=[Limit(os.environ.get("POND_LIMIT", "600000/1m"))],
)


@pond.endpoint(
    "/api/v3/klines",
    symbols=[f"SYM{n:05d}" for n in range(int(os.environ["POND_SYMBOLS"]))],
    params={"symbol": "{symbol}", "interval": "{interval}"},
    page=Bars("1m", start="startTime", end="endTime", size=10, size_param="limit"),
    cursor=Cursor("open_time", lag="2m", chunk="20m"),
    table=ohlcv,
    key=("symbol", "interval", "open_time"),
    weight=2,
)
def klines(row, unit):
    """One bar; a symbol that is told to kills the process that parses it."""
    if unit.symbol == os.environ.get("POND_POISON"):
        os.kill(os.getpid(), signal.SIGKILL)
    names = ("open", "high", "low", "close", "volume")
    return {
        "symbol": unit.symbol,
        "interval": "1m",
        "open_time": ms(row[0]),
        **dict(zip(names, map(Decimal, row[1:6]), strict=True)),
        "trades": row[8],
    }
