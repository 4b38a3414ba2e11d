"""Reddit: the newest posts of subreddits. Symbols are their names, without "r/".

Documented (github.com/reddit-archive/reddit/wiki/API and the Data API's help page, read 2026-11; what the
headers hold was recorded in 2026-06): 100 requests per minute and client, averaged over ten minutes;
`x-ratelimit-remaining` is a fraction, `x-ratelimit-reset` are seconds to go, and both are missing now and
then. Each client names itself in User-Agent. A listing ends after about 1,000 posts.
"""

from datetime import UTC, datetime
from typing import Any

from tasks.collectors import Api, Cursor, Limit, OAuth2, Token, Unit, number
from tasks.data import reddit_posts

reddit = Api(
    "reddit",
    "https://oauth.reddit.com",
    auth=OAuth2(
        "https://www.reddit.com/api/v1/access_token",
        client_id="REDDIT_CLIENT_ID",
        client_secret="REDDIT_CLIENT_SECRET",
    ),
    limits=[Limit("1000/10m", per="account", reserve=0.3)],
)


@reddit.endpoint(
    "/r/{symbol}/new",
    symbols=[],
    symbol_pattern=r"[A-Za-z0-9_]{2,21}",
    params={"raw_json": "1"},
    page=Token(param="after", at="data.after", size_param="limit", size=100),
    rows="data.children",
    cursor=Cursor("created_at", lag="1d"),
    table=reddit_posts,
    key="id",
    every="10m",
)
def posts(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a post as Reddit gives it into ours, and keep the original beside it."""
    post = row["data"]
    return {
        "id": post["name"],
        "subreddit": unit.symbol,
        "author": post["author"],
        "title": post["title"],
        "text": post["selftext"],
        "url": post["url"],
        "score": post["score"],
        "comments": post["num_comments"],
        "created_at": datetime.fromtimestamp(int(number(post["created_utc"])), UTC),
        "data": post,
    }
