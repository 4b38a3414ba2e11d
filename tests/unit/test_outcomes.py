from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.outcomes import CollectionResult, Outcome, RunOutcome, fold, run_outcome

AT = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


def result(**changes):
    facts = {
        "collector_name": "binance",
        "started_at": AT,
        "finished_at": AT,
        "total_items": 4,
        "successful_items": 3,
        "failed_items": 1,
        "errors": [],
        "rate_limited": False,
        "circuit_broken": False,
        "outcome": RunOutcome.PARTIAL,
    }
    return CollectionResult(**facts | changes)


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"stored": 3}, RunOutcome.OK),
        ({"stored": 3, "empty": 1}, RunOutcome.OK),
        ({"empty": 2}, RunOutcome.EMPTY),
        ({}, RunOutcome.EMPTY),
        ({"stored": 3, "failed": 1}, RunOutcome.PARTIAL),
        ({"stored": 3, "skipped": 1}, RunOutcome.PARTIAL),
        ({"empty": 3, "abandoned": 1}, RunOutcome.PARTIAL),
        ({"failed": 2, "skipped": 5}, RunOutcome.FAILED),
        ({"abandoned": 2}, RunOutcome.FAILED),
        ({"skipped": 5}, RunOutcome.SKIPPED),
    ],
)
def test_one_word_for_a_run(units, expected):
    """Partial success is told as such."""
    assert run_outcome(units) is expected


def test_rate_and_partial():
    """Three of four is partial; nothing to do is a rate of zero, as agreed."""
    assert result().success_rate == 0.75
    assert result().is_partial
    assert result(total_items=0, successful_items=0, failed_items=0).success_rate == 0.0
    assert not result(successful_items=4, failed_items=0).is_partial


def test_as_json():
    """Times are ISO texts in UTC, and the derived facts are there."""
    facts = result().to_dict()
    assert facts["started_at"] == "2026-03-01T12:00:00Z"
    assert facts["success_rate"] == 0.75
    assert facts["is_partial"] is True


@given(st.lists(st.sampled_from([*Outcome, "waiting", "duplicate"])))
def test_fold_counts_every_outcome_once(outcomes):
    """However the units of a wave ended, nothing is counted twice or lost."""
    totals = fold([{"unit": n, "outcome": str(o), "records": 2} for n, o in enumerate(outcomes)])
    assert totals.get("records", 0) == 2 * len(outcomes)
    assert sum(totals.get(str(o), 0) for o in {*outcomes}) == len(outcomes)


def test_fold_ignores_parts_without_an_outcome():
    """A part that came back as nothing is not an outcome."""
    assert fold([None, {"unit": 1, "outcome": "stored", "records": 3}]) == {"stored": 1, "records": 3}
