"""Gmail: a list of ids, a call for each message, and the history of a mailbox."""

import json
from datetime import UTC, datetime

import pytest

from tasks.collectors import Answer, Unit
from tasks.collectors.gmail import changed, gmail
from tasks.data import gmail_messages

MESSAGES = gmail.endpoints["messages"]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
USER = "https://gmail.googleapis.com/gmail/v1/users/me"


def unit(cursor=None) -> Unit:
    return Unit(1, 1, "gmail", "messages", "me", None, None, cursor)


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


def everything(server, cursor=None):
    """The rows of a unit, whom `server` answers by path and parameters; and the token that it ends with."""
    of, rows, token = unit(cursor), [], None
    checkpoint = MESSAGES.first(of)
    while checkpoint is not None:
        request = MESSAGES.request(of, checkpoint)
        status, body = server(request.url.removeprefix(USER), request.params)
        page = MESSAGES.read(of, checkpoint, Answer(status, {}, json.dumps(body).encode(), 0.1))
        rows += page.rows
        checkpoint, token = page.next, page.token
    return [row["id"] for row in rows], token


def test_a_whole_mailbox():
    """From the profile, whose history is that of the time before, over two pages; one message is gone."""
    asked = []

    def server(path, params):
        asked.append(path)
        if path == "/profile":
            return 200, {"historyId": "77"}
        if path == "/messages":
            last = "pageToken" in params
            return 200, {"messages": [{"id": "m3"}]} if last else {
                "messages": [{"id": "m1"}, {"id": "m2"}],
                "nextPageToken": "p2",
            }
        assert params == {"format": "metadata"}
        one = path.rpartition("/")[2]
        return (404, {}) if one == "m2" else (200, message(one))

    assert everything(server) == (["m1", "m3"], "77")
    assert asked == ["/profile", "/messages", "/messages/m1", "/messages/m2", "/messages", "/messages/m3"]


def test_an_empty_mailbox():
    """Its list has no ids at all."""
    answers = {"/profile": {"historyId": "77"}, "/messages": {"resultSizeEstimate": 0}}
    assert everything(lambda path, _: (200, answers[path])) == ([], "77")


def test_the_history():
    """What came and whose labels changed is asked for, once; what was deleted is not."""
    history = [
        {"id": "78", "messagesAdded": [{"message": {"id": "m4"}}]},
        {"id": "79", "labelsAdded": [{"message": {"id": "m4"}}, {"message": {"id": "m1"}}]},
        {"id": "80", "messagesDeleted": [{"message": {"id": "m3"}}]},
        {"id": "81", "labelsRemoved": [{"message": {"id": "m2"}}]},
    ]

    def server(path, params):
        if path == "/history":
            assert params["startHistoryId"] == "77"
            return 200, {"history": history, "historyId": "81"}
        return 200, message(path.rpartition("/")[2])

    assert everything(server, "77") == (["m4", "m1", "m2"], "81")


def test_a_history_that_is_forgotten():
    """The whole mailbox again."""
    answers = {"/profile": {"historyId": "99"}, "/messages": {"messages": [{"id": "m1"}]}}

    def server(path, _):
        return (404, {}) if path == "/history" else (200, answers.get(path) or message())

    assert everything(server, "77") == (["m1"], "99")


@pytest.mark.parametrize("body", [{}, {"history": []}, {"history": [{"id": "1"}]}])
def test_no_change(body):
    """The history may be left out, and an entry may hold nothing that we read."""
    assert changed(body) == []


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
