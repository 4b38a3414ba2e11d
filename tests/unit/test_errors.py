"""What follows from an error is on its class."""

import json
import re

import pybreaker
import pytest

from resilience import errors
from resilience.errors import (
    ApiConnectionError,
    ApiTimeoutError,
    BadPayloadError,
    BannedError,
    CircuitOpenError,
    NotFoundError,
    PenstockError,
    RateLimitError,
    Scope,
    ServerError,
)
from resilience.guard import CallResult, Kind

CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, PenstockError)
]


def test_the_tree_in_the_docstring_is_complete():
    """Every class is named there."""
    assert {each.__name__ for each in CLASSES} <= set(re.findall(r"\w+", errors.__doc__))


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_docstring_is_the_message(error):
    """Text is written once, and the facts are JSON."""
    told = error().to_dict()
    assert told["message"] == error.__doc__.strip()
    assert json.loads(json.dumps(told)) == told


def test_codes_are_unique():
    """Two classes with one code could not be told apart in SQL."""
    assert len({each.code for each in CLASSES}) == len(CLASSES)


def test_only_the_service_trips():
    """Nothing that says less than "the service is ill" opens a circuit."""
    assert all(each.scope is Scope.SERVICE for each in CLASSES if each.trips)


def test_known_by_the_usual_names():
    """`except TimeoutError`, `except ConnectionError` and pybreaker's own error catch ours."""
    assert issubclass(ApiTimeoutError, TimeoutError)
    assert issubclass(ApiConnectionError, ConnectionError)
    assert issubclass(CircuitOpenError, pybreaker.CircuitBreakerError)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (None, Kind.SUCCESS),
        (ServerError(), Kind.FAILURE),
        (ApiTimeoutError(), Kind.FAILURE),
        (BadPayloadError(), Kind.FAILURE),
        (NotFoundError(), Kind.IGNORED),
        (RateLimitError(), Kind.THROTTLED),
        (BannedError(), Kind.BANNED),
        (ValueError("ours"), Kind.IGNORED),
    ],
)
def test_kind_of_a_result(error, kind):
    """What a circuit learns from it."""
    assert CallResult.of(error, latency_s=0.1).kind is kind


def test_result_carries_the_servers_wait():
    """From the error to the gate."""
    result = CallResult.of(RateLimitError(retry_after_s=7.0), latency_s=0.1)
    assert (result.retry_after_s, result.error) == (7.0, "RateLimitError")
