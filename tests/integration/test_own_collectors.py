"""Collectors from the user's own files, and what an installation's file changes."""

import sys

import pytest

from resilience.errors import ConfigurationError
from tasks.collectors.registry import collectors, endpoint_of, find, load

MODULE = """
from tasks.collectors import Api

shop = Api("shop", "https://shop.example")

@shop.endpoint("/orders", key="id")
def orders(row, unit):
    return row

other = Api("binance", "https://shop.example")
broken = 3
"""


@pytest.fixture
def beside(tmp_path, monkeypatch):
    """A module of the user's own in the working directory, as a console script meets it."""

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield write
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def fresh():
    for cached in (collectors, endpoint_of):
        cached.cache_clear()
    yield
    for cached in (collectors, endpoint_of):
        cached.cache_clear()


def test_one_of_your_own(beside):
    """By module and attribute, from the working directory."""
    module = beside("my_shop", MODULE)
    found = load([f"{module}:shop", "binance"], {"shop": {"base_url": "http://127.0.0.1:1"}})
    assert [e.full_name for e in find(found, "shop")] == ["shop.orders"]
    assert found["shop"].base_url == "http://127.0.0.1:1"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:shop", "ModuleNotFoundError"),
        ("my_broken:shop", "AttributeError"),
        ("my_broken:other", "int, and no Api"),
        ("my_pathless:shop", r"^\S+/my_pathless\.py:\d+: shop: the path of an endpoint is missing"),
        ("my_nameless:shop", r"^\S+/my_nameless\.py:\d+: a collector has no name"),
        ("my_broken:none", "^collector 'my_broken:none' cannot be loaded: AttributeError: module"),
        ("my_wrong:shop", r"^\S+/my_wrong\.py:\d+: shop\.orders: key is missing"),
        ("my_syntax:shop", "SyntaxError"),
    ],
)
def test_a_module_that_is_wrong_is_one_sentence(beside, name, said):
    """No traceback for whoever mistyped a declaration or a name."""
    beside("my_broken", "other = 3")
    beside("my_wrong", MODULE.replace(', key="id"', ""))
    beside("my_pathless", MODULE.replace('"/orders", ', ""))
    beside("my_nameless", MODULE.replace('"shop", ', "base_url="))
    beside("my_syntax", "def")
    with pytest.raises(ConfigurationError, match=said):
        load([name], {})


def test_two_of_one_name(beside):
    """One would hide the other."""
    module = beside("my_shop", MODULE)
    with pytest.raises(ConfigurationError, match="two collectors are called 'binance'"):
        load([f"{module}:other", "binance"], {})


def test_the_installation_decides(fresh, monkeypatch, tmp_path):
    """What the processes use: names from the environment, the rest from the file."""
    from tasks.settings import get_settings

    (tmp_path / "penstock.toml").write_text('[coinbase.candles]\nsymbols = ["SOL-USD"]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENSTOCK_COLLECTORS", "coinbase")
    get_settings.cache_clear()
    assert collectors().keys() == {"coinbase"}
    assert endpoint_of("coinbase.candles").check_symbols() == ("SOL-USD",)
    assert endpoint_of("coinbase.candles") is endpoint_of("coinbase.candles")
    for name in ("coinbase", "binance.klines"):
        with pytest.raises(ConfigurationError):
            endpoint_of(name)
