"""Bars of any exchange that ccxt knows, through our own session: `pip install penstock[ccxt]`.

    bitstamp = ccxt_exchange("bitstamp", symbols=["BTC/USD"], interval="1m")

`PENSTOCK_COLLECTORS=ccxt:bitstamp` is that with the defaults, its symbols in the settings. Prefer a collector
of ours where there is one (binance, coinbase, kraken): it knows the exchange's limits and its pitfalls.

ccxt (read and tried, 4.5.90, 2026-11) throttles each instance by itself and asks for the markets whenever it
wants to, so its throttle is off and the markets are asked for once per process, by calls that are counted.
Its floats lose digits, so numbers stay text. Of a broken body it makes rows of None, which no table takes.
"""

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from resilience.errors import (
    APIError,
    BadPayloadError,
    BannedError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    PenstockError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from resilience.headers import retry_after_s
from resilience.policy import Limit
from tasks import data
from tasks.collectors.fields import ms, number, to_ms
from tasks.collectors.rows import bad_payload, decode
from tasks.collectors.spans import Bars
from tasks.collectors.spec import Api
from tasks.collectors.times import Cursor
from tasks.collectors.values import Answer, Checkpoint, Fetched, Unit
from tasks.overrides import closest

Markets = Mapping[str, str]

_WANTED = ("public", "spot", "rest", "v3", "v2", "v1")  # which of an exchange's addresses serves bars
_SHOWN_CHARACTERS = 300


def ccxt_exchange(
    exchange: str,
    *,
    symbols: Sequence[str] = (),
    interval: str = "1m",
    size: int = 500,
    markets: Markets | None = None,
    limits: Sequence[Limit] | None = None,
    base_url: str | None = None,
    name: str | None = None,
) -> Api:
    """A collector of an exchange by its id in ccxt, with one endpoint, `ohlcv`, into the table `ohlcv`.

    `symbols` are ccxt's own ("BTC/USD"). `markets` says what the exchange calls each of them ("btcusd");
    without it that is asked for once per process. `size` is how many bars are asked for at once: what the
    exchange gives at most, or less. The limit is ccxt's `rateLimit` for this address unless `limits` says
    better; `base_url` is the first public address in ccxt's description.
    """
    kind = _class_of(exchange)
    described = kind({"enableRateLimit": False})
    known = described.timeframes or {}
    if interval not in known:
        raise ConfigurationError(
            f"{exchange}: interval is {interval!r}, but it has bars of {', '.join(known) or 'no length'}"
        )
    if not described.has.get("fetchOHLCV"):
        raise ConfigurationError(f"{exchange}: ccxt cannot read bars there")
    declared = _origin(base_url or _first_address(described))
    api = Api(
        name or exchange,
        declared,
        limits=[Limit(_spec(described.rateLimit), per="ip", reserve=0.3)] if limits is None else limits,
    )
    bars = Bars(interval, start="since", end="until", size=size)
    source = _Source(exchange, declared, dict(markets or {}), interval, bars)

    @api.endpoint(
        fetch=source.fetch,
        symbols=list(symbols or markets or ()),
        page=bars,
        cursor=Cursor("open_time", lag=f"{2 * bars.width // timedelta(seconds=1)}s", chunk="7d"),
        table=data.ohlcv,
        key=("symbol", "interval", "open_time"),
        every=max(bars.width, timedelta(minutes=1)),
    )
    def ohlcv(row: Any, unit: Unit) -> dict[str, Any]:
        return {
            "symbol": unit.symbol,
            "interval": interval,
            "open_time": ms(row[0]),
            "open": number(row[1]),
            "high": number(row[2]),
            "low": number(row[3]),
            "close": number(row[4]),
            "volume": number(row[5]),
        }

    return api


@functools.cache
def _with_defaults(exchange: str) -> Api:
    return ccxt_exchange(exchange)


def __getattr__(name: str) -> Api:
    """`tasks.collectors.ccxt_exchange:bitstamp`, and `ccxt:bitstamp` for short."""
    if name.startswith("_"):
        raise AttributeError(name)
    return _with_defaults(name)


@dataclass(eq=False)
class _Source:
    """Reads bars from one exchange: an instance of ccxt's for each thread, the markets for all of them."""

    exchange: str
    declared: str  # the host in ccxt's description, of which the session may have another
    markets: Mapping[str, str]
    interval: str
    bars: Bars
    _listed: list[Any] | None = None
    _own: threading.local = field(default_factory=threading.local)

    def fetch(self, unit: Unit, checkpoint: Checkpoint, session: Any) -> Fetched:
        """One page of bars, from the checkpoint on or from where the window begins."""
        assert unit.start is not None
        assert unit.end is not None
        session.raises = False  # ccxt reads errors itself, and knows more of each exchange than rules would
        client = self._client(session)
        since = checkpoint.get("since", int(to_ms(unit.start)))
        end, width = int(to_ms(unit.end)), _ms(self.bars.width)
        wanted = min(self.bars.size, -(-(end - since) // width))
        try:
            self._know(client, unit.symbol)
            rows = client.fetch_ohlcv(unit.symbol, self.interval, since=since, limit=wanted)
        except _ccxt().BaseError as error:
            raise _ours(self.exchange, error, client, session) from error
        _check_body(self.exchange, session.calls.answer)
        after = self._after(rows, since, end, wanted * width)
        return Fetched(rows, next={"since": after} if after < end else None)

    def _after(self, rows: Sequence[Any], since: int, end: int, asked: int) -> int:
        """Where the next page begins: behind the last bar, or behind what was asked for where there is none.

        An exchange may give fewer bars than it was asked for, and minutes without trades have none.
        """
        times = [row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], int)]
        last = max((at for at in times if since <= at < end), default=None)
        return since + asked if last is None else last + _ms(self.bars.width)

    def _client(self, session: Any) -> Any:
        """The instance of this thread: ccxt's are not made for several."""
        client = getattr(self._own, "client", None)
        if client is None:
            client = self._own.client = _class_of(self.exchange)(
                {"enableRateLimit": False, "session": session}
            )
            client.number = str  # floats lose digits
            client.filter_by_since_limit = _unfiltered
            if isinstance(kinds := client.options.get("fetchMarkets"), dict) and "types" in kinds:
                client.options["fetchMarkets"] = {**kinds, "types": ["spot"]}  # others are on other hosts
            self._own.urls = client.urls["api"]
        client.session = session
        client.urls["api"] = _moved(self._own.urls, client.hostname or "", self.declared, session.base_url)
        return client

    def _know(self, client: Any, symbol: str) -> None:
        """Tell ccxt the markets before it asks for them; by calls of its own once per process."""
        if self.markets:
            listed = [_market(client, each, name) for each, name in self.markets.items()]
        else:
            if self._listed is None:
                self._listed = client.fetch_markets()
            listed = self._listed
        if client.markets is None:
            client.set_markets(listed)
        if symbol not in client.markets:
            raise NotFoundError(f"{self.exchange} has no market {symbol!r}")


def _unfiltered(rows: Any, *_: Any, **__: Any) -> Any:
    """All rows, also those without a time: ccxt would leave out just what shows that a body is broken."""
    return rows


def _check_body(exchange: str, answer: Answer | None) -> None:
    """Of a body that is cut off or no JSON at all, ccxt makes no bars and no error."""
    if answer is None:
        return
    try:
        found = decode(answer.body)
    except (ValueError, RecursionError) as error:
        raise bad_payload(exchange, f"it is no JSON: {error}", answer.body, answer.status) from error
    if found is None:
        raise bad_payload(exchange, "there is nothing in it", answer.body, answer.status)


def _ccxt() -> ModuleType:
    """Half a second and 67 MiB, so only for those who use it. Raises ConfigurationError without it."""
    try:
        import ccxt  # noqa: PLC0415
    except ImportError as error:
        raise ConfigurationError("ccxt is not installed: pip install 'penstock[ccxt]'") from error
    module: ModuleType = ccxt
    return module


def _class_of(exchange: str) -> Any:
    ccxt = _ccxt()
    if exchange not in ccxt.exchanges:
        raise ConfigurationError(f"ccxt knows no exchange {exchange!r}; {closest(exchange, ccxt.exchanges)}")
    return getattr(ccxt, exchange)


def _first_address(described: Any) -> str:
    """Where the exchange's public API is, by ccxt's description, which may be a tree."""
    found: Any = described.urls["api"]
    while isinstance(found, dict):
        found = next((found[key] for key in _WANTED if key in found), next(iter(found.values())))
    return str(found).replace("{hostname}", described.hostname or "")


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}"


def _moved(urls: Any, hostname: str, declared: str, to: str) -> Any:
    """The addresses, those of the declared host moved to where the settings say it is."""
    if isinstance(urls, dict):
        return {key: _moved(each, hostname, declared, to) for key, each in urls.items()}
    if not isinstance(urls, str):
        return urls
    whole = urls.replace("{hostname}", hostname)
    return to + whole.removeprefix(declared) if whole.startswith(declared) else whole


def _market(client: Any, symbol: str, name: str) -> Any:
    base, _, quote = symbol.partition("/")
    return client.safe_market_structure(
        {
            "id": name,
            "symbol": symbol,
            "base": base,
            "quote": quote,
            "type": "spot",
            "spot": True,
            "active": True,
        }
    )


def _spec(rate_limit_ms: float) -> str:
    """The pause between two calls that ccxt keeps, as a limit."""
    return f"{max(1, int(60_000 / max(rate_limit_ms, 1)))}/1m"


def _ms(width: timedelta) -> int:
    return width // timedelta(milliseconds=1)


def _ours(exchange: str, error: Exception, client: Any, session: Any) -> PenstockError:
    """What an exception of ccxt means. Where it says little, the status of the answer decides."""
    ccxt = _ccxt()
    said = f"{exchange}: {type(error).__name__}: {error}"[:_SHOWN_CHARACTERS]
    wait_s = retry_after_s(client.last_response_headers or {})
    answer = session.calls.answer
    status = None if answer is None else answer.status
    for kinds, ours in (
        ((ccxt.RateLimitExceeded, ccxt.DDoSProtection), RateLimitError),
        ((ccxt.AuthenticationError,), InvalidCredentialsError),
        ((ccxt.BadSymbol,), NotFoundError),
        ((ccxt.BadRequest, ccxt.ArgumentsRequired, ccxt.NotSupported), ValidationError),
        ((ccxt.BadResponse, ccxt.NullResponse), BadPayloadError),
    ):
        if isinstance(error, kinds):
            return _made(BannedError if status == 418 else ours, said, status, wait_s)
    # ccxt takes 403 and 451, a country that may not call, for an outage; and a 404 for an order not found.
    if status is not None and 400 <= status < 500:
        return session.calls.failure or APIError(said, status=status)
    if isinstance(error, ccxt.OperationFailed):  # with NetworkError and ExchangeNotAvailable below it
        return ServerError(said, status=status, retry_after_s=wait_s)
    return ValidationError(said, status=status)


def _made(kind: type[PenstockError], said: str, status: int | None, wait_s: float | None) -> PenstockError:
    if issubclass(kind, APIError):
        return kind(said, status=status, retry_after_s=wait_s)
    return kind(said)
