"""Who shares a limit."""

import gc
import weakref
from dataclasses import replace

import pytest

from resilience.errors import ConfigurationError
from resilience.guard import Guard
from resilience.limiter import RateLimiter
from resilience.policy import Lane, Limit
from resilience.store import Route
from resilience.store.away import RETRY_S
from resilience.store.memory import MemoryStore
from tasks import limits
from tasks.collectors import Api
from tasks.collectors.registry import load
from tasks.limits import _circuit, _shared_ask, _sharing_key, ask_for
from tasks.settings import get_settings

ENDPOINT = load(["binance"], {})["binance"].endpoints["klines"]


@pytest.fixture
def some_redis(monkeypatch):
    """One that nobody calls."""
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://127.0.0.1:9/0")
    caches = (get_settings, _circuit, _shared_ask)
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
    route = Route("a", (), (RateLimiter("r", Limit("60/1m"), api="a", key="symbol").spec,), (), None)
    packed = weakref.ref(route.wire)
    gc.disable()
    try:
        del route
        assert packed() is None  # and it needs no collection
    finally:
        gc.enable()


def test_the_fleet_waits_for_as_long_as_redis_may_take(some_redis):
    """A process that is still waiting for an answer when Redis is back has to find that out before others call."""
    sharing = limits.guard().store
    longest_s = sharing.shared._timeout_s
    assert longest_s == limits.ANSWERS_WITHIN_S
    assert sharing.hold_us >= (longest_s + RETRY_S) * 1e6


@pytest.mark.parametrize(
    ("per", "names"),
    [
        (("endpoint",), ["desk.tickets"]),
        (("api",), ["desk"]),
        (("endpoint", "api"), ["desk.tickets", "desk"]),
    ],
)
def test_circuits_of_an_endpoint(some_redis, per, names):
    """Its own, one for the whole Api, or both; endpoints share the Api's."""
    desk = Api("desk", "https://desk.example", breaker_per=per)

    @desk.endpoint("/tickets", key="id")
    def tickets(row, unit):
        return row

    @desk.endpoint("/users", key="id")
    def users(row, unit):
        return row

    first, second = [ask_for(each, "", Lane.LIVE, 1).circuits for each in desk.endpoints.values()]
    assert [circuit.circuit for circuit in first] == names
    shared = set(first) & set(second)
    assert {circuit.circuit for circuit in shared} == {"desk"} & set(names)


def test_the_least_open_circuit_speaks(some_redis, monkeypatch):
    """Waves and parked units go by it."""
    desk = Api("desk", "https://desk.example", breaker_per=("endpoint", "api"))

    @desk.endpoint("/tickets", key="id")
    def tickets(row, unit):
        return row

    store = MemoryStore()
    monkeypatch.setattr(limits, "guard", lambda: Guard(store))
    endpoint = desk.endpoints["tickets"]
    own, whole = limits.circuits_of(endpoint)
    own.half_open()
    assert limits.circuits([endpoint])["desk.tickets"].state == "half_open"
    whole.half_open()
    own.can_attempt()
    assert limits.circuits([endpoint])["desk.tickets"].free_permits == 2
    whole.open()
    assert limits.circuits([endpoint])["desk.tickets"].state == "open"


@pytest.mark.parametrize("per", ["api", (), ("symbol",), ("api", "api")])
def test_circuits_that_cannot_be(per):
    """Said where it is declared."""
    with pytest.raises(ConfigurationError, match=r"breaker_per is .* a list of endpoint and api"):
        Api("desk", "https://desk.example", breaker_per=per)
