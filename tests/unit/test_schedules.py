from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.schedules import CATCH_UP_AT_ONCE, due_slots

NOW = datetime(2026, 3, 1, 12, 0, 7, tzinfo=UTC)
SLOT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def due(last, *, now=NOW, catch_up="latest", every_s=60):
    return due_slots(every_s=every_s, last=last, now=now, catch_up=catch_up, fresh_s=15)


def test_the_first_slot_is_the_newest():
    """A new schedule does not make up for the time before it existed."""
    assert due(None) == due(None, catch_up="all") == [SLOT]


def test_a_slot_is_due_once():
    """However often beat ticks."""
    assert due(SLOT) == []


@pytest.mark.parametrize(
    ("catch_up", "expected"),
    [("none", [SLOT]), ("latest", [SLOT]), ("all", [SLOT - 2 * MINUTE, SLOT - MINUTE, SLOT])],
)
def test_catch_up(catch_up, expected):
    """What was missed is made up as the schedule says."""
    assert due(SLOT - 3 * MINUTE, catch_up=catch_up) == expected


def test_without_catch_up_a_stale_slot_is_let_go():
    """Half a minute late is too late for `none`, and not for `latest`."""
    late = SLOT + timedelta(seconds=30)
    assert due(SLOT - MINUTE, now=late, catch_up="none") == []
    assert due(SLOT - MINUTE, now=late, catch_up="latest") == [SLOT]


def test_catching_up_is_bounded():
    """A schedule that slept for a month does not make all of it at once."""
    slots = due(SLOT - timedelta(days=30), catch_up="all")
    assert len(slots) == CATCH_UP_AT_ONCE
    assert slots[0] == SLOT - timedelta(days=30) + MINUTE


@given(
    start=st.datetimes(datetime(2026, 3, 28), datetime(2026, 3, 30)),
    ticks=st.lists(st.integers(1, 90), max_size=60),
    every_s=st.sampled_from([30, 60, 300]),
)
def test_each_slot_once_over_any_ticks(start, ticks, every_s):
    """With `all`, irregular, doubled and late ticks make each slot exactly once, daylight saving or not."""
    now = start.replace(tzinfo=UTC)
    last, made = None, []
    for seconds in ticks:
        now += timedelta(seconds=seconds)
        for _ in range(2):
            for slot in due(last, now=now, catch_up="all", every_s=every_s):
                made.append(slot)
                last = slot
    assert made == sorted(set(made))
    assert all(b - a == timedelta(seconds=every_s) for a, b in pairwise(made))
