"""Google Calendar: events with times or days, cancelled ones, pages without any, and reasons of refusals."""

import json
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from resilience.errors import BadPayloadError, InvalidCredentialsError, NotFoundError, RateLimitError
from tasks.collectors import Answer, Unit
from tasks.collectors.calendar import calendar
from tasks.data import calendar_events

EVENTS = calendar.endpoints["events"]


def unit(symbol="primary") -> Unit:
    return Unit(1, 1, "calendar", "events", symbol, None, None, None)


def event(**changed) -> dict:
    return {
        "id": "e1",
        "status": "confirmed",
        "summary": "Walk the weir",
        "organizer": {"email": "ann@example.com"},
        "start": {"dateTime": "2026-01-01T09:00:00+01:00", "timeZone": "Europe/Zurich"},
        "end": {"dateTime": "2026-01-01T10:00:00+01:00", "timeZone": "Europe/Zurich"},
        "updated": "2025-12-31T23:59:59.123Z",
    } | changed


def read(body, status=200, **headers):
    if "items" in body and "nextPageToken" not in body:
        body = {"nextSyncToken": "later"} | body  # the last page has one
    return EVENTS.read(unit(), {}, Answer(status, headers, json.dumps(body).encode(), 0.1))


def refusal(code, reason, domain="usageLimits"):
    return {"error": {"code": code, "message": reason, "errors": [{"domain": domain, "reason": reason}]}}


def test_the_first_request():
    """Cancelled events too, as many as there may be; an address stands in the path as one word."""
    request = EVENTS.request(unit("team@example.com"), {})
    assert request.url == "https://www.googleapis.com/calendar/v3/calendars/team%40example.com/events"
    assert request.params == {"showDeleted": "true", "maxResults": "2500"}


def test_an_event_becomes_a_row():
    """Times in UTC, and no days."""
    (row,) = read({"items": [event()], "nextSyncToken": "later"}).rows
    assert row.keys() == {column.name for column in calendar_events.columns}
    assert row["start_at"] == datetime(2026, 1, 1, 8, tzinfo=UTC)
    assert row["end_at"] == datetime(2026, 1, 1, 9, tzinfo=UTC)
    assert (row["start_on"], row["end_on"]) == (None, None)
    assert row["updated_at"] == datetime(2025, 12, 31, 23, 59, 59, 123_000, tzinfo=UTC)
    assert (row["organizer"], row["data"]) == ("ann@example.com", event())


def test_an_event_of_whole_days():
    """Days, and no times."""
    (row,) = read({"items": [event(start={"date": "2026-01-01"}, end={"date": "2026-01-03"})]}).rows
    assert (row["start_on"], row["end_on"]) == (date(2026, 1, 1), date(2026, 1, 3))
    assert (row["start_at"], row["end_at"]) == (None, None)


def test_a_cancelled_event():
    """Of one that was cancelled there may be no more than its id."""
    (row,) = read({"items": [{"id": "e7", "status": "cancelled"}]}).rows
    assert (row["id"], row["status"]) == ("e7", "cancelled")
    filled = {"calendar", "id", "status", "data"}
    assert [row[name] for name in row.keys() - filled] == [None] * (len(row) - len(filled))


@pytest.mark.parametrize(
    ("missing", "columns"),
    [
        ("summary", {"summary"}),
        ("organizer", {"organizer"}),
        ("updated", {"updated_at"}),
        ("start", {"start_at"}),
        ("end", {"end_at"}),
    ],
)
def test_what_an_event_may_lack(missing, columns):
    """One field that is not there leaves all others as they are."""
    (whole,) = read({"items": [event()]}).rows
    (row,) = read({"items": [{name: value for name, value in event().items() if name != missing}]}).rows
    assert {name for name in row if row[name] != whole[name]} == columns | {"data"}
    assert [row[name] for name in columns] == [None]


def test_an_empty_page_is_not_the_last():
    """As long as it names another one."""
    assert read({"items": [], "nextPageToken": "more"}).next == {"token": "more"}
    last = read({"items": [], "nextSyncToken": "later"})
    assert (last.next, last.token) == (None, "later")


def test_what_has_changed_since():
    """The token of the last page is sent the next time; one that has expired leads back to everything."""
    later = replace(unit(), cursor="later")
    first = EVENTS.first(later)
    assert EVENTS.request(later, first).params["syncToken"] == "later"
    gone = Answer(410, {}, json.dumps(refusal(410, "fullSyncRequired", "calendar")).encode(), 0.1)
    again = EVENTS.read(later, first, gone).next
    assert "syncToken" not in EVENTS.request(later, again).params


@pytest.mark.parametrize(
    "broken", [{"id": None}, {"status": None}, {"start": {"date": "soon"}}, {"start": 7}]
)
def test_a_broken_event_is_set_apart(broken):
    """The others are stored; only broken ones are an error of the page."""
    page = read({"items": [event(), event(id="e2") | broken]})
    assert ([row["id"] for row in page.rows], page.bad_rows) == (["e1"], 1)


@pytest.mark.parametrize(
    ("status", "reason", "wait_s"),
    [
        (403, "userRateLimitExceeded", 30),
        (403, "rateLimitExceeded", 30),
        (429, "rateLimitExceeded", 30),
        (403, "quotaExceeded", 3600),
        (403, "dailyLimitExceeded", 3600),
    ],
)
def test_over_a_limit(status, reason, wait_s):
    """Whatever the status, the reason says that later is soon enough."""
    with pytest.raises(RateLimitError) as caught:
        read(refusal(status, reason), status)
    assert caught.value.retry_after_s == wait_s


@pytest.mark.parametrize(
    ("reason", "domain"),
    [("forbidden", "global"), ("insufficientPermissions", "global"), ("accessNotConfigured", "usageLimits")],
)
def test_forbidden_for_good(reason, domain):
    """No wait helps where the account may not, or the project did not switch the API on."""
    with pytest.raises(InvalidCredentialsError):
        read(refusal(403, reason, domain), 403)


def test_other_refusals():
    """A calendar that is not there, and an answer that is none."""
    with pytest.raises(NotFoundError):
        read(refusal(404, "notFound", "global"), 404)
    with pytest.raises(BadPayloadError):
        read({"kind": "calendar#events"})
