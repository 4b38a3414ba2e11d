"""Gmail: messages with what their headers say. Symbols are mailboxes: "me", or addresses of a domain.

Documented (developers.google.com/workspace/gmail/api: usage limits, users.messages, users.history; read
2026-11): 6,000 units a minute for a user of a project made since May 2026, 1,200,000 for the project; a list
or a message costs 5, a page of the history 2. Over it 403 or 429 with a reason in the body. A list holds ids
only, so each message is a call of its own. The history has what came and whose labels changed; where it no
longer goes back that far, it is a 404.
"""

from typing import Any

from tasks.collectors import Api, Detail, GoogleUser, Limit, Rule, Sync, Token, Unit, ms
from tasks.collectors.rules import GOOGLE_QUOTAS
from tasks.data import gmail_messages

gmail = Api(
    "gmail",
    "https://gmail.googleapis.com/gmail/v1",
    auth=GoogleUser("GOOGLE_USER_TOKEN"),
    limits=[Limit("6000/1m", per="account", reserve=0.3), Limit("1200000/1m", per="api", reserve=0.3)],
    rules=[
        *GOOGLE_QUOTAS,
        Rule("resync", status=404),
    ],
)

NEWEST = ("/users/{symbol}/profile", "historyId")


def listed(body: Any) -> list[Any]:
    """The messages of a page; an empty mailbox has no list."""
    return list(body.get("messages", []))


def changed(body: Any) -> list[Any]:
    """The messages that came or whose labels changed; one that was deleted cannot be had."""
    kinds = ("messagesAdded", "labelsAdded", "labelsRemoved")
    history = body.get("history", [])
    return [each["message"] for entry in history for kind in kinds for each in entry.get(kind, [])]


@gmail.endpoint(
    "/users/{symbol}/messages",
    symbols=["me"],
    symbol_pattern=r"[^\s/?#]{1,200}",
    page=Token(param="pageToken", at="nextPageToken", size_param="maxResults", size=500),
    rows=listed,
    detail=Detail("/users/{symbol}/messages/{id}", params={"format": "metadata"}),
    sync=Sync(
        param="startHistoryId", at="historyId", start=NEWEST, path="/users/{symbol}/history", rows=changed
    ),
    table=gmail_messages,
    key=("mailbox", "id"),
    weight=5,
    every="5m",
)
def messages(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a message into ours, and keep the original beside it."""
    headers = {each["name"].lower(): each["value"] for each in row["payload"].get("headers", [])}
    return {
        "mailbox": unit.symbol,
        "id": row["id"],
        "thread": row["threadId"],
        "received_at": ms(int(row["internalDate"])),
        "sender": headers.get("from"),
        "subject": headers.get("subject"),
        "snippet": row["snippet"],
        "labels": row.get("labelIds", []),
        "size": row["sizeEstimate"],
        "data": row,
    }
