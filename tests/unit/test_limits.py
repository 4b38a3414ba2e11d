"""Who shares a limit."""

import gc
from dataclasses import replace

import pytest

from resilience.limiter import RateLimiter
from resilience.policy import Lane, Limit
from resilience.store import Route
from resilience.store.redis import RedisStore
from tasks.collectors.registry import load
from tasks.limits import _shared_ask, _sharing_key, ask_for, circuit_of
from tasks.settings import get_settings

ENDPOINT = load(["binance"], {})["binance"].endpoints["klines"]


@pytest.fixture
def some_redis(monkeypatch):
    """One that nobody calls."""
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://127.0.0.1:9/0")
    caches = (get_settings, circuit_of, _shared_ask)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.mark.parametrize(
    ("per", "key"),
    [
        ("api", "api"),
        ("account", "account"),
        ("endpoint", "endpoint:klines"),
        ("symbol", "symbol:BTCUSDT"),
        (lambda symbol: f"coin:{symbol[:3]}", "coin:BTC"),
    ],
)
def test_who_shares_a_limit(per, key):
    """As the declaration says; a function is given the symbol."""
    assert _sharing_key(Limit("60/1m", per=per), ENDPOINT, "BTCUSDT") == key


def test_hosts_of_one_name_share_an_address(monkeypatch):
    """Behind one address several hosts are one."""
    monkeypatch.setenv("PENSTOCK_IP_NAME", "office")
    get_settings.cache_clear()
    try:
        assert _sharing_key(Limit("60/1m", per="ip"), ENDPOINT, "BTCUSDT") == "ip:office"
    finally:
        get_settings.cache_clear()


def test_symbols_that_share_their_limits_share_what_is_asked(some_redis):
    """What a worker keeps does not grow with the symbols that it has seen; the weight makes a difference."""
    first = ask_for(ENDPOINT, "BTCUSDT", Lane.LIVE, 2)
    assert all(ask_for(ENDPOINT, f"SYM{n}", Lane.LIVE, 2) is first for n in range(5000))
    assert ask_for(ENDPOINT, "BTCUSDT", Lane.LIVE, 3) is not first


def test_symbols_with_limits_of_their_own_are_told_apart(some_redis):
    """Each asks for its own, and not all of them are kept."""
    limits = (Limit("60/1m", per="symbol"),)
    endpoint = replace(ENDPOINT, limits=limits)
    asked = [ask_for(endpoint, f"SYM{n}", Lane.LIVE, 2) for n in range(2000)]
    assert len({ask.limits[-1].key for ask in asked}) == 2000
    assert _shared_ask.cache_info().currsize <= 1024


def test_what_is_packed_for_a_route_goes_with_it():
    """Else a process with many routes, as limits per symbol make them, would grow for ever."""
    store = RedisStore("redis://127.0.0.1:9/0")
    for n in range(100):
        rate = RateLimiter("r", Limit("60/1m"), api="a", key=f"symbol:{n}").spec
        store._wire(Route("a", (), (rate,), (), None))
    gc.collect()
    assert len(store._wires) <= 1
