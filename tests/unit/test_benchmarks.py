"""The note of the benchmarks: what a figure is compared with, and what the page says of it."""

import pytest

from tests.benchmarks import bench_growth, charts
from tests.benchmarks.__main__ import command, page
from tests.benchmarks.measure import HEAD, Result


def result(ours, peer=(1.0, 1.0, 1.0), **bounds):
    return Result("P9", "storing", ours, peer, "peer", "rows/s", **bounds)


@pytest.mark.parametrize(
    ("ours", "bounds", "met", "times"),
    [
        ((2.0, 3.0, 1.0), {"at_least": 1.0}, True, 2.0),
        ((0.5, 0.5, 9.0), {"at_least": 1.0}, False, 0.5),
        ((0.2, 0.4, 0.1), {"at_most": 0.4}, True, 2.0),
        ((0.8, 0.8, 0.8), {"at_most": 0.4}, False, 0.5),
        ((5.0, 6.0, 7.0), {"at_most": 10.0, "compared": "difference"}, True, 2.0),
    ],
)
def test_target_is_met_by_the_median(ours, bounds, met, times):
    """And the chart shows how many times."""
    found = result(ours, **bounds)
    assert found.met() is met
    assert charts.reached(found) == pytest.approx(times)
    assert ("not met" in found.line()) is not met


def test_comparison_without_a_target_is_neither():
    """It is there to be looked at."""
    assert result((1.0, 2.0, 3.0)).met() is None
    assert result((1.0, 2.0, 3.0)).line().endswith("| 2.00 x | 1.00 to 3.00, n = 3 |  |  |")


def test_page_shows_missed_targets():
    """With where it was measured, and the texts in their order."""
    missed = result((0.5,), (1.0,), at_least=1.0)
    text = page("command", "2 cores", [missed], ["overview", "## Growth", "table"])
    assert "Measured by `command` on 2 cores." in text
    assert f"{HEAD}\n{missed.line()}" in text
    assert "**not met**" in text
    places = ("overview", HEAD, "## Growth", "table", "## What would come next")
    assert sorted(places, key=text.index) == list(places)


def test_command_is_what_was_typed(monkeypatch):
    """With --write, which alone makes it write the note."""
    monkeypatch.setattr("sys.argv", ["benchmarks", "growth", "--quick", "--write", "a folder"])
    assert command() == "python -m tests.benchmarks growth --quick --write 'a folder'"


def test_growth_is_missed_where_something_grows():
    """The largest run against the one before; the small ones do not fill the waves."""
    flat = {"planner": 100.0, "worker": 110.0, "redis": 5.0}
    points = {
        10: flat | {"seconds": 1.0, "redis": 1.0},
        100: flat | {"seconds": 10.0},
        1000: flat | {"seconds": 105.0, "planner": 1000.0},
    }
    time, planner, worker, redis = bench_growth.results(points)
    assert [each.met() for each in (time, planner, worker, redis)] == [True, False, True, True]
    assert time.pairs() == [pytest.approx(1.05)]


def test_chart_has_colours_for_dark_pages():
    """Each colour of a light page has its other; what has its own stays."""
    drawn = f'<?xml?><svg a="b"><path style="fill: {charts.PAPER}; stroke: {charts.INK}"/><text style="fill: #2f81f7"/></svg>'
    found = charts.adaptive(drawn)
    assert f"fill: var(--paper, {charts.PAPER}); stroke: var(--ink, {charts.INK})" in found
    assert "fill: #2f81f7" in found
    light, _, dark = found.partition("@media(prefers-color-scheme:dark)")
    assert f"--ink:{charts.INK};" in light
    assert f"--ink:{charts.DARK[charts.INK]};" in dark


def test_chart_too_large_for_a_page_is_refused():
    """It is drawn from few figures; more is a mistake."""
    with pytest.raises(ValueError, match="bytes"):
        charts.adaptive(f"<svg>{' ' * charts.LARGEST}</svg>")
