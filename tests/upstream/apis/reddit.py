"""Reddit: listings of subreddits, newest first."""

import html
import math
import re
from datetime import UTC, datetime
from typing import Any

from tests.upstream.apis.base import Answer, RejectedError, Request, encode
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix, seed

DEEPEST = 1000


def posts(subreddit: str, added: int = 0) -> list[dict[str, Any]]:
    """Every post that a listing gives, newest first: 120 to 370 of them, and what was added."""
    count = 120 + seed(subreddit) % 251 + added
    return [post(subreddit, number) for number in range(count, 0, -1)][:DEEPEST]


def post(subreddit: str, number: int) -> dict[str, Any]:
    bits = mix(seed(subreddit), number)
    at = LISTED_AT_S + number * 3600 + bits % 3600
    return {
        "name": f"t3_{seed(subreddit) % 1_000_000:06d}{number:05d}",
        "subreddit": subreddit,
        "author": f"heron_{bits % 50}",
        "title": f"Post {number} about “{subreddit}”",
        "selftext": "" if bits % 3 else f"Text {bits % 1000}\nwith <tags> & more",
        "url": f"https://www.reddit.com/r/{subreddit}/{number}",
        "score": bits % 2000 - 20,
        "num_comments": bits % 90,
        "created": float(at + 28_800),
        "created_utc": float(at),
    }


def expected(subreddit: str, added: int = 0) -> list[dict[str, Any]]:
    """What has to be stored of a subreddit, in the order of the ids."""
    return [
        {
            "id": row["name"],
            "subreddit": subreddit,
            "author": row["author"],
            "title": row["title"],
            "text": row["selftext"],
            "url": row["url"],
            "score": row["score"],
            "comments": row["num_comments"],
            "created_at": datetime.fromtimestamp(row["created_utc"], UTC),
            "data": row,
        }
        for row in reversed(posts(subreddit, added))
    ]


class Reddit(TokenApi):
    """1,000 in ten minutes for a client; about a thousand posts deep; who does not name itself is refused.

    One answer in seven says nothing of limits, and texts are made fit for HTML unless `raw_json` is asked for.
    """

    name = "reddit"
    token_path = "api/v1/access_token"
    documented = {"amount": 1000, "window_s": 600}
    lifetime_s = 86_400.0

    def reset(self) -> None:
        super().reset()
        self.added = 0

    def control(self, name: str, value: Any) -> None:
        if name != "add":
            return super().control(name, value)
        self.added += int(value)
        return None

    def key(self, request: Request) -> str:
        agent = request.headers.get("user-agent", "")
        if not agent or agent.startswith(("python-requests", "Python-urllib", "python-urllib3")):
            raise RejectedError(403, {"message": "whoa there, pardner!", "error": 403})
        return super().key(request)

    def headers(self, key: str, now: float) -> dict[str, str]:
        window = self.meter.granted[key]
        used = window.at(now)
        if key in {"", "token"} or used % 7 == 0:
            return {}
        return {
            "x-ratelimit-used": str(used),
            "x-ratelimit-remaining": f"{self.meter.amount - used:.1f}",
            "x-ratelimit-reset": str(math.ceil(window.room_in(now, used))),
        }

    def trouble(self, status: int) -> bytes:
        said = {400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 429: "Too Many Requests"}
        return encode({"message": said.get(status, "Internal Server Error"), "error": status})

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        path = re.fullmatch(r"r/(\w{2,21})/new", request.path)
        if path is None or path[1] in bad:
            return Answer(404, self.trouble(404))
        rows = posts(path[1], self.added)
        limit = min(100, self.whole(request.query, "limit", 25))
        after = request.query.get("after")
        start = next(
            (n + 1 for n, row in enumerate(rows) if row["name"] == after), 0 if after is None else len(rows)
        )
        page = rows[start : start + limit]
        more = start + limit < len(rows)
        if request.query.get("raw_json") != "1":
            page = [
                {k: html.escape(v, quote=False) if isinstance(v, str) else v for k, v in row.items()}
                for row in page
            ]
        data = {
            "after": page[-1]["name"] if more else None,
            "before": None,
            "children": [{"kind": "t3", "data": row} for row in page],
        }
        return encode({"kind": "Listing", "data": data})
