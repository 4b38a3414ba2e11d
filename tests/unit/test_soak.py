"""The soak's judgement: what grows is found through noise, and what is only noise passes."""

import random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.soak.__main__ import ALL_KEYS
from tests.soak.flower import Onlooker
from tests.soak.samples import MARK_S, lasting, prefix
from tests.soak.verdict import HOUR_S, Allowance, Verdict, flat, settled, slope

STRICT = Allowance(an_hour=6.0, noise=0.0)


def line(an_hour, *, begin=0, length=900, every=5, level=100.0, jitter=lambda: 0.0):
    """A measure that grows at this pace."""
    return [(at, level + an_hour * at / HOUR_S + jitter()) for at in range(begin, begin + length, every)]


@given(pace=st.floats(-500, 500), level=st.floats(0, 1e4), begin=st.integers(0, 10**6))
def test_slope_of_a_line_is_its_pace(pace, level, begin):
    """Wherever it begins."""
    assert slope([line(pace, level=level, begin=begin, length=100)]) == pytest.approx(pace, abs=1e-3)


@given(spikes=st.sets(st.integers(0, 179), max_size=20), height=st.floats(-1e6, 1e6))
def test_outliers_do_not_move_it(spikes, height):
    """One sample in nine may be anything."""
    points = [(at, height if n in spikes else value) for n, (at, value) in enumerate(line(10))]
    assert slope([points]) == pytest.approx(10, abs=5)


@pytest.mark.parametrize(("leak", "ok"), [(0.0, True), (3.0, True), (9.0, False), (50.0, False)])
def test_leak_is_found_through_noise(leak, ok):
    """Samples jitter by more than a quarter of an hour of it grows."""
    noise = random.Random(3)
    points = line(leak, jitter=lambda: noise.uniform(-1, 1))
    found = flat("memory", {1: points}, STRICT, begin_s=0)
    assert found.ok is ok
    assert found.slope == pytest.approx(leak, abs=2)


def test_steps_of_an_allocator_are_a_slope():
    """A leak that shows as a step now and then."""
    points = [(at, 100.0 + at // 200) for at in range(0, 900, 5)]
    assert not flat("memory", {1: points}, STRICT, begin_s=0).ok


def test_nothing_is_drawn_from_a_process_to_its_successor():
    """The second one starts higher and is as flat."""
    lives = {1: line(0, length=300), 2: line(0, begin=300, length=300, level=180)}
    assert flat("memory", lives, STRICT, begin_s=0).slope == 0


def test_warm_up_does_not_count():
    """Neither that of the installation nor that of a process started later."""
    young = [(at, min(at, 1060) / 10) for at in range(1000, 1400, 5)]
    assert settled(young, 0, 60)[0] == (1060, 106)
    assert settled(young, 1200, 60)[0][0] == 1200
    assert flat("memory", {1: line(0), 2: young}, STRICT, begin_s=0, young_s=60).slope == 0
    assert settled([], 0, 60) == []


def test_too_short_a_life_is_not_judged():
    """Five samples say nothing."""
    assert slope([line(500, length=25)]) is None
    assert flat("memory", {1: line(500, length=25)}, STRICT, begin_s=0) is None


def test_short_looks_bear_noise_and_long_ones_do_not():
    """What is allowed an hour falls to its floor with the time that was looked at."""
    allowance = Allowance(an_hour=6.0, noise=2.0)
    assert allowance.slope(120) == pytest.approx(60)
    assert allowance.slope(900) == pytest.approx(8)
    assert allowance.slope(7200) == 6


def test_verdict_shows_start_and_end():
    """Medians of the first and the last tenth; falling is never wrong."""
    found = flat("memory", {1: line(-40)}, STRICT, begin_s=0, unit="MB")
    assert found.ok
    assert found.start > found.end
    assert found.line() == "| memory, MB | 99.5 | 90.5 | -40.0 | 6.0 an hour | yes |"


@pytest.mark.parametrize(("count", "ok", "said"), [(0, True, "yes"), (1, False, "**no**")])
def test_counts_have_no_slope(count, ok, said):
    """What has to be nothing is nothing."""
    verdict = Verdict("rows missing", None, count, None, 0)
    assert verdict.ok is ok
    assert verdict.line() == f"| rows missing |  | {count} |  | 0 | {said} |"


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("penstock:{binance}:limit", "penstock:"),
        ("celery-taskset-meta-0a1b2c3d-0000-0000-0000-000000000000.c", "celery-taskset-meta-"),
        ("unacked_index", "unacked_index"),
    ],
)
def test_keys_of_a_kind_go_together(key, kind):
    """Without what tells one from the other."""
    assert prefix(key) == kind


@pytest.mark.parametrize(
    ("left_s", "stays"), [(-2, False), (1, False), (300, False), (301, True), (-1, True)]
)
def test_mark_that_stays_is_found(left_s, stays):
    """One without an end, or with one that is too far away; not one that has gone since it was listed."""
    assert lasting({"mark": left_s}) == ({"mark"} if stays else set())


@pytest.mark.parametrize(("kept_for_ever", "ok"), [(0.0, True), (0.25, False)])
def test_marks_that_pile_up_are_growth(kept_for_ever, ok):
    """A fifth of the waves, now more and now less, does not come about; a quarter of the marks is not forgotten."""
    noise = random.Random(5)
    ends = [
        at for at in range(0, 1200, 10) for _ in range(3) if noise.random() > (0.3 if at // 60 % 2 else 0.1)
    ]
    marks = [(at, noise.random() < kept_for_ever) for at in ends]

    def count(now):
        return sum(at <= now and (for_ever or now < at + MARK_S) for at, for_ever in marks)

    points = [(now, count(now)) for now in range(0, 1200, 5)]
    assert flat("keys", {None: points}, ALL_KEYS, begin_s=MARK_S + 60).ok is ok


def test_onlooker_asks_where_flower_listens_now(tmp_path):
    """After a restart that is another port, and before the start nowhere."""
    log = tmp_path / "Flower.log"
    onlooker = Onlooker(SimpleNamespace(log=lambda _: log, directory=tmp_path), "Flower")
    log.write_text("penstock: starting\n")
    assert onlooker.url() is None
    for port in (1, 2):
        with log.open("a") as file:
            file.write(f"Flower: http://127.0.0.1:{port}, user penstock, password in flower.auth\n")
        assert onlooker.url() == f"http://127.0.0.1:{port}"
    onlooker.close()
