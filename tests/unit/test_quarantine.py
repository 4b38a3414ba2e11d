"""When a symbol is left alone, for how long, and how it comes back."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import (
    ApiTimeoutError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    ServerError,
    ValidationError,
)
from resilience.quarantine import Quarantine

HOUR = timedelta(hours=1)


class World:
    """A quarantine with a clock of its own."""

    def __init__(self, **options):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.quarantine = Quarantine(clock=lambda: self.now, **options)

    def fail(self, times=10, error=None, symbol="LUNA"):
        return [self.quarantine.record_failure(symbol, error or ValidationError()) for _ in range(times)]

    def wait(self, span):
        self.now += span

    @property
    def skips(self):
        return self.quarantine.should_skip("LUNA")


def test_ten_failures_in_a_row():
    """The tenth puts the symbol away, and no other."""
    world = World()
    assert world.fail() == [False] * 9 + [True]
    assert world.skips
    assert not world.quarantine.should_skip("BTC")
    assert [entry.symbol for entry in world.quarantine.quarantined()] == ["LUNA"]


def test_a_success_between():
    """Failures count in a row only."""
    world = World()
    world.fail(9)
    assert world.quarantine.record_success("LUNA")
    assert world.fail(9) == [False] * 9
    assert not world.quarantine.record_success("BTC")


def test_it_is_tried_again_ever_more_rarely():
    """After an hour, two, four … a day; each failure of a try puts it away at once."""
    world, waits = World(), []
    world.fail()
    for _ in range(7):
        until = world.quarantine.quarantined()[0].until_at
        waits.append((until - world.now) / HOUR)
        world.wait(until - world.now - timedelta(microseconds=1))
        assert world.skips
        world.wait(timedelta(microseconds=1))
        assert not world.skips
        assert world.fail(1) == [True]
    assert waits == [1, 2, 4, 8, 16, 24, 24]


def test_one_good_try_ends_it():
    """And the next quarantine begins with an hour again."""
    world = World()
    world.fail()
    world.wait(HOUR)
    world.fail(1)
    world.wait(2 * HOUR)
    world.quarantine.record_success("LUNA")
    assert world.quarantine.failing() == []
    world.fail()
    assert world.quarantine.quarantined()[0].until_at == world.now + HOUR


def test_failures_while_it_is_away_change_nothing():
    """Calls that were under way when it was put there."""
    world = World()
    world.fail()
    until = world.quarantine.quarantined()[0].until_at
    world.wait(HOUR / 2)
    assert world.fail(5) == [True] * 5
    assert world.quarantine.quarantined()[0].until_at == until


@pytest.mark.parametrize(
    ("options", "error"), [({"reprobe": None}, ValidationError()), ({}, NotFoundError())]
)
def test_for_ever(options, error):
    """Where there is no way back by itself, and where the server does not know the symbol."""
    world = World(**options)
    world.fail(error=error)
    world.wait(timedelta(days=1000))
    assert world.skips
    assert world.quarantine.release("LUNA")
    assert not world.skips
    assert world.fail(1) == [False]
    assert not world.quarantine.release("BTC")


@pytest.mark.parametrize("error", [ServerError(), ApiTimeoutError(), InvalidCredentialsError()])
def test_a_service_that_is_away_says_nothing_about_symbols(error):
    """Else an outage would put all of them away."""
    world = World()
    assert world.fail(20, error) == [False] * 20
    assert world.quarantine.failing() == []


def test_a_parser_that_chokes_on_a_symbol_counts():
    """An error that is none of ours was raised while this symbol was worked on."""
    assert World(max_failures=2).fail(2, KeyError("close")) == [False, True]


def test_what_is_known():
    """As JSON."""
    world = World(max_failures=1)
    world.fail(1, NotFoundError())
    assert [entry.to_dict() for entry in world.quarantine.failing()] == [
        {
            "symbol": "LUNA",
            "failures": 1,
            "error": "NotFoundError",
            "gone": True,
            "times": 1,
            "since_at": "2026-01-01T00:00:00Z",
            "until_at": None,
        }
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_failures": 0}, "max_failures is 0"),
        ({"reprobe": timedelta(0)}, "reprobe is 0:00:00"),
        ({"reprobe": 2 * HOUR, "reprobe_max": HOUR}, "up to reprobe_max"),
    ],
)
def test_impossible_numbers(options, message):
    """Each is named."""
    with pytest.raises(ConfigurationError, match=message):
        Quarantine(**options)


@given(st.lists(st.sampled_from(["fail", "succeed", "wait", "release"]), max_size=60))
def test_never_away_without_a_way_back(steps):
    """Whatever happens: away means as many failures in a row, and for a day at most."""
    world, in_a_row = World(max_failures=3), 0
    for step in steps:
        if step == "wait":
            world.wait(HOUR)
        elif step == "fail":
            in_a_row += 1
            world.fail(1)
        else:
            in_a_row = 0
            (world.quarantine.record_success if step == "succeed" else world.quarantine.release)("LUNA")
        assert not world.skips or in_a_row >= 3
        assert all(entry.until_at - world.now <= 24 * HOUR for entry in world.quarantine.quarantined())
