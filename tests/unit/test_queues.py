"""Which queue a message goes to."""

import pytest

from resilience.policy import Lane
from tasks.units import ALONE, queue_for
from workers.queues import CTL, all_queues, route, unit_queues

UNIT = "tasks.units.collect"


def test_each_collector_has_a_queue_for_each_lane():
    """Live ones stand first, so that a worker that reads all looks there first."""
    assert [queue.name for queue in unit_queues(["binance", "asana"])] == [
        "collect.binance",
        "collect.asana",
        "collect.binance.backfill",
        "collect.asana.backfill",
    ]


def test_no_two_queues_share_a_name():
    """Whatever collectors there are; what steers and what is suspect are apart."""
    names = [queue.name for queue in all_queues(["a", "b", "ctl", "alone"])]
    assert len(names) == len(set(names)) == 10
    assert {CTL, ALONE} <= set(names)


def test_queues_are_durable_and_bound_by_their_own_name():
    """A broker that restarts keeps them, and the anonymous exchange finds them."""
    for queue in all_queues(["binance"]):
        assert queue.durable
        assert queue.exchange.durable
        assert queue.routing_key == queue.name


def test_units_go_where_their_queue_is():
    """The queue of a unit that is sent is one of those that are declared."""
    declared = {queue.name for queue in all_queues(["binance"])}
    assert {queue_for("binance.klines", lane) for lane in Lane} <= declared


@pytest.mark.parametrize(
    "name",
    ["tasks.runs.advance", "tasks.runs.plan", "tasks.schedules.tick", "tasks.reconcile.reconcile"],
)
def test_what_steers_goes_to_ctl(name):
    """It has workers of its own; a full house of units never delays it, whatever its arguments are."""
    assert route(name, (), {"endpoint": "binance.klines"}, {}) == {"queue": CTL}
    assert route(name, (), {}, {"queue": "elsewhere"}) == {"queue": CTL}


def test_a_unit_without_a_queue_is_live():
    """Somebody sent it by hand."""
    assert route(UNIT, (), {"endpoint": "binance.klines"}, {}) == {"queue": "collect.binance"}
    assert route(UNIT, (), {"endpoint": "binance.klines"}, {}, task=object()) == {"queue": "collect.binance"}


def test_a_unit_that_names_its_queue_keeps_it():
    """A backfill, or a suspect."""
    assert route(UNIT, (), {"endpoint": "binance.klines"}, {"queue": "alone"}) is None


def test_other_tasks_are_not_ours():
    """They go where Celery's own settings send them."""
    assert route("somebody.elses", (), None, {}) is None
