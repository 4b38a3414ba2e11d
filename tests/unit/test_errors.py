"""What follows from an error is on its class."""

import json
import math
import pickle
import re
import socket
import threading
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pybreaker
import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from resilience import errors
from resilience.errors import (
    AllTiersFailedError,
    ApiConnectionError,
    ApiTimeoutError,
    BadPayloadError,
    BannedError,
    CircuitOpenError,
    DNSError,
    NotFoundError,
    PenstockError,
    RateLimitError,
    Scope,
    ServerError,
)
from resilience.guard import CallResult, Kind

CLASSES = list(
    dict.fromkeys(
        each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, PenstockError)
    )
)


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


@pytest.mark.parametrize(
    ("error", "whom", "kind", "label"),
    [
        (ServerError(), "symbol", Kind.IGNORED, "symbol:server_error"),
        (ServerError(), "account", Kind.IGNORED, "account:server_error"),
        (ServerError(), "host", Kind.FAILURE, "server_error"),
        (NotFoundError(), "symbol", Kind.IGNORED, "not_found"),
        (NotFoundError(), "endpoint", Kind.FAILURE, "endpoint:not_found"),
        (BannedError(), "account", Kind.BANNED, "account:banned"),
        (BannedError(), "host", Kind.BANNED, "banned"),
    ],
)
def test_of_whom_an_error_speaks_can_be_said(error, whom, kind, label):
    """By a rule of an API: of a single error, and never of its class."""
    said = error.about(whom)
    assert said is error
    assert CallResult.of(error, latency_s=0.1).kind is kind
    assert error.label == label
    assert type(error)().label == error.code


def test_only_the_service_trips():
    """Nothing that says less than "the service is ill" opens a circuit."""
    assert all(each.scope is Scope.SERVICE for each in CLASSES if each.trips)


def test_known_by_the_usual_names():
    """`except TimeoutError`, `except ConnectionError` and pybreaker's own error catch ours."""
    assert issubclass(ApiTimeoutError, TimeoutError)
    assert issubclass(ApiConnectionError, ConnectionError)
    assert issubclass(DNSError, socket.gaierror)
    assert issubclass(CircuitOpenError, pybreaker.CircuitBreakerError)
    assert errors.CircuitBreakerOpenError is CircuitOpenError


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_no_client_speaks_for_us(error):
    """Whoever retries what `requests` raises does not retry ours by accident, nor the other way round."""
    assert not issubclass(error, requests.RequestException)


@pytest.mark.parametrize("error", CLASSES, ids=lambda each: each.__name__)
def test_travels_between_processes(error):
    """A process pool sends it back as it was."""
    sent = error("what happened", details={"at": 7})
    got = pickle.loads(pickle.dumps(sent))
    assert (type(got), got.to_dict()) == (error, sent.to_dict())


def test_all_tiers_failed_carries_what_each_said():
    """By the tier's name, in the message and as JSON."""
    error = AllTiersFailedError(errors={"rest": ServerError("no"), "cache": KeyError("k")})
    assert str(error) == "every tier failed: rest: no; cache: 'k'"
    assert isinstance(error.errors["rest"], ServerError)
    assert error.to_dict()["details"]["errors"] == {
        "rest": {"error_type": "ServerError", "message": "no", "code": "server_error"},
        "cache": {"error_type": "KeyError", "message": "'k'"},
    }


class Odd:
    """Cannot even be shown."""

    def __repr__(self):
        raise RuntimeError

    __hash__ = object.__hash__


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
odd_values = st.sampled_from([
    b"bytes", math.nan, -math.inf, 10**5000, Decimal("1.50"), datetime(2026, 1, 2, tzinfo=UTC), datetime.min,
    datetime.min.replace(tzinfo=timezone(timedelta(hours=9))), timedelta(minutes=1), Scope.SERVICE, Odd(), object(),
    {1: {(2, 3): {4}}, Odd(): Odd()}, range(10**9), ServerError("no"), ValueError(), threading.Lock(), "\ud800", "x" * 10**6,
])  # fmt: skip


@given(st.dictionaries(st.text(max_size=9), json_values | odd_values, max_size=5))
def test_any_details_become_json(details):
    """And never much of it."""
    told = PenstockError("what", details=details).to_dict()
    text = json.dumps(told, allow_nan=False)
    assert json.loads(text) == told
    assert len(text) < 10_000_000


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=5))
def test_details_that_are_json_stay_as_they_are(details):
    """Nothing is lost of what can travel."""
    assert PenstockError("what", details=details).to_dict()["details"] == details


def test_details_may_contain_themselves():
    """Or a thousand times themselves."""
    details = {}
    details["again"] = [details] * 1000
    error = AllTiersFailedError("what", details=details)
    error.errors["itself"] = error
    assert len(json.dumps(error.to_dict())) < 100_000


def test_how_odd_values_are_told():
    """Times in UTC, numbers with all their digits, everything else as Python shows it."""
    told = PenstockError(
        details={
            "at": datetime(2026, 1, 2, 3, tzinfo=timezone(timedelta(hours=1))),
            "price": Decimal("1.50"),
            "for": timedelta(minutes=1),
            "scope": Scope.SERVICE,
            "set": {1},
            "bytes": b"x",
            "nan": math.nan,
        }
    ).to_dict()["details"]
    assert told == {
        "at": "2026-01-02T02:00:00Z", "price": "1.50", "for": 60.0, "scope": "service", "set": [1], "bytes": "b'x'", "nan": "nan",
    }  # fmt: skip


def test_a_refusal_tells_when_to_come_back():
    """With a Z, as all times in JSON."""
    at = datetime(2026, 1, 2, 3, 4, 5, 600_000, tzinfo=UTC)
    told = CircuitOpenError(retry_at=at, details={"circuit": "shop", "retry_at": at}).to_dict()
    assert told["details"] == {"circuit": "shop", "retry_at": "2026-01-02T03:04:05.600000Z"}


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
