"""Gmail: ids first, then a call for each message, and checkpoints in between."""

from datetime import UTC, datetime

import pytest

from resilience.errors import NotFoundError
from tasks.collectors import Fetched, Unit
from tasks.collectors.gmail import AT_ONCE, gmail, read
from tasks.data import gmail_messages

MESSAGES = gmail.endpoints["messages"]
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def unit(start=None) -> Unit:
    return Unit(1, 1, "gmail", "messages", "me", start, None, None)


def message(one="m1", **changed) -> dict:
    headers = [{"name": "From", "value": "Ada <ada@example.com>"}, {"name": "SUBJECT", "value": "Tea"}]
    return {
        "id": one,
        "threadId": "t1",
        "labelIds": ["INBOX"],
        "snippet": "Tea?",
        "internalDate": "1767225600000",
        "sizeEstimate": 1234,
        "payload": {"headers": headers},
    } | changed


class Mailbox:
    """What a session is to `read`; it counts what it is asked."""

    def __init__(self, count, gone=()):
        self.ids, self.gone, self.asked = [f"m{n}" for n in range(count)], gone, []

    def get(self, path, params):
        self.asked.append((path, params))
        _, _, one = path.rpartition("/")
        if one in self.gone:
            raise NotFoundError("gmail answered 404", status=404)
        if one != "messages":
            return Said(message(one))
        start = int(params["pageToken"] or 0)
        page = {"messages": [{"id": each} for each in self.ids[start : start + 500]]} if self.ids else {}
        return Said(page | ({"nextPageToken": str(start + 500)} if start + 500 < len(self.ids) else {}))


class Said:
    def __init__(self, body):
        self.body = body

    def json(self):
        return self.body


def everything(mailbox, start=None):
    found, checkpoint, pages = [], {}, 0
    while checkpoint is not None:
        fetched = read(unit(start), checkpoint, mailbox)
        found += fetched.rows
        checkpoint, pages = fetched.next, pages + 1
    return found, pages


def test_every_message_once():
    """Over both pages of ids, some of them gone; a checkpoint after every few."""
    mailbox = Mailbox(730, gone={"m5", "m499", "m729"})
    found, pages = everything(mailbox)
    assert [row["id"] for row in found] == [each for each in mailbox.ids if each not in mailbox.gone]
    assert pages == -(-500 // AT_ONCE) + -(-230 // AT_ONCE)
    assert sum(path.endswith("/messages") for path, _ in mailbox.asked) == 2


def test_an_empty_mailbox():
    """Its list has no ids at all."""
    assert read(unit(), {}, Mailbox(0)) == Fetched([])


@pytest.mark.parametrize(("start", "asked"), [(None, None), (T0, "after:1767225599")])
def test_since_when(start, asked):
    """Whole seconds, one of them too many: the store knows what it has."""
    mailbox = Mailbox(1)
    everything(mailbox, start)
    assert mailbox.asked[0][1]["q"] == asked


def test_a_message_becomes_a_row():
    """Headers by name in any case; the original beside it."""
    row = MESSAGES.parse(message(), unit())
    assert row.keys() == {column.name for column in gmail_messages.columns}
    assert (row["sender"], row["subject"], row["received_at"]) == ("Ada <ada@example.com>", "Tea", T0)
    assert row["data"] == message()


def test_a_message_without_headers():
    """Drafts have none."""
    row = MESSAGES.parse(message(payload={}, labelIds=[]), unit())
    assert (row["sender"], row["subject"], row["labels"]) == (None, None, [])
