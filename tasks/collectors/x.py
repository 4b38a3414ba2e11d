"""X (Twitter): posts that match a query, and posts of a user. Symbols are queries, and the ids of users.

Documented (docs.x.com/x-api, pages on rate limits, recent search, timelines and response codes, read
2026-11): 450 searches and 900 reads of timelines in 15 minutes for an app, told by `x-rate-limit-*` headers
whose reset is a Unix time; no Retry-After. Search goes back seven days, a timeline 3,200 posts. Pages of 100,
newest first; without a hit there is no `data`. A 200 may carry `errors` of single posts beside its data, or
instead of it where a user is not there. A month allows so many posts: a 429 says when it is used up.
"""

from typing import Any

from tasks.collectors import Api, Bearer, Cursor, Limit, Rule, Token, Unit, iso
from tasks.data import x_posts

x = Api(
    "x",
    "https://api.x.com/2",
    auth=Bearer("X_BEARER_TOKEN"),
    rules=[
        Rule("banned", status=429, body="(?i)usage-?capp?ed", retry_after="1d"),
        Rule("not_found", status=200, body=r'(?s)^(?!.*"(data|meta)"\s*:).*"errors"\s*:.*resource-not-found'),
    ],
)

_FIELDS = "author_id,conversation_id,created_at,lang,public_metrics,referenced_tweets"


def _found(body: Any) -> Any:
    """The posts, none where the API counted none."""
    return [] if body["meta"]["result_count"] == 0 else body["data"]


def _posts(path: str, limit: str, token: str, horizon: str | None = None, **options: Any) -> Any:
    return x.endpoint(
        path,
        symbols=[],
        page=Token(param=token, at="meta.next_token", size_param="max_results", size=100),
        rows=_found,
        cursor=Cursor("created_at", lag="2m", param="start_time", until="end_time", horizon=horizon),
        table=x_posts,
        key=("found_by", "id"),
        limits=[
            Limit(
                limit,
                per="endpoint",
                remaining="x-rate-limit-remaining",
                reset="x-rate-limit-reset",
                reserve=0.3,
            )
        ],
        every="15m",
        **options,
    )


def _post(row: Any, unit: Unit) -> dict[str, Any]:
    return {
        "found_by": unit.symbol,
        "id": row["id"],
        "author": row["author_id"],
        "created_at": iso(row["created_at"]),
        "text": row["text"],
        "lang": row.get("lang"),
        "likes": row["public_metrics"]["like_count"],
        "reposts": row["public_metrics"]["retweet_count"],
        "replies": row["public_metrics"]["reply_count"],
        "data": row,
    }


@_posts(
    "/tweets/search/recent",
    "450/15m",
    "next_token",
    horizon="167h",  # an hour less than seven days: a unit may have to wait
    params={"query": "{symbol}", "tweet.fields": _FIELDS},
)
def search(row: Any, unit: Unit) -> dict[str, Any]:
    """A post that matches the query."""
    return _post(row, unit)


@_posts(
    "/users/{symbol}/tweets",
    "900/15m",
    "pagination_token",
    params={"tweet.fields": _FIELDS},
    symbol_pattern=r"\d{1,20}",
)
def posts(row: Any, unit: Unit) -> dict[str, Any]:
    """A post of the user."""
    return _post(row, unit)
