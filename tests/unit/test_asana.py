"""Asana tasks: paging by token, modified_since, and rows that say little or too much."""

import json
from datetime import UTC, date, datetime
from pathlib import Path

import pytest

from resilience.errors import (
    APIError,
    BadPayloadError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    RateLimitError,
    ServerError,
    ValidationError,
)
from tasks.collectors import Answer, Unit
from tasks.collectors.asana import asana
from tasks.data import asana_projects, asana_tasks

TASKS, PROJECTS = asana.endpoints["tasks"], asana.endpoints["projects"]
T0 = datetime(2026, 1, 1, tzinfo=UTC)
BODIES = Path(__file__).parents[3] / "shared/bodies/asana"


def unit(start=None, cursor=None) -> Unit:
    return Unit(1, 1, "asana", "tasks", "1200", start, None, cursor)


def task(**changed) -> dict:
    row = {
        "gid": "12",
        "name": "Feed the cat",
        "completed": False,
        "assignee": {"gid": "7", "resource_type": "user"},
        "created_at": "2026-01-01T00:00:00.000Z",
        "modified_at": "2026-01-02T03:04:05.678Z",
        "due_on": "2026-02-01",
        "notes": "",
        "permalink_url": "https://app.asana.com/0/1200/12",
    }
    return row | changed


def page_of(*tasks, offset=None) -> dict:
    after = (
        {"offset": offset, "path": "/tasks", "uri": "https://app.asana.com/api/1.0/tasks"} if offset else None
    )
    return {"data": list(tasks), "next_page": after}


def read(body, status=200, asked=None, checkpoint=None, **headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    return TASKS.read(asked or unit(), checkpoint or {}, Answer(status, given, data, 0.1))


def test_the_first_request():
    """Everything of the project; fields beyond the name are asked for, the size is said."""
    request = TASKS.request(unit(), TASKS.first(unit()))
    assert request.url == "https://app.asana.com/api/1.0/tasks"
    assert request.params.keys() == {"project", "opt_fields", "limit"}
    assert (request.params["project"], request.params["limit"]) == ("1200", "100")
    assert {"modified_at", "completed", "assignee"} <= set(request.params["opt_fields"].split(","))


def test_a_later_run_asks_for_what_was_modified():
    """Since the cursor, less its lag, on every page."""
    start, end = TASKS.window("1200", "2026-01-01T00:02:00.000000Z", datetime(2026, 1, 2, tzinfo=UTC))
    assert (start, end) == (T0, None)
    for checkpoint in ({}, {"token": "abc"}):
        sent = TASKS.request(unit(start), checkpoint).params
        assert sent["modified_since"] == "2026-01-01T00:00:00Z"
    assert sent["offset"] == "abc"


def test_a_task_becomes_a_row():
    """Ours beside the original."""
    page = read(page_of(task(), offset="abc"))
    assert page.rows == [
        {
            "gid": "12",
            "project": "1200",
            "name": "Feed the cat",
            "completed": False,
            "assignee": "7",
            "created_at": T0,
            "modified_at": datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC),
            "due_on": date(2026, 2, 1),
            "data": task(),
        }
    ]
    assert (page.next, page.cursor) == ({"token": "abc"}, "2026-01-02T03:04:05.678000Z")
    assert page.rows[0].keys() == {column.name for column in asana_tasks.columns}


def test_nobody_and_never():
    """Assignee and due date may be null."""
    row = read(page_of(task(assignee=None, due_on=None))).rows[0]
    assert (row["assignee"], row["due_on"]) == (None, None)


def test_a_task_with_every_field():
    """The example of the API's own description."""
    path = BODIES / "task_full.json"
    if not path.exists():
        pytest.skip(f"no example bodies in {path.parent}")
    original = json.loads(path.read_text())["body"]["data"]
    row = read(page_of(original)).rows[0]
    assert (row["gid"], row["name"], row["due_on"]) == ("12345", "Buy catnip", date(2019, 9, 15))
    assert row["modified_at"] == datetime(2012, 2, 22, 2, 6, 58, 147000, tzinfo=UTC)
    assert row["data"] == original


def test_a_page_as_described():
    """The token is found; rows without the fields we asked for are refused by name."""
    path = BODIES / "tasks_list.json"
    if not path.exists():
        pytest.skip(f"no example bodies in {path.parent}")
    body = json.loads(path.read_text())["body"]
    with pytest.raises(BadPayloadError, match="KeyError: 'completed'"):
        read(body)
    assert read(body | {"data": []}).next == {"token": body["next_page"]["offset"]}


def test_an_empty_page_with_a_token_goes_on():
    """Only null ends it."""
    assert read(page_of(offset="abc")).next == {"token": "abc"}
    assert read(page_of()).next is None


def test_the_same_token_again_is_refused():
    """No page twice for ever."""
    with pytest.raises(BadPayloadError, match="just read"):
        read(page_of(task(), offset="abc"), checkpoint={"token": "abc"})


def test_an_expired_token_begins_again():
    """A unit that waited too long at its checkpoint; once, then it is an error."""
    expired = {"errors": [{"message": "offset: Your pagination token has expired."}]}
    again = read(expired, 400, checkpoint={"token": "old"}).next
    assert "offset" not in TASKS.request(unit(), again).params
    with pytest.raises(ValidationError, match="expired"):
        read(expired, 400, checkpoint=again)


BROKEN = {
    "truncated": json.dumps(page_of(task())).encode()[:-5],
    "html": b"<html></html>",
    "null": b"null",
    "a list": b"[]",
    "no data": b'{"next_page": null}',
    "data of null": {"data": None},
    "data of one": {"data": task()},
    "a row of null": page_of(None),
    "a row of text": page_of("12"),
    "no gid": page_of({k: v for k, v in task().items() if k != "gid"}),
    "a gid of null": page_of(task(gid=None)),
    "a gid of number": page_of(task(gid=12)),
    "a name of null": page_of(task(name=None)),
    "completed of text": page_of(task(completed="no")),
    "completed of number": page_of(task(completed=0)),
    "an assignee of text": page_of(task(assignee="7")),
    "modified never": page_of(task(modified_at=None)),
    "modified without a zone": page_of(task(modified_at="2026-01-02T03:04:05")),
    "modified as number": page_of(task(modified_at=1767225600)),
    "due as time": page_of(task(due_on="2026-02-01T00:00:00Z")),
    "next_page of text": {"data": [], "next_page": "abc"},
    "next_page of list": {"data": [], "next_page": ["abc"]},
    "offset of true": {"data": [], "next_page": {"offset": True}},
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_body(body):
    """A BadPayloadError that shows its beginning."""
    with pytest.raises(BadPayloadError, match=r"asana\.tasks") as caught:
        read(body)
    text = body.decode() if isinstance(body, bytes) else json.dumps(body)
    assert text[:200] in str(caught.value)


@pytest.mark.parametrize(
    ("status", "message", "kind"),
    [
        (400, "project: Not a recognized ID", ValidationError),
        (401, "Not Authorized", InvalidCredentialsError),
        (403, "Forbidden", InvalidCredentialsError),
        (404, "project: Unknown object: 1200", NotFoundError),
        (402, "premium_only", APIError),
        (451, "blocked", APIError),
        (500, "Server Error", ServerError),
    ],
)
def test_documented_errors(status, message, kind):
    """As the status says."""
    assert (
        type(asana.error_of(Answer(status, {}, json.dumps({"errors": [{"message": message}]}).encode(), 0.1)))
        is kind
    )


def test_too_many_requests():
    """Retry-After is always there."""
    with pytest.raises(RateLimitError) as caught:
        read({"errors": [{"message": "You have made too many requests recently."}]}, 429, Retry_After="30")
    assert caught.value.retry_after_s == 30.0


def test_projects_are_named_by_the_installation():
    """Or by the workspaces, of which we know none; a gid has digits only."""
    with pytest.raises(ConfigurationError, match=r"asana\.projects has no symbols yet"):
        PROJECTS.check_symbols()
    assert (TASKS.symbols_from, TASKS.has_symbols, TASKS.check_symbols()) == ("asana.projects", False, ())
    assert TASKS.check_symbols(["1200"]) == ("1200",)
    with pytest.raises(ConfigurationError, match="'my-project' is no symbol"):
        TASKS.check_symbols(["my-project"])


def test_projects_of_a_workspace():
    """All of them, at every run: Asana cannot be asked for those that changed."""
    asked = Unit(1, 1, "asana", "projects", "9", None, None, None)
    request = PROJECTS.request(asked, {})
    assert request.url == "https://app.asana.com/api/1.0/projects"
    assert (request.params["workspace"], request.params["limit"]) == ("9", "100")
    path = BODIES / "project_full.json"
    if not path.exists():
        pytest.skip(f"no example bodies in {path.parent}")
    original = json.loads(path.read_text())["body"]["data"]
    page = PROJECTS.read(asked, {}, Answer(200, {}, json.dumps(page_of(original)).encode(), 0.1))
    assert page.rows == [
        {
            "gid": "12345",
            "workspace": "9",
            "name": "Stuff to buy",
            "archived": False,
            "owner": "12345",
            "created_at": datetime(2012, 2, 22, 2, 6, 58, 147000, tzinfo=UTC),
            "modified_at": datetime(2012, 2, 22, 2, 6, 58, 147000, tzinfo=UTC),
            "due_on": date(2019, 9, 15),
            "data": original,
        }
    ]
    assert page.rows[0].keys() == {column.name for column in asana_projects.columns}
