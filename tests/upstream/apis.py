"""The three APIs: who is counted, what is over the limit, and what each path answers."""

import base64
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from tests.upstream.data import LISTED_AT_S, PROJECTS, candle, kline, klines, tasks
from tests.upstream.meter import Meter


@dataclass(frozen=True)
class Request:
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    address: str


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    content_type: str = "application/json"


class RejectedError(Exception):
    """The request is answered with a client error: status and JSON body."""

    def __init__(self, status: int, body: Any):
        super().__init__(status)
        self.status, self.body = status, body


def encode(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def retry_after(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


class Api:
    """What the APIs share; `limits` may be rescaled, everything else is as documented."""

    name: str
    prefix = ""
    unit = "requests"
    documented: Mapping[str, float]
    generation = 0  # an Asana offset token of an earlier generation has expired

    def __init__(self) -> None:
        self.rescale({})

    def rescale(self, limits: Mapping[str, float]) -> None:
        """Put limits in force and forget what was counted. Raises ValueError for a name the API does not have."""
        if unknown := limits.keys() - self.documented.keys():
            raise ValueError(f"unknown limits: {', '.join(sorted(unknown))}")
        rules = {**self.documented, **limits}
        burst = int(rules["burst"]) if "burst" in rules else None
        self.meter = Meter(self.unit, int(rules["amount"]), rules["window_s"], burst)
        self.at_once = int(rules["at_once"]) if "at_once" in rules else None

    def key(self, request: Request) -> str:
        """Who is counted. Raises RejectedError where the caller has to say who it is and does not."""
        return request.address

    def weight(self, path: str) -> int:
        return 1

    def refuse(self, key: str, weight: int, now: float) -> Answer | None:
        """Spend the weight, or say how the API answers one that is over its limit."""
        wait_s = self.meter.take(key, weight, now)
        return self.too_many(wait_s) if wait_s else None

    def too_many(self, wait_s: float) -> Answer:
        return Answer(429, self.trouble(429), retry_after(wait_s))

    def headers(self, key: str, now: float) -> dict[str, str]:
        """What every answer of the API carries."""
        return {}

    def trouble(self, status: int) -> bytes:
        raise NotImplementedError

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        """The JSON body of a success. Raises RejectedError for everything the API rejects."""
        raise NotImplementedError


STEPS_MS = {
    f"{count}{unit}": count * size * 1000
    for unit, size, counts in (
        ("s", 1, (1,)),
        ("m", 60, (1, 3, 5, 15, 30)),
        ("h", 3600, (1, 2, 4, 6, 8, 12)),
        ("d", 86_400, (1, 3)),
    )
    for count in counts
}


@lru_cache(maxsize=512)
def _page(symbol: str, first: int, end: int, step: int) -> str:
    return json.dumps(klines(symbol, first, end, step), separators=(",", ":"))[1:-1]


class Binance(Api):
    """
    6,000 of weight a minute per address, seen through a sliding window (stricter than the real one's fixed minutes).

    Over it: 429 until Retry-After has passed; who still calls then (one sixtieth of the window is granted to what
    was on its way) is banned with 418 for two windows.
    """

    name, prefix, unit = "binance", "api/v3/", "weight"
    documented = {"amount": 6000, "window_s": 60}

    def rescale(self, limits: Mapping[str, float]) -> None:
        super().rescale(limits)
        self.refused: dict[str, tuple[float, float]] = {}  # address → since, until
        self.banned: dict[str, float] = {}

    def weight(self, path: str) -> int:
        return 2 if path == "klines" else 1

    def refuse(self, key: str, weight: int, now: float) -> Answer | None:
        since, until = self.refused.get(key, (0.0, 0.0))
        grace_s = self.meter.window_s / 60
        if now < until and now > since + grace_s and self.banned.get(key, 0.0) <= now:
            self.banned[key] = now + 2 * self.meter.window_s
        if now < self.banned.get(key, 0.0):
            self.meter.refused += 1
            return Answer(418, self.trouble(418), retry_after(self.banned[key] - now))
        if now < until:
            self.meter.refused += 1
            return self.too_many(until - now)
        answer = super().refuse(key, weight, now)
        if answer is not None:
            self.refused[key] = (now, now + int(answer.headers["Retry-After"]))
        return answer

    def headers(self, key: str, now: float) -> dict[str, str]:
        return {"X-MBX-USED-WEIGHT-1M": str(self.meter.granted[key].at(now))}

    def trouble(self, status: int) -> bytes:
        if status in {418, 429}:
            return encode({"code": -1003, "msg": "Too much request weight used."})
        return encode({"code": -1000, "msg": "An unknown error occurred."})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        match request.path:
            case "ping":
                return b"{}"
            case "time":
                return encode({"serverTime": int(now * 1000)})
            case "klines":
                return self._klines(request.query, bad, int(now * 1000))
        raise RejectedError(404, {"code": -1000, "msg": "No such path."})

    def _klines(self, query: Mapping[str, str], bad: frozenset[str], now_ms: int) -> bytes:
        symbol, interval = query.get("symbol", ""), query.get("interval", "")
        for field_name in ("symbol", "interval"):
            if not query.get(field_name):
                raise RejectedError(
                    400, {"code": -1102, "msg": f"Mandatory parameter '{field_name}' was not sent."}
                )
        if not re.fullmatch("[A-Z0-9]{5,12}", symbol) or symbol.startswith("BAD") or symbol in bad:
            raise RejectedError(400, {"code": -1121, "msg": "Invalid symbol."})
        if interval not in STEPS_MS:
            raise RejectedError(400, {"code": -1120, "msg": "Invalid interval."})
        step = STEPS_MS[interval]
        limit = min(1000, self._whole(query, "limit", 500))
        if limit < 1:
            raise RejectedError(400, {"code": -1100, "msg": "Parameter 'limit' is out of range."})
        current = now_ms // step * step
        last = min(current, self._whole(query, "endTime", now_ms) // step * step)
        listed = -(-LISTED_AT_S * 1000 // step) * step
        if "startTime" in query:
            first = max(listed, -(-self._whole(query, "startTime", 0) // step) * step)
            last = min(last, first + (limit - 1) * step)
        else:
            first = max(listed, last - (limit - 1) * step)
        parts = [_page(symbol, first, min(last + step, current), step)] if first <= last else []
        if first <= last == current:
            parts.append(encode(kline(symbol, current, step, now_ms)).decode())
        return f"[{','.join(filter(None, parts))}]".encode()

    @staticmethod
    def _whole(query: Mapping[str, str], name: str, default: int) -> int:
        text = query.get(name, str(default))
        if not re.fullmatch(r"\d{1,16}", text):
            raise RejectedError(
                400, {"code": -1100, "msg": f"Illegal characters found in parameter '{name}'."}
            )
        return int(text)


class Coinbase(Api):
    """10 a second per address from a bucket of 15; 429 without any header; at most 300 buckets in one window."""

    name = "coinbase"
    documented = {"amount": 10, "window_s": 1, "burst": 15}
    GRANULARITIES = (60, 300, 900, 3600, 21_600, 86_400)

    def too_many(self, wait_s: float) -> Answer:
        return Answer(429, self.trouble(429))

    def trouble(self, status: int) -> bytes:
        return encode({"message": "Public rate limit exceeded" if status == 429 else "Internal server error"})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        if request.path == "time":
            iso = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
            return encode({"iso": iso, "epoch": round(now, 3)})
        found = re.fullmatch("products/([^/]+)/candles", request.path)
        product = found[1] if found else ""
        if not re.fullmatch("[A-Z0-9]+-[A-Z]+", product) or product.startswith("BAD") or product in bad:
            raise RejectedError(404, {"message": "NotFound"})
        return self._candles(product, request.query, now)

    def _candles(self, product: str, query: Mapping[str, str], now: float) -> bytes:
        granularity = query.get("granularity", "60")
        if granularity not in map(str, self.GRANULARITIES):
            raise RejectedError(400, {"message": "Unsupported granularity"})
        step = int(granularity)
        current = int(now) // step * step
        first, last = current - 299 * step, current
        if "start" in query and "end" in query:  # one without the other is ignored
            start, end = self._moment(query["start"]), self._moment(query["end"])
            if end < start:
                raise RejectedError(400, {"message": "start must be before end"})
            if end // step - -(-start // step) + 1 > 300:
                raise RejectedError(
                    400, {"message": "granularity too small: more than 300 candles in this range"}
                )
            # The bucket that holds an unaligned start is sent too: a row may precede what was asked for.
            first, last = int(start // step * step), min(current, int(end // step * step))
        rows = (
            candle(product, at, step, now if at == current else None) for at in range(last, first - 1, -step)
        )
        return encode([row for row in rows if row is not None])

    @staticmethod
    def _moment(text: str) -> float:
        try:
            if re.fullmatch(r"\d+(\.\d+)?", text):
                return float(text)
            at = datetime.fromisoformat(text)
        except ValueError:
            raise RejectedError(400, {"message": "Invalid start or end"}) from None
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


class Asana(Api):
    """150 a minute and 50 at once per token; pages by offset tokens over a snapshot taken at the first page."""

    name, prefix = "asana", "api/1.0/"
    documented = {"amount": 150, "window_s": 60, "at_once": 50}

    def key(self, request: Request) -> str:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token or token.startswith("BAD"):
            raise RejectedError(401, self._errors("Not Authorized"))
        return token

    @staticmethod
    def _errors(message: str) -> dict[str, Any]:
        return {"errors": [{"message": message}]}

    def trouble(self, status: int) -> bytes:
        if status == 429:
            return encode(self._errors("You have made too many requests recently. Please wait."))
        return encode({"errors": [{"message": "Server Error", "phrase": "6 calm herons wade upstream"}]})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        query = request.query
        if request.path == "projects":
            rows = [
                {"gid": gid, "name": f"Project {gid[-4:]}", "resource_type": "project"} for gid in PROJECTS
            ]
            return self._cut(rows, "/projects", query, now)
        if request.path != "tasks":
            raise RejectedError(404, self._errors("No matching route for request"))
        project = query.get("project", "")
        if not project:
            raise RejectedError(400, self._errors("You must name a project, section, tag or assignee"))
        if not re.fullmatch("[0-9]+", project) or project in bad:
            raise RejectedError(404, self._errors(f"project: Unknown object: {project}"))
        as_of = self._offset(query, f"/tasks?project={project}", now)[1]
        rows = tasks(project, as_of)
        if since := query.get("modified_since"):
            oldest = self._moment(since)
            rows = [row for row in rows if datetime.fromisoformat(row["modified_at"]) >= oldest]
        return self._cut(rows, f"/tasks?project={project}", query, now)

    def _moment(self, text: str) -> datetime:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise RejectedError(400, self._errors(f"modified_since: Not a valid time: {text}")) from None
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    def _offset(self, query: Mapping[str, str], scope: str, now: float) -> tuple[int, float]:
        """Where a page begins and of which moment it is a page."""
        if "offset" not in query:
            return 0, now
        try:
            generation, start, as_of, issued_for = json.loads(base64.urlsafe_b64decode(query["offset"]))
        except (ValueError, TypeError):
            raise RejectedError(400, self._errors("offset: Your pagination token is invalid.")) from None
        if generation != self.generation or issued_for != scope:
            raise RejectedError(400, self._errors("offset: Your pagination token has expired."))
        return start, as_of

    def _cut(self, rows: list[dict[str, Any]], scope: str, query: Mapping[str, str], now: float) -> bytes:
        start, as_of = self._offset(query, scope, now)
        limit = query.get("limit", str(len(rows) or 1))  # without a limit everything comes at once
        if not limit.isdigit() or not 1 <= int(limit) <= (100 if "limit" in query else len(rows) or 1):
            raise RejectedError(400, self._errors("limit: Must be an integer between 1 and 100"))
        end = start + int(limit)
        following = None
        if end < len(rows):
            token = base64.urlsafe_b64encode(encode([self.generation, end, as_of, scope])).decode()
            path = f"{scope}{'&' if '?' in scope else '?'}limit={limit}&offset={token}"
            following = {"offset": token, "path": path, "uri": f"https://app.asana.com/api/1.0{path}"}
        wanted = query.get("opt_fields", "name,resource_type,resource_subtype").split(",")
        return encode({"data": [pick(row, wanted) for row in rows[start:end]], "next_page": following})


def pick(row: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """The fields asked for, dotted ones inside their object; the gid always comes along."""
    chosen: dict[str, Any] = {"gid": row["gid"]}
    inner: dict[str, list[str]] = {}
    for name in wanted:
        head, _, rest = name.strip().partition(".")
        if head in row:
            inner.setdefault(head, []).extend([rest] if rest else [])
    for head, rests in inner.items():
        value = row[head]
        if isinstance(value, dict):
            value = pick(value, rests or ["resource_type"])
        elif isinstance(value, list):
            value = [pick(item, rests or ["resource_type"]) for item in value]
        chosen[head] = value
    return chosen
