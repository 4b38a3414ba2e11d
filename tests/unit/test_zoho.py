"""Zoho: accounts by REST, and what an MCP server's tool may answer."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from resilience.errors import BadPayloadError, RateLimitError, ServerError
from tasks.collectors import Answer, Unit
from tasks.collectors.zoho import by_mcp, zoho
from tasks.data import zoho_accounts
from tests.unit.bodies import BODIES

ACCOUNTS = zoho.endpoints["accounts"]
SINCE = datetime(2026, 1, 2, tzinfo=UTC)
BODY = BODIES["zoho.accounts"].value
FIELDS = "Account_Name,Owner,Industry,Phone,Website,Created_Time,Modified_Time"


def unit(start=None) -> Unit:
    return Unit(1, 1, "zoho", "accounts", "", start, None, None)


def read(body, status=200, start=None):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ACCOUNTS.read(unit(start), ACCOUNTS.first(unit(start)), Answer(status, {}, text, 0.1))


class Server:
    """A session, and the MCP server behind it."""

    base_url = "https://zoho_mcp_url"

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def post(self, url, json):
        assert url == self.base_url
        assert (json["jsonrpc"], json["method"], json["params"]["name"]) == (
            "2.0",
            "tools/call",
            "getRecords",
        )
        self.asked.append(json["params"]["arguments"])
        return self

    def json(self):
        return self.answer


def tool(text, *, failed=False):
    return Server({"id": 1, "result": {"content": [{"type": "text", "text": text}], "isError": failed}})


def test_a_request():
    """Names its fields, in an order in which nothing moves; the time with its offset."""
    request = ACCOUNTS.request(unit(SINCE), ACCOUNTS.first(unit(SINCE)))
    assert request.url == "https://www.zohoapis.com/crm/v8/Accounts"
    assert request.params == {"fields": FIELDS, "sort_by": "id", "sort_order": "asc", "per_page": "200"}
    assert request.headers["If-Modified-Since"] == "2026-01-02T00:00:00+00:00"


def test_an_account():
    """What it is named and by whom it is owned, times in UTC, all of it beside them."""
    page = read(BODY)
    (row,) = page.rows
    assert page.next is None
    assert row.keys() == {column.name for column in zoho_accounts.columns}
    assert row["id"] == "4150868000000001001"
    assert row["owner"] == "4150868000000225013"
    assert row["created_at"] == datetime(2026, 1, 1, tzinfo=UTC)
    assert row["data"] == BODY["data"][0]


@pytest.mark.parametrize("status", [204, 304])
def test_nothing(status):
    """There is none, or none was modified."""
    page = read(b"", status, SINCE)
    assert (page.rows, page.next) == ([], None)


def test_the_next_page():
    """By its token."""
    page = read(BODY | {"info": {"more_records": True, "next_page_token": "t1"}})
    assert ACCOUNTS.request(unit(SINCE), page.next).params["page_token"] == "t1"


def test_too_many_requests():
    """Nothing says how long to wait: a minute."""
    with pytest.raises(RateLimitError) as caught:
        read({"code": "TOO_MANY_REQUESTS", "details": {}, "status": "error"}, 429)
    assert caught.value.retry_after_s == 60


def test_a_tool_that_answers():
    """Rows as REST gives them, the newest first, and where to go on."""
    server = tool(json.dumps(BODY | {"info": {"next_page_token": "t1"}}))
    fetched = by_mcp(unit(), {}, server)
    assert (list(fetched.rows), fetched.next) == (BODY["data"], {"page_token": "t1"})
    by_mcp(unit(), {"page_token": "t1"}, server)
    first, second = server.asked
    assert (first["fields"], first["sort_by"], first["sort_order"]) == (FIELDS, "Modified_Time", "desc")
    assert second == first | {"page_token": "t1"}


@pytest.mark.parametrize(("earlier_s", "more"), [(1, False), (0, True), (-1, True)])
def test_no_further_back_than_asked(earlier_s, more):
    """A page whose last row was modified before what a unit asks for is the last page."""
    (row,) = BODY["data"]
    at = (SINCE - timedelta(seconds=earlier_s)).isoformat()
    server = tool(json.dumps({"data": [row | {"Modified_Time": at}], "info": {"next_page_token": "t1"}}))
    assert (by_mcp(unit(SINCE), {}, server).next is not None) == more


@pytest.mark.parametrize(
    "server",
    [Server({"id": 1, "error": {"code": -32602, "message": "Invalid params"}}), tool("no", failed=True)],
)
def test_a_tool_that_fails(server):
    """It is the server's failure, so that the next tier is tried."""
    with pytest.raises(ServerError):
        by_mcp(unit(), {}, server)


@pytest.mark.parametrize(
    "server",
    [
        Server(None),
        Server([]),
        Server({"id": 1}),
        Server({"result": None}),
        Server({"result": {"content": []}}),
        Server({"result": {"content": [{"type": "image"}]}}),
        tool("<html>"),
        tool("[]"),
        tool('{"data": []}'),
        tool('{"data": [{}], "info": {"next_page_token": null}}'),
        tool('{"data": [{"Modified_Time": 7}], "info": {"next_page_token": null}}'),
    ],
)
def test_a_tool_that_answers_something_else(server):
    """Likewise, whatever it is."""
    with pytest.raises(BadPayloadError):
        by_mcp(unit(SINCE), {}, server)
