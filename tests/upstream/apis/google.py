"""Google: the calendar with its sync tokens, and mail with its history."""

import base64
import json
import re
from datetime import UTC, datetime
from typing import Any

from tests.upstream.apis.base import Answer, Charge, Request, encode
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix, seed

CALENDARS = ["primary", "team@example.com"]
EVENTS = 130
MESSAGES = 180
VANISHED = 97  # every so-manieth message is gone when it is asked for
FIRST_HISTORY = 1000


def _z(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def event(calendar: str, number: int, version: int = 0) -> dict[str, Any]:
    """One event as of a version of the calendar: version v changes event v, each seventh of them to cancelled."""
    bits = mix(seed(calendar), number)
    changed = 0 < number < version + 1
    if changed and number % 7 == 0:
        return {"id": f"e{number:05d}", "status": "cancelled"}
    at = LISTED_AT_S + bits % 50_000_000 // 900 * 900
    day = datetime.fromtimestamp(at, UTC)
    whole = {"date": day.date().isoformat()}
    return {
        "id": f"e{number:05d}",
        "status": "tentative" if bits % 5 == 0 else "confirmed",
        "summary": f"Event {number}{' (moved)' if changed else ''}",
        "organizer": {"email": f"user{bits % 9}@example.com"},
        "start": whole if bits % 4 == 0 else {"dateTime": day.isoformat(), "timeZone": "UTC"},
        "end": whole
        if bits % 4 == 0
        else {"dateTime": day.replace(minute=59).isoformat(), "timeZone": "UTC"},
        "updated": _z(at + (version if changed else 0)),
    }


def events(calendar: str, version: int = 0, since: int | None = None) -> list[dict[str, Any]]:
    """Every event, or those that changed since a version; what was cancelled comes only as a change."""
    if since is None:
        found = (event(calendar, number, version) for number in range(EVENTS))
        return [row for row in found if row["status"] != "cancelled"]
    return [event(calendar, number, version) for number in range(since + 1, version + 1)]


def message(mailbox: str, number: int) -> dict[str, Any]:
    """One message as `format=metadata` gives it."""
    bits = mix(seed(mailbox), number)
    return {
        "id": f"m{number:08x}",
        "threadId": f"t{number // 3:08x}",
        "labelIds": ["INBOX", "UNREAD"] if bits % 3 else ["SENT"],
        "snippet": f"Snippet {number} &amp; “more”",
        "historyId": str(FIRST_HISTORY + number),
        "internalDate": str((LISTED_AT_S + number * 7200) * 1000 + bits % 1000),
        "sizeEstimate": bits % 100_000,
        "payload": {
            "mimeType": "text/plain",
            "headers": [
                {"name": "From", "value": f"User {bits % 9} <user{bits % 9}@example.com>"},
                {"name": "Subject", "value": f"Message {number}"},
            ],
        },
    }


def messages(mailbox: str, count: int = MESSAGES) -> list[dict[str, Any]]:
    """Every message that can be had, oldest first."""
    return [message(mailbox, number) for number in range(count) if number % VANISHED != VANISHED - 1]


class Google(TokenApi):
    """What both share: errors with a reason in the body, tokens for pages, and a limit for a user and the project."""

    refreshes = True
    page_cap = 40  # an API may give fewer rows than it was asked for

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(403, self.trouble(403))

    def trouble(self, status: int) -> bytes:
        reasons = {
            401: "authError",
            403: "rateLimitExceeded",
            404: "notFound",
            410: "fullSyncRequired",
            429: "rateLimitExceeded",
        }
        reason = reasons.get(status, "backendError")
        errors = [
            {
                "domain": "usageLimits" if status in {403, 429} else "global",
                "reason": reason,
                "message": reason,
            }
        ]
        return encode({"error": {"code": status, "message": reason, "errors": errors}})

    def charges(self, request: Request, key: str) -> list[Charge]:
        return [
            (meter, "project" if meter.name == "project" else key, weight)
            for meter, _, weight in super().charges(request, key)
        ]

    def cut(self, rows: list[Any], query: Any, *, scope: str) -> tuple[list[Any], str | None]:
        """A page of the rows, and the token of the next one."""
        start, issued_for = 0, scope
        if token := query.get("pageToken"):
            start, issued_for = json.loads(base64.urlsafe_b64decode(token))
        if issued_for != scope:
            raise ValueError("a page token of another request")
        size = min(self.page_cap, int(query.get("maxResults", self.page_cap)))
        page = rows[start : start + size]
        after = start + size
        return page, base64.urlsafe_b64encode(encode([after, scope])).decode() if after < len(rows) else None


class Calendar(Google):
    """600 a minute for a user, 10,000 for the project."""

    name = "calendar"
    unit = "user"
    documented = {"amount": 600, "window_s": 60}
    further = {"project": (10_000, 60)}

    def reset(self) -> None:
        super().reset()
        self.version = self.syncs = 0

    def control(self, name: str, value: Any) -> None:
        match name:
            case "change":
                self.version += int(value)
            case "expire_syncs":
                self.syncs += bool(value)
            case _:
                super().control(name, value)

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        path, query = re.fullmatch(r"calendar/v3/calendars/([^/]+)/events", request.path), request.query
        if path is None or path[1] not in CALENDARS or path[1] in bad:
            return Answer(404, self.trouble(404))
        since, upto = None, self.version
        if token := query.get("syncToken"):
            if {"timeMin", "timeMax", "updatedMin", "orderBy", "q"} & query.keys():
                return Answer(400, self.trouble(400))
            syncs, since = json.loads(base64.urlsafe_b64decode(token))
            if syncs != self.syncs:
                return Answer(410, self.trouble(410))
        rows = events(path[1], upto, since)
        # Between the first and the second page there is one without events, as the real one gives now and then.
        start = query.get("pageToken")
        if start is not None and start.startswith("hole-"):
            return encode(
                {"kind": "calendar#events", "items": [], "nextPageToken": start.removeprefix("hole-")}
            )
        page, after = self.cut(rows, query, scope=f"{path[1]} {since} {upto}")
        if after is not None:
            return encode(
                {
                    "kind": "calendar#events",
                    "items": page,
                    "nextPageToken": after if start else f"hole-{after}",
                }
            )
        token = base64.urlsafe_b64encode(encode([self.syncs, upto])).decode()
        return encode({"kind": "calendar#events", "items": page, "nextSyncToken": token})


class Gmail(Google):
    """6,000 units a minute for a user; a list and a message cost 5, the history 2, the profile 1."""

    name = "gmail"
    unit = "user"
    documented = {"amount": 6000, "window_s": 60}
    further = {"project": (1_200_000, 60)}

    def reset(self) -> None:
        super().reset()
        self.count, self.oldest = MESSAGES, FIRST_HISTORY

    def control(self, name: str, value: Any) -> None:
        match name:
            case "add":
                self.count += int(value)
            case "forget_history":
                self.oldest = FIRST_HISTORY + self.count
            case _:
                super().control(name, value)

    def weight(self, path: str) -> int:
        return 2 if path.endswith("/history") else 1 if path.endswith("/profile") else 5

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        path, query = (
            re.fullmatch(r"gmail/v1/users/([^/]+)/(profile|messages|history)(?:/(\w+))?", request.path),
            request.query,
        )
        if path is None or path[1] in bad:
            return Answer(404, self.trouble(404))
        mailbox, kind, wanted = path.groups()
        newest = str(FIRST_HISTORY + self.count)
        if wanted is not None:
            number = int(wanted[1:], 16)
            if number >= self.count or number % VANISHED == VANISHED - 1:
                return Answer(404, self.trouble(404))
            return encode(message(mailbox, number))
        if kind == "profile":
            return encode({"emailAddress": mailbox, "messagesTotal": self.count, "historyId": newest})
        ids = [{"id": f"m{n:08x}", "threadId": f"t{n // 3:08x}"} for n in range(self.count)]
        if kind == "messages":
            page, after = self.cut(ids[::-1], query, scope=f"messages {self.count}")
            said: dict[str, Any] = {"messages": page} if page else {}
            said["resultSizeEstimate"] = self.count
        else:
            start = int(query["startHistoryId"])
            if start < self.oldest:
                return Answer(404, self.trouble(404))
            added = [
                {"id": str(FIRST_HISTORY + n + 1), "messages": [each], "messagesAdded": [{"message": each}]}
                for n, each in enumerate(ids)
                if n >= start - FIRST_HISTORY
            ]
            page, after = self.cut(added, query, scope=f"history {start} {self.count}")
            said = ({"history": page} if page else {}) | {"historyId": newest}
        return encode(said | ({"nextPageToken": after} if after else {}))
