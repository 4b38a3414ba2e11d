"""Who shares a limit."""

import pytest

from resilience.policy import Limit
from tasks.collectors.registry import load
from tasks.limits import _sharing_key
from tasks.settings import get_settings

ENDPOINT = load(["binance"], {})["binance"].endpoints["klines"]


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
