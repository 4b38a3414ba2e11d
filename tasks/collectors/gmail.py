"""Gmail: messages with what their headers say. Symbols are mailboxes: "me", or addresses of a domain.

Documented (developers.google.com/workspace/gmail/api: usage limits, users.messages; read 2026-11): 6,000
units a minute for a user of a project made since May 2026, 1,200,000 for the project; a list or a message
costs 5. Over it 403 or 429 with a reason in the body. A list holds ids only, so each message is a call of its
own.
"""

from typing import Any

from resilience.errors import NotFoundError
from tasks.collectors import Api, Cursor, Fetched, GoogleUser, Limit, Rule, Unit, ms
from tasks.collectors.values import Checkpoint
from tasks.data import gmail_messages

AT_ONCE = 20  # messages between two checkpoints

gmail = Api(
    "gmail",
    "https://gmail.googleapis.com/gmail/v1",
    auth=GoogleUser("GOOGLE_USER_TOKEN"),
    limits=[Limit("6000/1m", per="account", reserve=0.3), Limit("1200000/1m", per="api", reserve=0.3)],
    rules=[
        Rule("rate_limited", status=(403, 429), body='"(userR|r)ateLimitExceeded"', retry_after="30s"),
        Rule("rate_limited", status=(403, 429), body='"(dailyLimit|quota)Exceeded"', retry_after="1h"),
    ],
)


def read(unit: Unit, checkpoint: Checkpoint, session: Any) -> Fetched:
    """List ids, 500 at a time, then get the messages; one that was deleted meanwhile is passed over."""
    path = f"/users/{unit.symbol}/messages"
    if "ids" not in checkpoint:
        asked = {"maxResults": "500", "pageToken": checkpoint.get("token")}
        asked["q"] = f"after:{int(unit.start.timestamp()) - 1}" if unit.start else None
        page = session.get(path, params=asked).json()
        ids = [each["id"] for each in page.get("messages", [])]
        checkpoint = {"ids": ids, "token": page.get("nextPageToken")}
    rows = []
    for one in checkpoint["ids"][:AT_ONCE]:
        try:
            rows.append(session.get(f"{path}/{one}", params={"format": "metadata"}).json())
        except NotFoundError:
            continue
    left, token = checkpoint["ids"][AT_ONCE:], checkpoint["token"]
    if left:
        return Fetched(rows, next={"ids": left, "token": token})
    return Fetched(rows, next={"token": token} if token else None)


@gmail.endpoint(
    fetch=read,
    symbols=["me"],
    symbol_pattern=r"[^\s/?#]{1,200}",
    cursor=Cursor("received_at", lag="1h"),
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
