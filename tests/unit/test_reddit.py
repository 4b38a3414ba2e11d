"""Reddit: listings, times as fractions, and headers that come and go."""

import json
from datetime import UTC, datetime

import pytest

from resilience.errors import BadPayloadError, NotFoundError
from resilience.headers import quota_from
from tasks.collectors import Answer, Unit
from tasks.collectors.reddit import reddit
from tasks.data import reddit_posts

POSTS = reddit.endpoints["posts"]
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def unit() -> Unit:
    return Unit(1, 1, "reddit", "posts", "rivers", None, None, None)


def post(**changed) -> dict:
    return {
        "name": "t3_1abc",
        "author": "heron",
        "title": "High water",
        "selftext": "",
        "url": "https://example.com/gauge",
        "score": 12,
        "num_comments": 3,
        "created": 1767254400.0,
        "created_utc": 1767225600.0,
    } | changed


def listing(*posts, after=None) -> dict:
    children = [{"kind": "t3", "data": each} for each in posts]
    return {"kind": "Listing", "data": {"after": after, "before": None, "children": children}}


def read(body, status=200, **headers):
    return POSTS.read(unit(), {}, Answer(status, headers, json.dumps(body).encode(), 0.1))


def test_the_first_request():
    """A hundred at once, and texts as they were written."""
    request = POSTS.request(unit(), {})
    assert request.url == "https://oauth.reddit.com/r/rivers/new"
    assert request.params == {"raw_json": "1", "limit": "100"}


def test_a_post_becomes_a_row():
    """The moment is `created_utc`; `created` is shifted by somebody's zone."""
    page = read(listing(post(), after="t3_1abb"))
    (row,) = page.rows
    assert row.keys() == {column.name for column in reddit_posts.columns}
    assert (row["id"], row["subreddit"], row["created_at"]) == ("t3_1abc", "rivers", T0)
    assert (row["score"], row["comments"], row["data"]) == (12, 3, post())
    assert (page.next, page.cursor) == ({"token": "t3_1abb"}, "2026-01-01T00:00:00.000000Z")


def test_the_end_of_a_listing():
    """About a thousand posts deep `after` is null."""
    assert read(listing(post())).next is None
    assert read(listing()).rows == []


def test_what_the_headers_say():
    """A fraction that remains, and seconds until it starts anew."""
    said = {"x-ratelimit-remaining": "996.0", "x-ratelimit-used": "4", "x-ratelimit-reset": "498"}
    quota = quota_from(said, reddit.limits[0])
    assert (quota.remaining, quota.reset_s) == (996, 498)
    assert quota_from({}, reddit.limits[0]) is None


def test_a_subreddit_that_is_not_there():
    """404, and no circuit is the worse for it."""
    with pytest.raises(NotFoundError):
        read({"message": "Not Found", "error": 404}, 404)


def test_a_moment_that_is_none():
    """A text where a number belongs."""
    with pytest.raises(BadPayloadError):
        read(listing(post(created_utc="yesterday")))
