"""Google: the calendar with its sync tokens, and mail with its history."""

import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from tests.upstream.apis.assertions import AssertionTokens
from tests.upstream.apis.base import Answer, Charge, Request, encode, seal
from tests.upstream.apis.tokens import TokenApi, Tokens
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
        "updated": _z(at + (number if changed else 0)),
    }


def events(
    calendar: str, version: int = 0, since: int | None = None, *, deleted: bool = False
) -> list[dict[str, Any]]:
    """Every event, or those that changed since a version; what was cancelled comes as a change, or if `deleted`."""
    if since is None:
        found = (event(calendar, number, version) for number in range(max(EVENTS, version + 1)))
        return [row for row in found if deleted or row["status"] != "cancelled"]
    return [event(calendar, number, version) for number in range(since + 1, version + 1)]


def message(mailbox: str, number: int, *, relabelled: bool = False) -> dict[str, Any]:
    """One message as `format=metadata` gives it."""
    bits = mix(seed(mailbox), number)
    return {
        "id": f"m{number:08x}",
        "threadId": f"t{number // 3:08x}",
        "labelIds": ["STARRED"] if relabelled else ["INBOX", "UNREAD"] if bits % 3 else ["SENT"],
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


def messages(mailbox: str, count: int = MESSAGES, relabelled: int = 0) -> list[dict[str, Any]]:
    """Every message that can be had, oldest first; the first so many got another label."""
    return [
        message(mailbox, number, relabelled=number < relabelled)
        for number in range(count)
        if number % VANISHED != VANISHED - 1
    ]


def expected_events(calendar: str, version: int = 0) -> list[dict[str, Any]]:
    """What has to be stored of a calendar as of a version, in the order of the ids."""
    return [
        {
            "calendar": calendar,
            "id": row["id"],
            "status": row["status"],
            "summary": row.get("summary"),
            "organizer": row["organizer"]["email"] if "organizer" in row else None,
            **{f"{name}_at": _when(row, name, "dateTime", datetime) for name in ("start", "end")},
            **{f"{name}_on": _when(row, name, "date", date) for name in ("start", "end")},
            "updated_at": datetime.fromisoformat(row["updated"]) if "updated" in row else None,
            "data": row,
        }
        for row in events(calendar, version, deleted=True)
    ]


def _when(row: Mapping[str, Any], name: str, kind: str, type_: type[date]) -> date | None:
    text = row.get(name, {}).get(kind)
    return None if text is None else type_.fromisoformat(text)


def expected_messages(mailbox: str, count: int = MESSAGES, relabelled: int = 0) -> list[dict[str, Any]]:
    """What has to be stored of a mailbox, in the order of the ids."""
    return [
        {
            "mailbox": mailbox,
            "id": row["id"],
            "thread": row["threadId"],
            "received_at": datetime.fromtimestamp(int(row["internalDate"]) / 1000, UTC),
            "sender": row["payload"]["headers"][0]["value"],
            "subject": row["payload"]["headers"][1]["value"],
            "snippet": row["snippet"],
            "labels": row["labelIds"],
            "size": row["sizeEstimate"],
            "data": row,
        }
        for row in messages(mailbox, count, relabelled)
    ]


class Google(TokenApi):
    """What both share: errors with a reason in the body, tokens for pages, and a limit for a user and the project.

    Who comes with a refresh token is one user. A service account speaks for the subject of its assertion, and
    each subject is a user of its own.
    """

    refreshes = True
    page_cap = 40  # an API may give fewer rows than it was asked for
    unit = "user"
    STATES = {
        400: ("invalid", "INVALID_ARGUMENT"),
        401: ("authError", "UNAUTHENTICATED"),
        403: ("rateLimitExceeded", "PERMISSION_DENIED"),
        404: ("notFound", "NOT_FOUND"),
        410: ("fullSyncRequired", "FAILED_PRECONDITION"),
        429: ("rateLimitExceeded", "RESOURCE_EXHAUSTED"),
    }

    def token_server(self) -> Tokens:
        return AssertionTokens(
            self.name,
            f"{self.name}/{self.token_path}",
            rotates=False,
            refreshes=True,
            lifetime_s=self.lifetime_s,
        )

    def reset(self) -> None:
        super().reset()
        self.over_limit, self.forbidden = 403, False

    def control(self, name: str, value: Any) -> None:
        match name:
            case "service_account":
                self.tokens.trust(value["email"], value["public_key"])
            case "over_limit":
                if value not in {403, 429}:
                    raise ValueError("over_limit is 403 or 429")
                self.over_limit = value
            case "forbidden":
                self.forbidden = bool(value)
            case _:
                super().control(name, value)

    def too_many(self, wait_s: float, limit: str) -> Answer:
        reason = "userRateLimitExceeded" if limit == "user" else "rateLimitExceeded"
        return Answer(self.over_limit, self.error(self.over_limit, reason, "usageLimits"))

    def trouble(self, status: int) -> bytes:
        reason = self.STATES.get(status, ("backendError", ""))[0]
        return self.error(status, reason, "usageLimits" if status in {403, 429} else "global")

    def error(self, status: int, reason: str, domain: str) -> bytes:
        errors = [{"domain": domain, "reason": reason, "message": reason}]
        state = self.STATES.get(status, ("", "INTERNAL"))[1]
        return encode({"error": {"code": status, "message": reason, "errors": errors, "status": state}})

    def charges(self, request: Request, key: str) -> list[Charge]:
        return [
            (meter, "project" if meter.name == "project" else key, weight)
            for meter, _, weight in super().charges(request, key)
        ]

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        if self.forbidden and not self.asks_token(request):
            return Answer(403, self.error(403, "insufficientPermissions", "global"))
        return super().answer(request, bad, now)

    def subject(self, request: Request) -> str | None:
        """The user whom a service account speaks for, None with the token of a user."""
        account = self.tokens.whose(request.headers.get("authorization", "").partition(" ")[2])
        return None if account in {None, "account"} else account

    def cut(
        self, rows: list[Any], query: Mapping[str, str], start: int, snapshot: list[Any]
    ) -> tuple[list[Any], str | None]:
        """A page of the rows, and the token of the next one, which is a page of the same snapshot."""
        size = min(self.page_cap, self.whole(query, "maxResults", self.page_cap))
        after = start + size
        return rows[start:after], seal([*snapshot, after]) if after < len(rows) else None


class Calendar(Google):
    """600 a minute for a user, 10,000 for the project. What was not asked by a sync token gives none if filtered."""

    name = "calendar"
    documented = {"amount": 600, "window_s": 60}
    further = {"project": (10_000, 60)}
    FILTERS = frozenset({"timeMin", "timeMax", "updatedMin", "orderBy", "q"})

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
        since, filtered = None, self.FILTERS & query.keys()
        if "syncToken" in query:
            if filtered:
                raise self.wrong("syncToken")
            calendar, syncs, since = self.unsealed(query, "syncToken", 3)
            if calendar != path[1]:
                raise self.wrong("syncToken")
            if syncs != self.syncs:
                return Answer(410, self.trouble(410))
        upto, hole, start = self.version, False, 0
        if "pageToken" in query:
            calendar, began, upto, hole, start = self.unsealed(query, "pageToken", 5)
            if (calendar, began) != (path[1], since):
                raise self.wrong("pageToken")
        # Between the first and the second page there is one without events, as the real one gives now and then.
        if hole:
            return self._page([], {"nextPageToken": seal([path[1], since, upto, False, start])})
        deleted = query.get("showDeleted") == "true"
        rows = self._filter(events(path[1], upto, since, deleted=deleted), query)
        page, after = self.cut(rows, query, start, [path[1], since, upto, start == 0])
        if after is not None:
            return self._page(page, {"nextPageToken": after})
        return self._page(page, {} if filtered else {"nextSyncToken": seal([path[1], self.syncs, upto])})

    @staticmethod
    def _page(items: list[Any], more: dict[str, str]) -> bytes:
        return encode({"kind": "calendar#events", "items": items, **more})

    def _filter(self, rows: list[dict[str, Any]], query: Mapping[str, str]) -> list[dict[str, Any]]:
        if name := {"orderBy", "q"} & query.keys():
            raise self.wrong(min(name))  # not spoken here
        bounds = {
            "timeMin": lambda row, at: _moment(row["end"]) > at,
            "timeMax": lambda row, at: _moment(row["start"]) < at,
            "updatedMin": lambda row, at: datetime.fromisoformat(row["updated"]) >= at,
        }
        for name in bounds.keys() & query.keys():
            try:
                at = datetime.fromisoformat(query[name])
            except ValueError:
                raise self.wrong(name) from None
            if at.tzinfo is None:
                raise self.wrong(name)
            rows = [row for row in rows if row["status"] == "cancelled" or bounds[name](row, at)]
        return rows


def _moment(at: Mapping[str, str]) -> datetime:
    text = at.get("dateTime") or f"{at['date']}T00:00:00+00:00"
    return datetime.fromisoformat(text)


class Gmail(Google):
    """6,000 units a minute for a user; a list and a message cost 5, the history 2, the profile 1."""

    name = "gmail"
    documented = {"amount": 6000, "window_s": 60}
    further = {"project": (1_200_000, 60)}

    def reset(self) -> None:
        super().reset()
        self.count, self.relabelled, self.oldest = MESSAGES, 0, FIRST_HISTORY
        self.log = [_added(number) for number in range(MESSAGES)]

    def control(self, name: str, value: Any) -> None:
        match name:
            case "add":
                self.log += [_added(number) for number in range(self.count, self.count + int(value))]
                self.count += int(value)
            case "relabel":  # the first so many messages
                self.log += [_relabelled(number) for number in range(int(value))]
                self.relabelled = max(self.relabelled, int(value))
            case "forget_history":
                self.oldest = FIRST_HISTORY + (len(self.log) if value else 0)
            case _:
                super().control(name, value)

    def weight(self, path: str) -> int:
        return 2 if path.endswith("/history") else 1 if path.endswith("/profile") else 5

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        path = re.fullmatch(r"gmail/v1/users/([^/]+)/(?:(profile|history)|messages(?:/(\w+))?)", request.path)
        if path is None or path[1] in bad:
            return Answer(404, self.trouble(404))
        mailbox, kind, wanted = path.groups()
        if subject := self.subject(request):
            if mailbox not in {"me", subject}:
                return Answer(403, self.error(403, "forbidden", "global"))
            mailbox = subject
        if wanted is not None:
            return self._message(mailbox, wanted)
        if kind == "profile":
            newest = str(FIRST_HISTORY + len(self.log))
            return encode({"emailAddress": mailbox, "messagesTotal": self.count, "historyId": newest})
        return self._history(request.query) if kind == "history" else self._list(request.query)

    def _message(self, mailbox: str, wanted: str) -> bytes | Answer:
        if not re.fullmatch("m[0-9a-f]{8}", wanted):
            raise self.wrong("id")
        number = int(wanted[1:], 16)
        if number >= self.count or number % VANISHED == VANISHED - 1:
            return Answer(404, self.trouble(404))
        return encode(message(mailbox, number, relabelled=number < self.relabelled))

    def _list(self, query: Mapping[str, str]) -> bytes:
        after = re.fullmatch(r"after:(\d+)", query.get("q", "after:0"))
        if after is None or "labelIds" in query:
            raise self.wrong("q" if after is None else "labelIds")  # more is not spoken here
        start, count = 0, self.count
        if "pageToken" in query:
            kind, count, start = self.unsealed(query, "pageToken", 3)
            if kind != "messages":
                raise self.wrong("pageToken")
        found = [each for n, each in enumerate(_ids(count)) if LISTED_AT_S + n * 7200 >= int(after[1])]
        page, token = self.cut(found[::-1], query, start, ["messages", count])
        said = {"messages": page} if page else {}
        return encode(said | {"resultSizeEstimate": count} | ({"nextPageToken": token} if token else {}))

    def _history(self, query: Mapping[str, str]) -> bytes | Answer:
        began = self.whole(query, "startHistoryId", 0)
        if began < self.oldest:
            return Answer(404, self.trouble(404))
        start, count = 0, len(self.log)
        if "pageToken" in query:
            kind, issued_for, count, start = self.unsealed(query, "pageToken", 4)
            if (kind, issued_for) != ("history", began):
                raise self.wrong("pageToken")
        entries = [
            {"id": str(FIRST_HISTORY + n + 1), **entry}
            for n, entry in enumerate(self.log[:count])
            if n >= began - FIRST_HISTORY
        ]
        page, after = self.cut(entries, query, start, ["history", began, count])
        said = ({"history": page} if page else {}) | {"historyId": str(FIRST_HISTORY + count)}
        return encode(said | ({"nextPageToken": after} if after else {}))


def _id(number: int) -> dict[str, str]:
    return {"id": f"m{number:08x}", "threadId": f"t{number // 3:08x}"}


def _ids(count: int) -> list[dict[str, str]]:
    return [_id(number) for number in range(count)]


def _added(number: int) -> dict[str, Any]:
    return {"messages": [_id(number)], "messagesAdded": [{"message": _id(number)}]}


def _relabelled(number: int) -> dict[str, Any]:
    labels = {"message": _id(number), "labelIds": ["STARRED"]}
    return {"messages": [_id(number)], "labelsAdded": [labels], "labelsRemoved": [labels]}
