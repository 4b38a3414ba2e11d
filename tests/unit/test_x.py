"""X: posts by query and by user, answers without data, partial errors, and resets in Unix time."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from resilience.errors import (
    BadPayloadError,
    BannedError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    ValidationError,
)
from resilience.headers import quota_from
from tasks.collectors import Answer, Unit
from tasks.collectors.x import x
from tasks.data import x_posts
from tests.unit.bodies import BODIES, T0

SEARCH, POSTS = x.endpoints["search"], x.endpoints["posts"]
QUERY = "(pump OR sluice) lang:en"
GONE = {
    "value": "17",
    "detail": "Could not find user with id: [17].",
    "title": "Not Found Error",
    "resource_type": "user",
    "parameter": "id",
    "type": "https://api.x.com/2/problems/resource-not-found",
}


def unit(start=None, end=None, symbol=QUERY) -> Unit:
    return Unit(1, 1, "x", "search", symbol, start, end, None)


def post(**changed) -> dict:
    return BODIES["x.search"].value["data"][0] | changed


def page_of(*rows, after=None, **more) -> dict:
    meta = {"result_count": len(rows)} | ({"next_token": after} if after else {})
    return ({"data": list(rows)} if rows else {}) | more | {"meta": meta}


def read(body, status=200, endpoint=SEARCH, checkpoint=None, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return endpoint.read(unit(), checkpoint or {}, Answer(status, given, data, 0.1))


def test_the_requests_are_as_documented():
    """Query and fields; a timeline has the user in its path and another name for the token."""
    request = SEARCH.request(unit(), {"token": "abc"})
    assert request.url == "https://api.x.com/2/tweets/search/recent"
    assert request.params.keys() == {"query", "tweet.fields", "max_results", "next_token"}
    assert (request.params["query"], request.params["max_results"]) == (QUERY, "100")
    request = POSTS.request(unit(symbol="17"), {"token": "abc"})
    assert request.url == "https://api.x.com/2/users/17/tweets"
    assert request.params.keys() == {"tweet.fields", "max_results", "pagination_token"}
    for endpoint in (SEARCH, POSTS):
        sent = endpoint.request(unit(T0, T0 + timedelta(days=1)), {}).params
        assert (sent["start_time"], sent["end_time"]) == ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")


def test_search_goes_back_a_week():
    """A run after a longer time asks for what there still is; a timeline has no such bound."""
    now = T0 + timedelta(days=30)
    for endpoint, start in ((SEARCH, now - timedelta(hours=167)), (POSTS, T0 - timedelta(minutes=2))):
        assert endpoint.window(QUERY, "2026-01-01T00:00:00.000000Z", now) == (start, None)
    with pytest.raises(ConfigurationError, match=r"x\.search: the range starts at .* nothing from before"):
        SEARCH.check_range(T0, now)
    SEARCH.check_range(now - timedelta(days=6), now)
    POSTS.check_range(T0, now)


def test_a_post_becomes_a_row():
    """Ids stay texts: they are too long for a number in other languages."""
    page = read(page_of(post(), after="abc"))
    assert page.rows == [
        {
            "found_by": QUERY,
            "id": "2006523456789012345",
            "author": "2244994945",
            "created_at": datetime(2026, 1, 1, 10, 7, 54, tzinfo=UTC),
            "text": "The gate is open.",
            "lang": "en",
            "likes": 12,
            "reposts": 3,
            "replies": 1,
            "data": post(),
        }
    ]
    assert (page.next, page.cursor) == ({"token": "abc"}, "2026-01-01T10:07:54.000000Z")
    assert page.rows[0].keys() == {column.name for column in x_posts.columns}


def test_no_hit_has_no_data():
    """That is an empty page, and one with a token goes on."""
    assert read(page_of()).rows == []
    assert read(page_of()).next is None
    assert read(page_of(after="abc")).next == {"token": "abc"}


def test_errors_of_single_posts():
    """A post that a referenced one of which is gone is a post all the same."""
    page = read(page_of(post(), errors=[GONE]))
    assert [row["id"] for row in page.rows] == [post()["id"]]
    assert read(page_of(errors=[GONE])).rows == []


def test_a_user_that_is_not_there():
    """Errors and nothing else, in a 200."""
    with pytest.raises(NotFoundError, match="Could not find user"):
        read({"errors": [GONE]}, endpoint=POSTS)
    with pytest.raises(BadPayloadError, match=r"x\.posts"):
        read({"errors": [GONE | {"type": "about:blank"}]}, endpoint=POSTS)


@pytest.mark.parametrize(
    "body",
    [
        {"errors": [{"code": 88, "message": "Rate limit exceeded"}]},
        {"title": "Too Many Requests", "detail": "Too Many Requests", "type": "about:blank", "status": 429},
    ],
)
def test_too_many_requests(body):
    """In either form; the wait is until the reset, a Unix time, by the server's clock."""
    headers = {"x-rate-limit-limit": "450", "x-rate-limit-remaining": "0"}
    reset = datetime(2026, 1, 1, 0, 10, tzinfo=UTC)
    headers |= {"x-rate-limit-reset": str(int(reset.timestamp())), "Date": "Thu, 01 Jan 2026 00:00:00 GMT"}
    with pytest.raises(RateLimitError) as caught:
        read(body, 429, **headers)
    assert type(caught.value) is RateLimitError
    assert caught.value.retry_after_s == 600
    quota = quota_from(headers, SEARCH.limits[0])
    assert (quota.limit, quota.remaining, quota.reset_s) == (450, 0, 600)


def test_the_month_is_used_up():
    """No matter of minutes: everybody stays away for a day."""
    body = {
        "account_id": 17,
        "product_name": "basic",
        "title": "UsageCapExceeded",
        "period": "Monthly",
        "detail": "Usage cap exceeded: Monthly product cap",
        "type": "https://api.x.com/2/problems/usage-capped",
    }
    with pytest.raises(BannedError) as caught:
        read(body, 429, x_rate_limit_remaining="449", x_rate_limit_reset="900")
    assert caught.value.retry_after_s == 86_400


def test_each_endpoint_has_its_own_limit():
    """450 searches and 900 timelines."""
    assert [(each.spec, each.per) for each in SEARCH.limits] == [("450/15m", "endpoint")]
    assert [(each.spec, each.per) for each in POSTS.limits] == [("900/15m", "endpoint")]


BROKEN = {
    "nothing": b"",
    "truncated": json.dumps(page_of(post())).encode()[:-5],
    "null": b"null",
    "a list": [post()],
    "no meta": {"data": [post()]},
    "meta of null": {"data": [post()], "meta": None},
    "a count of null and no data": {"meta": {"result_count": None}},
    "a count and no data": {"meta": {"result_count": 3}},
    "data of one": page_of(post()) | {"data": post()},
    "a post of null": page_of(None),
    "an id of null": page_of(post(id=None)),
    "an id of number": page_of(post(id=2006523456789012345)),
    "no author": page_of(post(author_id=None)),
    "no time": page_of(post(created_at=None)),
    "a time without a zone": page_of(post(created_at="2026-01-01T10:07:54")),
    "no text": page_of(post(text=None)),
    "no metrics": page_of(post(public_metrics=None)),
    "likes of text": page_of(post(public_metrics={"like_count": "1", "retweet_count": 1, "reply_count": 1})),
    "a token of list": page_of(post(), after=["abc"]),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that names the endpoint."""
    with pytest.raises(BadPayloadError, match=r"x\.search"):
        read(body)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, ValidationError),
        (401, InvalidCredentialsError),
        (403, InvalidCredentialsError),
        (404, NotFoundError),
    ],
)
def test_documented_errors(status, kind):
    """As the status says."""
    with pytest.raises(kind) as caught:
        read({"title": "no", "type": "about:blank", "status": status}, status)
    assert type(caught.value) is kind


def test_symbols_are_named_by_the_installation():
    """Queries of any form, users by their ids."""
    assert SEARCH.check_symbols([QUERY, "from:pump -is:retweet"]) == (QUERY, "from:pump -is:retweet")
    assert POSTS.check_symbols(["2244994945"]) == ("2244994945",)
    with pytest.raises(ConfigurationError, match="'@pump' is no symbol"):
        POSTS.check_symbols(["@pump"])
    with pytest.raises(ConfigurationError, match=r"x\.search has no symbols yet"):
        SEARCH.check_symbols()
