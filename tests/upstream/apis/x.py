"""X: recent search and timelines, newest first; no `data` without a hit, partial errors, two forms of a 429."""

import base64
import json
import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.upstream.apis.base import Answer, Api, Charge, RejectedError, Request, encode
from tests.upstream.data import LISTED_AT_S, mix, seed

SEARCH_S, TIMELINE_S = 1200, 2 * 86_400  # how often somebody posts
WEEK = timedelta(days=7)
DELAY_S = 30  # until a post is found
MOST = 3200  # of a timeline
_SNOWFLAKE_MS = 1_288_834_974_657
_WORDS = ("pump", "gate", "sluice", "weir", "turbine", "meter", "valve", "intake")
_UNASKED = ("id", "text", "edit_history_tweet_ids")


def post(name: str, step_s: int, slot: int) -> dict[str, Any] | None:
    """The post of a slot of time, with all its fields; in some there is none."""
    own = seed(name)
    bits = mix(own, slot)
    if bits % 3 == 0:
        return None
    at_ms = slot * step_s * 1000 + bits % (step_s * 1000)
    number = str(((at_ms - _SNOWFLAKE_MS) << 22) | bits & 0x3FFFFF)
    words = [_WORDS[(bits >> shift) % len(_WORDS)] for shift in (8, 16, 24)]
    return {
        "id": number,
        "text": f"{' '.join(words)} 💧",
        "edit_history_tweet_ids": [number],
        "author_id": str(own % 10**10),
        "conversation_id": number,
        "created_at": datetime.fromtimestamp(at_ms // 1000, UTC).isoformat().replace("+00:00", ".000Z"),
        "lang": ("en", "de", "zxx")[bits % 2 + (bits % 5 == 0)],
        "public_metrics": {
            "retweet_count": bits % 17,
            "reply_count": bits % 7,
            "like_count": bits % 1013,
            "quote_count": bits % 3,
            "bookmark_count": bits % 5,
            "impression_count": bits % 100_003,
        },
        **({"referenced_tweets": [{"type": "quoted", "id": str(bits)}]} if bits % 10 == 0 else {}),
    }


def posts(name: str, step_s: int, start: datetime, end: datetime) -> list[dict[str, Any]]:
    """The posts from a moment up to another, newest first."""
    first, last = int(start.timestamp()) // step_s, int(end.timestamp()) // step_s
    every = (post(name, step_s, slot) for slot in range(last, first - 1, -1))
    return [each for each in every if each and start <= datetime.fromisoformat(each["created_at"]) < end]


def found(path: str, symbol: str, now: float) -> list[dict[str, Any]]:
    """All posts that the API gives of a query or a user at a moment."""
    at = datetime.fromtimestamp(now, UTC)
    end = at - timedelta(seconds=DELAY_S)
    if path == "tweets/search/recent":
        return [] if "nothing" in symbol else posts(symbol, SEARCH_S, at - WEEK, end)
    return posts(f"user {symbol}", TIMELINE_S, datetime.fromtimestamp(LISTED_AT_S, UTC), end)[:MOST]


def expected(path: str, symbol: str, now: float) -> list[dict[str, Any]]:
    """What has to be stored of a query or a user at a moment, in the order of the ids."""
    return [
        {
            "found_by": symbol,
            "id": each["id"],
            "author": each["author_id"],
            "created_at": datetime.fromisoformat(each["created_at"]),
            "text": each["text"],
            "lang": each["lang"],
            "likes": each["public_metrics"]["like_count"],
            "reposts": each["public_metrics"]["retweet_count"],
            "replies": each["public_metrics"]["reply_count"],
            "data": each,
        }
        for each in reversed(found(path, symbol, now))
    ]


def missing(kind: str, parameter: str, value: str) -> dict[str, Any]:
    return {
        "value": value,
        "detail": f"Could not find {kind} with {parameter}: [{value}].",
        "title": "Not Found Error",
        "resource_type": kind,
        "parameter": parameter,
        "resource_id": value,
        "type": "https://api.x.com/2/problems/resource-not-found",
    }


def problem(status: int, title: str, detail: str) -> dict[str, Any]:
    return {"title": title, "detail": detail, "type": "about:blank", "status": status}


class X(Api):
    """450 searches and 900 timelines in 15 minutes for each token, told in every answer; no Retry-After."""

    name, prefix = "x", "2/"
    documented = {"amount": 450, "window_s": 900}
    further = {"timelines": (900, 900)}
    unit = "searches"

    def rescale(self, limits: Mapping[str, float]) -> None:
        super().rescale(limits)
        self.counting = self.meter  # where the request counts that is being answered
        self.told = 0

    def key(self, request: Request) -> str:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token or token.startswith("BAD"):
            raise RejectedError(401, problem(401, "Unauthorized", "Unauthorized"))
        return token

    def charges(self, request: Request, key: str) -> list[Charge]:
        self.counting = self.meters["timelines" if request.path.startswith("users/") else self.unit]
        return [(self.counting, key, 1)]

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def headers(self, key: str, now: float) -> dict[str, str]:
        window = self.counting.granted[key]
        return {
            "x-rate-limit-limit": str(self.counting.amount),
            "x-rate-limit-remaining": str(self.counting.amount - window.at(now)),
            "x-rate-limit-reset": str(math.ceil(time.time() + window.room_in(now, 1))),
        }

    def trouble(self, status: int) -> bytes:
        if status != 429:
            return encode(problem(status, "Internal Error", "Something is broken"))
        self.told += 1
        if self.told % 2:
            return encode(problem(429, "Too Many Requests", "Too Many Requests"))
        return encode({"errors": [{"code": 88, "message": "Rate limit exceeded"}]})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        query = request.query
        if request.path == "tweets/search/recent":
            symbol, token, least = query.get("query", ""), "next_token", 10
            if not 1 <= len(symbol) <= 512 or symbol in bad:
                raise self._invalid("query", f"Invalid 'query':'{symbol}'")
            oldest = datetime.fromtimestamp(now, UTC) - WEEK
            if self._moment(query, "start_time", oldest) < oldest:
                raise self._invalid(
                    "start_time", f"'start_time' must be on or after {oldest:%Y-%m-%dT%H:%MZ}"
                )
        elif match := re.fullmatch(r"users/(\d{1,19})/tweets", request.path):
            symbol, token, least = match[1], "pagination_token", 5
            if symbol in bad:
                return encode({"errors": [missing("user", "id", symbol)]})
        else:
            raise RejectedError(404, problem(404, "Not Found", "Not Found"))
        return self._page(request.path, symbol, query, token, least, now)

    def _page(
        self, path: str, symbol: str, query: Mapping[str, str], token: str, least: int, now: float
    ) -> bytes:
        size = query.get("max_results", "10")
        if not size.isdigit() or not least <= int(size) <= 100:
            raise self._invalid("max_results", f"'max_results' is not between {least} and 100")
        as_of, at = self._token(query.get(token), [self.generation, path, symbol], now)
        start = self._moment(query, "start_time", datetime.fromtimestamp(0, UTC))
        end = self._moment(query, "end_time", datetime.fromtimestamp(as_of, UTC))
        rows = [
            each
            for each in found(path, symbol, as_of)
            if start <= datetime.fromisoformat(each["created_at"]) < end
            and int(each["id"]) > int(query.get("since_id", "0"))
        ]
        wanted = (*_UNASKED, *query.get("tweet.fields", "").split(","))
        shown = [{name: row[name] for name in row if name in wanted} for row in rows[at : at + int(size)]]
        meta: dict[str, Any] = {"result_count": len(shown)}
        if shown:
            meta |= {"newest_id": shown[0]["id"], "oldest_id": shown[-1]["id"]}
        if at + int(size) < len(rows):
            promised = [self.generation, path, symbol, as_of, at + int(size)]
            meta["next_token"] = base64.urlsafe_b64encode(encode(promised)).decode().rstrip("=")
        gone = [
            missing("tweet", "referenced_tweets.id", each["id"])
            for row in shown
            for each in row.get("referenced_tweets", ())
        ]
        body = {"data": shown} if shown else {}
        return encode({**body, **({"errors": gone} if gone else {}), "meta": meta})

    def _token(self, text: str | None, scope: list[Any], now: float) -> tuple[float, int]:
        """Of which moment a page is, and where it begins."""
        if text is None:
            return now, 0
        try:
            *promised, as_of, at = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
        except (ValueError, TypeError):
            promised, as_of, at = [], 0, 0
        if promised != scope:
            raise self._invalid("next_token", "Invalid 'next_token'")
        return float(as_of), int(at)

    def _moment(self, query: Mapping[str, str], name: str, default: datetime) -> datetime:
        text = query.get(name)
        if text is None:
            return default
        if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", text):
            raise self._invalid(name, f"The `{name}` query parameter value [{text}] is not RFC3339")
        return datetime.fromisoformat(text)

    @staticmethod
    def _invalid(parameter: str, message: str) -> RejectedError:
        return RejectedError(
            400,
            {
                "errors": [{"parameters": {parameter: []}, "message": message}],
                "title": "Invalid Request",
                "detail": "One or more parameters to your request was invalid.",
                "type": "https://api.x.com/2/problems/invalid-request",
            },
        )
