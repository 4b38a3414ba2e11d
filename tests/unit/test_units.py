from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resilience.errors import (
    AllTiersFailedError,
    ApiTimeoutError,
    BadPayloadError,
    CircuitOpenError,
    NotFoundError,
    RateLimitError,
    ServerError,
    StoreUnavailableError,
)
from resilience.policy import RetryPolicy
from tasks.outcomes import Outcome
from tasks.settings import Settings
from tasks.units import Again, End, Later, SliceOver, Snooze, TimeLimit, next_step, queue_for

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
ROW = {"attempts": 0, "throttles": 0, "retries": 0}


def step(error, *, on_open="park", policy=None, rng=lambda: 1.0, probe=False, **row):
    return next_step(
        error,
        ROW | row,
        policy=policy or RetryPolicy(),
        on_open=on_open,
        settings=Settings(),
        now=NOW,
        probe=probe,
        rng=rng,
    )


@pytest.mark.parametrize(
    "error", [ServerError("503"), ApiTimeoutError("slow"), TimeLimit(), BadPayloadError("?")]
)
def test_a_retryable_error_costs_an_attempt(error):
    """The first goes back to the queue after the first back-off."""
    found = step(error)
    assert isinstance(found, Again)
    assert found.seconds == 1.0
    assert found.values["attempts"] == 1
    assert found.values["retries"] == 1


def test_back_off_doubles_and_then_waits_in_sql():
    """Beyond ten seconds a wait belongs into the database, not into a worker's memory."""
    assert step(ServerError(), attempts=2).seconds == 4.0
    far = step(ServerError(), attempts=5, policy=RetryPolicy(attempts=10))
    assert isinstance(far, Later)
    assert far.seconds == 32.0


def test_the_last_failure_is_an_outcome():
    """Four calls in all; then the unit ends as failed, with the error's code."""
    found = step(ServerError("503 from upstream"), attempts=3)
    assert isinstance(found, End)
    assert (found.outcome, found.reason) == (Outcome.FAILED, "server_error")
    assert found.values["attempts"] == 4
    assert found.values["error"]["message"] == "503 from upstream"


def test_an_error_that_no_retry_mends_ends_at_once():
    """A symbol that is not there is not asked for again."""
    assert isinstance(step(NotFoundError()), End)


@given(retry_after=st.floats(0, 86400), attempts=st.integers(0, 2), rng=st.floats(0, 1))
def test_a_retry_after_is_never_shortened(retry_after, attempts, rng):
    """Whatever the jitter draws, of a 503 or a 429."""
    for error in (ServerError(retry_after_s=retry_after), RateLimitError(retry_after_s=retry_after)):
        assert step(error, attempts=attempts, rng=lambda: rng).seconds >= retry_after


def test_a_429_spends_no_attempt():
    """Ten in a row are borne; the eleventh is a failure."""
    found = step(RateLimitError(retry_after_s=3), attempts=2)
    assert isinstance(found, Again)
    assert "attempts" not in found.values
    assert found.values["throttles"] == 1
    assert found.values["rate_limited"] is True
    last = step(RateLimitError(retry_after_s=3), throttles=10)
    assert isinstance(last, End)
    assert last.reason == "rate_limited"


@pytest.mark.parametrize("error", [Snooze(3, "t", "limit"), SliceOver(), StoreUnavailableError()])
def test_waiting_spends_nothing(error):
    """Neither an attempt nor a throttle."""
    found = step(error, attempts=3, throttles=9)
    assert isinstance(found, Again | Later)
    assert not {"attempts", "throttles", "retries"} & set(found.values)


def test_a_failed_probe_spends_no_attempt():
    """However many recoveries fail; an answer that is final still is."""
    found = step(ServerError(), probe=True, attempts=3)
    assert isinstance(found, Again)
    assert found.values["attempts"] == 3
    assert isinstance(step(NotFoundError(), probe=True), End)


def test_a_snooze_keeps_its_ticket():
    """Its place in the queue for the limit is in SQL until it is redeemed."""
    assert step(Snooze(3, "ticket-1", "limit")) == Again(3, {"ticket": "ticket-1"})
    assert step(Snooze(11, "ticket-1", "limit")) == Later(11, {"ticket": "ticket-1"})


def test_an_open_circuit_skips_or_parks():
    """As the run wants it."""
    refused = CircuitOpenError(circuit="binance.klines", retry_at=NOW + timedelta(seconds=42))
    skipped = step(refused, on_open="skip")
    assert (skipped.outcome, skipped.reason) == (Outcome.SKIPPED, "circuit_open")
    parked = step(refused, on_open="park")
    assert isinstance(parked, Later)
    assert parked.seconds == 42
    assert parked.values["parked_on"] == "binance.klines"


OPEN = CircuitOpenError(circuit="a", retry_at=NOW + timedelta(seconds=42))
SOON = CircuitOpenError(circuit="b", retry_at=NOW + timedelta(seconds=7))


@pytest.mark.parametrize(
    ("errors", "attempts", "parked_on"),
    [
        ((ServerError(), OPEN), 1, None),
        ((OPEN, ServerError()), 1, None),
        ((OPEN, SOON), None, "b"),
        ((OPEN, Snooze(2, None, "half_open")), None, None),
        ((RateLimitError(retry_after_s=3), ServerError()), 1, None),
    ],
)
def test_when_all_tiers_fail(errors, attempts, parked_on):
    """A call that was made counts before one that was refused; of refusals the one that ends first."""
    found = step(AllTiersFailedError(errors=dict(zip("ab", errors, strict=True))))
    assert found.values.get("attempts") == attempts
    assert found.values.get("parked_on") == parked_on
    if attempts:
        assert found.values["error"]["error"] == "AllTiersFailedError"


def test_when_all_tiers_fail_for_good():
    """The outcome says so, and skipped stays skipped."""
    found = step(AllTiersFailedError(errors={"a": OPEN, "b": ServerError()}), attempts=3)
    assert (found.outcome, found.reason) == (Outcome.FAILED, "all_tiers_failed")
    found = step(AllTiersFailedError(errors={"a": OPEN, "b": SOON}), on_open="skip")
    assert (found.outcome, found.reason) == (Outcome.SKIPPED, "circuit_open")


def test_each_api_and_lane_has_its_queue():
    """So that neither a slow API nor a backfill starves the others."""
    assert queue_for("binance.klines", "live") == "collect.binance"
    assert queue_for("binance.klines", "backfill") == "collect.binance.backfill"
