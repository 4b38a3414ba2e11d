"""The registry: whoever names the same circuit gets the same one."""

import pytest

from resilience.breaker import CircuitBreaker
from resilience.circuits import Circuits
from resilience.errors import ConfigurationError
from resilience.policy import BreakerPolicy
from resilience.store import this_process
from resilience.store.memory import MemoryStore

ONE = BreakerPolicy(failures=1)


def broken():
    raise OSError


@pytest.fixture
def circuits():
    found = Circuits(policy=ONE)
    for name in ("pay", "ship"):
        found.get(name, api="shop")
    found.get("mail")
    return found


def trip(breaker):
    with pytest.raises(OSError):
        breaker.call(broken)


def test_one_name_one_circuit(circuits):
    """The pair of api and name is the key; the policy is the registry's unless one is given."""
    assert circuits.get("pay", api="shop") is circuits.get("pay", api="shop")
    assert circuits.get("pay") is not circuits.get("pay", api="shop")
    assert circuits.get("pay").policy == ONE
    assert circuits.get("other", policy=BreakerPolicy()).policy.failures == 5
    assert [f"{each.api}/{each.circuit}" for each in circuits] == [
        *("shop/pay", "shop/ship", "local/mail", "local/pay", "local/other")
    ]


def test_two_policies_for_one_circuit(circuits):
    """One of them would be ignored without a word."""
    assert circuits.get("mail", policy=ONE).circuit == "mail"
    with pytest.raises(ConfigurationError, match="local/mail is there already, with another policy"):
        circuits.get("mail", policy=BreakerPolicy(failures=2))


def test_register(circuits):
    """A breaker that was made elsewhere, if it lives in the same store."""
    made = circuits.register(CircuitBreaker(name="sms", store=circuits.store))
    assert circuits.get("sms") is made
    assert circuits.register(made) is made
    with pytest.raises(ConfigurationError, match="local/sms is there already"):
        circuits.register(CircuitBreaker(name="sms", store=circuits.store))
    with pytest.raises(ConfigurationError, match="another store"):
        circuits.register(CircuitBreaker(name="fax"))


def test_the_store_comes_first(circuits):
    """Circuits that exist already would be left behind in the old one."""
    with pytest.raises(ConfigurationError, match="before the first of 3"):
        circuits.store = MemoryStore()
    empty, store = Circuits(), MemoryStore()
    empty.store = store
    assert empty.get("it").guard.store is store


def test_all_at_once(circuits):
    """States, statuses and metrics of all circuits, by api and name."""
    trip(circuits.get("pay", api="shop"))
    assert {name: view.state for name, view in circuits.views().items()} == {
        "shop/pay": "open",
        "shop/ship": "closed",
        "local/mail": "closed",
    }
    assert circuits.statuses()["shop/pay"]["statistics"]["circuit_opens"] == 1
    assert circuits.metrics()["shop/pay"]["error_rate"] == 1.0


def test_reset(circuits):
    """Says which were not closed, and listeners hear of those."""
    heard = []
    circuits.on_transition(lambda change: heard.append((change.circuit, change.new, change.reason)))
    trip(circuits.get("ship", api="shop"))
    assert circuits.reset(why="the provider is back") == ["shop/ship"]
    assert heard == [("ship", "open", "consecutive failures"), ("ship", "closed", "the provider is back")]
    assert circuits.reset() == []


def test_reset_says_who(circuits):
    """In what listeners hear and in the store's events; this process, unless somebody is named."""
    actors = []
    circuits.on_transition(lambda change: actors.append((change.new, change.actor)))
    pay = circuits.get("pay", api="shop")
    for who in ({"by": "anna"}, {}):
        trip(pay)
        circuits.reset(**who)
    assert actors == [("open", this_process()), ("closed", "anna")] + [
        (state, this_process()) for state in ("open", "closed")
    ]
    assert [event.actor for event in circuits.store.events("shop")] == [actor for _, actor in actors]


def test_callbacks_hear_of_circuits_made_later(circuits):
    """One callback for all."""
    heard = []
    circuits.on_transition(heard.append)
    trip(circuits.get("new"))
    assert [change.circuit for change in heard] == ["new"]
