"""Exchanges read through ccxt, with few bars at a time."""

from tasks.collectors import RetryPolicy
from tasks.collectors.ccxt_exchange import ccxt_exchange

binance = ccxt_exchange("binance", markets={"BTC/USDT": "BTCUSDT"}, size=100)
coinbase = ccxt_exchange("coinbaseexchange", markets={"BTC/USD": "BTC-USD"}, size=300, name="coinbase")
kraken = ccxt_exchange("kraken", markets={"BTC/USD": "XXBTZUSD"}, limits=[])
bitstamp = ccxt_exchange("bitstamp", symbols=["BTC/USD", "ETH/USD"], limits=[])
for each in (binance, coinbase, kraken, bitstamp):
    each.retry = RetryPolicy(attempts=2, base_s=0.01)
