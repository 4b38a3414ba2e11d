"""Which collectors there are, and what settings may change about them."""

from datetime import timedelta

import pytest

from resilience.errors import ConfigurationError
from tasks.collectors.registry import find, load


def test_the_shipped_ones_are_there():
    """Installed or not, without naming them."""
    found = load(None, {})
    assert {"binance", "coinbase", "asana"} <= found.keys()
    assert load((), {}).keys() == found.keys()


def test_only_what_is_named_is_loaded():
    """One name, one collector."""
    assert load(["coinbase"], {}).keys() == {"coinbase"}


def test_an_unknown_name_gets_a_suggestion():
    """What was probably meant."""
    with pytest.raises(ConfigurationError, match=r"no collector 'binanse'; did you mean binance\?"):
        load(["binanse"], {})


def test_find_one_or_all():
    """An endpoint by its full name, a collector's endpoints by its own."""
    found = load(["binance"], {})
    assert find(found, "binance.klines") == find(found, "binance") == [found["binance"].endpoints["klines"]]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("binanse.klines", r"did you mean binance\?"),
        ("binance.kline", r"no endpoint 'kline'; did you mean klines\?"),
        ("binance.", "no endpoint ''"),
        ("", "no collector"),
        ("binance.klines.x", "no endpoint"),
    ],
)
def test_find_says_what_there_is(name, said):
    """Unknown collector or endpoint."""
    with pytest.raises(ConfigurationError, match=said):
        find(load(["binance"], {}), name)


def test_settings_change_a_collector():
    """Address, amounts, policies, symbols and schedule; the declaration itself stays."""
    changed = load(
        ["binance"],
        {
            "binance": {
                "base_url": "http://127.0.0.1:8080/",
                "limits": ["1200/1m", "5 at once"],
                "breaker": {"failures": 3, "open_for_s": 10},
                "retry": {"attempts": 2},
                "klines": {"symbols": ["ABC"], "every": "5m", "catch_up": "all", "overlap": "queue"},
            }
        },
    )["binance"]
    declared = load(["binance"], {})["binance"]
    first, second = changed.limits
    assert (first.spec, first.used, first.per) == ("1200/1m", "X-MBX-USED-WEIGHT-1M", "ip")
    assert (second.spec, second.per) == ("5 at once", "ip")
    assert (changed.breaker.failures, changed.breaker.open_for) == (3, timedelta(seconds=10))
    assert (changed.breaker.rate, changed.retry.attempts) == (declared.breaker.rate, 2)
    klines = changed.endpoints["klines"]
    assert klines.api is changed
    assert (klines.symbols, klines.every) == (("ABC",), timedelta(minutes=5))
    assert (klines.catch_up, klines.overlap) == ("all", "queue")
    assert changed.base_url == "http://127.0.0.1:8080"
    assert declared.base_url == "https://api.binance.com"
    assert declared.endpoints["klines"].symbols == ("BTCUSDT", "ETHUSDT")
    assert declared.endpoints["klines"].api is declared


def test_limits_that_no_text_speaks_of_stay():
    """Paying Asana for more requests does not lift its limit of requests at once."""
    changed = load(["asana"], {"asana": {"limits": ["1500/1m"]}})["asana"]
    assert [each.spec for each in changed.limits] == ["1500/1m", "50 at once"]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"binanse": {}}, r"collector 'binanse'; did you mean binance\?"),
        ({"binance": {"kline": {}}}, r"no endpoint 'kline'; did you mean klines\?"),
        ({"binance": {"klines": {"symbol": ["A"]}}}, r"did you mean symbols\?"),
        ({"binance": {"klines": {"symbols": "A"}}}, "list of symbols"),
        ({"binance": {"klines": {"symbols": ["a b"]}}}, "'a b' is no symbol"),
        ({"binance": {"klines": {"every": "soon"}}}, r"binance\.klines: every is 'soon'"),
        ({"binance": {"klines": 3}}, "table"),
        ({"binance": {"limits": ["1/1m"]}}, "weight is 2, more than limit '1/1m'"),
        ({"binance": {"base_url": "ftp://x"}}, "binance: base_url"),
    ],
)
def test_settings_of_nothing(overrides, said):
    """A typing error in a file is said, not ignored."""
    with pytest.raises(ConfigurationError, match=said):
        load(["binance"], overrides)


def test_settings_for_one_that_is_not_asked_for():
    """The same file serves a worker that runs only some collectors."""
    assert load(["binance"], {"coinbase": {"candles": {"every": "5m"}}}).keys() == {"binance"}


def test_an_api_is_shown_without_its_secrets():
    """Its name and endpoints."""
    assert repr(load(["asana"], {})["asana"]) == "<Api asana: projects, tasks>"


def test_a_whole_collector_is_what_has_symbols():
    """Who names projects and no workspaces collects tasks; where nothing is named, each says what it lacks."""
    found = load(["asana"], {"asana": {"tasks": {"symbols": ["1200"]}}})
    assert [each.full_name for each in find(found, "asana")] == ["asana.tasks"]
    assert [each.full_name for each in find(found, "asana.projects")] == ["asana.projects"]
    assert len(find(load(["asana"], {}), "asana")) == 2


def test_a_mistake_in_a_declaration_says_where(tmp_path, monkeypatch):
    """The file and its line, the endpoint, the word, and what may stand there."""
    wrong = tmp_path / "a_wrong_shop.py"
    wrong.write_text(
        "from tasks.collectors import Api, Limit\n"
        "shop = Api('shop', 'https://shop.example', limits=[Limit('10/1s')])\n"
        "@shop.endpoint('/orders', symbols=['a'], key='id', every='soon')\n"
        "def orders(row, unit):\n"
        "    return row\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError) as caught:
        load(["a_wrong_shop:shop"], {})
    assert str(caught.value) == (
        f"{wrong}:3: shop.orders: every is 'soon'; "
        "write a length of time such as '30s', '1m', '2h', '7d' or '1w'"
    )
