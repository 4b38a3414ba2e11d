"""What a wave costs the database, however many units of its run wait or are done."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import event, update

from tasks import heartbeat, runs, waves
from tasks.collectors.registry import endpoint_of
from tasks.models import units
from tasks.outcomes import UnitState
from tasks.store import engine, writing

DATABASES = ("sqlite",)
WAVE = 100
START, END = datetime(2026, 1, 5, tzinfo=UTC), datetime(2026, 1, 5, 1, tzinfo=UTC)


@pytest.fixture
def steps(installation):
    """The steps of SQLite's machine, by the hundred."""
    counted = []
    installation.configure(PENSTOCK_WAVE_MAX=str(WAVE))

    @event.listens_for(engine(), "checkout")
    def watch(driver, _record, _proxy):
        driver.set_progress_handler(lambda: counted.append(1), 100)

    return counted


def cost_of_a_wave(fleet, steps, count):
    """In a run of which half is done: the steps of taking a wave and of adding one up."""
    names = [f"COIN{n}USDT" for n in range(count)]
    run = fleet.order("binance.klines", names, START, END)
    runs.plan(run=run)
    with writing() as connection:
        half = units.c.n < count // 2
        done = {"state": UnitState.DONE, "outcome": "stored", "wave": units.c.n / WAVE + 1}
        connection.execute(update(units).where(units.c.run == run, half).values(done))
        rest = {"state": UnitState.WAITING, "wave": None}
        connection.execute(update(units).where(units.c.run == run, ~half).values(rest))
        connection.execute(update(waves.waves).values(launched_at=START))  # no longer in flight
    row = fleet.the_run(run)
    steps.clear()
    picked = waves.pick(row, [endpoint_of("binance.klines")], {}, "a chord")
    assert len(picked[1]) == WAVE
    taking = len(steps)
    steps.clear()
    runs._keep_totals(run, 1, [{"unit": n, "outcome": "stored"} for n in range(WAVE)])
    return taking, len(steps)


def test_a_wave_costs_the_same_in_a_large_run(fleet, steps):
    """Ten times the units, but not a half more work."""
    heartbeat.beat("units", 64)
    small, large = cost_of_a_wave(fleet, steps, 1000), cost_of_a_wave(fleet, steps, 10_000)
    for few, many in zip(small, large, strict=True):
        assert 0 < many <= 1.5 * few, (small, large)
