"""Xero: pages by number, dates in Microsoft's notation, and what was modified since."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from resilience.errors import BadPayloadError, RateLimitError, ServerError
from tasks.collectors import Answer, Unit
from tasks.collectors.xero import moment, xero
from tasks.data import xero_contacts, xero_invoices

INVOICES, CONTACTS = xero.endpoints["invoices"], xero.endpoints["contacts"]
TENANT = "04e93d48-e72f-4775-b7dd-15a041fab972"
BODIES = Path(__file__).parents[3] / "shared/bodies/xero"


def unit(endpoint="invoices", start=None) -> Unit:
    return Unit(1, 1, "xero", endpoint, TENANT, start, None, None)


def read(endpoint, body, status=200, checkpoint=None, **headers):
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    answer = Answer(status, given, body if isinstance(body, bytes) else json.dumps(body).encode(), 0.1)
    return endpoint.read(unit(endpoint.name), checkpoint or endpoint.first(unit(endpoint.name)), answer)


def example(name):
    path = BODIES / name
    if not path.exists():
        pytest.skip(f"no example bodies in {path.parent}")
    return json.loads(path.read_text())["body"]


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("/Date(1539993600000+0000)/", datetime(2018, 10, 20, tzinfo=UTC)),
        ("/Date(1539993600000+1300)/", datetime(2018, 10, 20, tzinfo=UTC)),
        ("/Date(1552326816230)/", datetime(2019, 3, 11, 17, 53, 36, 230000, tzinfo=UTC)),
        ("/Date(-86400000+0000)/", datetime(1969, 12, 31, tzinfo=UTC)),
    ],
)
def test_dates_in_their_notation(text, at):
    """Milliseconds, whatever the offset says."""
    assert moment(text) == at


@pytest.mark.parametrize("text", ["2018-10-20", "/Date()/", "/Date(1e9)/", "/Date(12345678901234567)/", ""])
def test_no_dates(text):
    """Nothing is guessed."""
    with pytest.raises(ValueError, match="is no time"):
        moment(text)


def test_a_request_names_its_tenant():
    """In a header; sorted by id, a thousand to a page."""
    request = INVOICES.request(unit(), INVOICES.first(unit()))
    assert request.url == "https://api.xero.com/api.xro/2.0/Invoices"
    assert request.params == {"order": "InvoiceID", "page": "1", "pageSize": "1000"}
    assert request.headers["xero-tenant-id"] == TENANT
    assert "If-Modified-Since" not in request.headers


def test_a_later_run_asks_for_what_was_modified():
    """In UTC and without a zone, on every page."""
    start = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)
    for page in (1, 2):
        request = INVOICES.request(unit(start=start), {"page": page})
        assert request.headers["If-Modified-Since"] == "2026-01-01T12:30:00"


def test_invoices_as_described():
    """The example of the API's own description."""
    body = example("invoices.json")
    page = read(INVOICES, body)
    assert page.next is None
    assert [row["id"] for row in page.rows] == [each["InvoiceID"] for each in body["Invoices"]]
    row = page.rows[0]
    assert row.keys() == {column.name for column in xero_invoices.columns}
    assert row | {"data": None} == {
        "tenant": TENANT,
        "id": "d4956132-ed94-4dd7-9eaa-aa22dfdf06f2",
        "number": "INV-0001",
        "type": "ACCREC",
        "status": "VOIDED",
        "contact": "a3675fc4-f8dd-4f03-ba5b-f1870566bcd7",
        "invoiced_on": date(2018, 10, 20),
        "due_on": date(2018, 12, 30),
        "currency": "NZD",
        "total": Decimal("40.0"),
        "amount_due": Decimal("0.0"),
        "updated_at": datetime(2018, 11, 2, 16, 31, 30, 160000, tzinfo=UTC),
        "data": None,
    }
    assert page.cursor == max(row["updated_at"] for row in page.rows).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def test_contacts_as_described():
    """The example of the API's own description."""
    body = example("contacts.json")
    rows = read(CONTACTS, body).rows
    assert rows[0].keys() == {column.name for column in xero_contacts.columns}
    assert (rows[0]["name"], rows[0]["email"]) == ("Katherine Warren", "kat.warren@clampett.com")
    assert (rows[0]["is_customer"], rows[0]["is_supplier"]) == (True, True)
    assert rows[0]["data"] == body["Contacts"][0]


def test_pages_go_on_as_far_as_the_body_says():
    """Its page count, and no guess from the number of rows."""
    pages = {"page": 1, "pageSize": 1000, "pageCount": 3, "itemCount": 2001}
    assert read(INVOICES, {"pagination": pages, "Invoices": []}).next["page"] == 2
    assert read(INVOICES, {"pagination": pages, "Invoices": []}, checkpoint={"page": 3}).next is None


def test_a_limit_says_how_long():
    """Whichever of the three it was."""
    with pytest.raises(RateLimitError) as caught:
        read(INVOICES, b"", 429, Retry_After="17", X_Rate_Limit_Problem="minute")
    assert caught.value.retry_after_s == 17


def test_an_organisation_that_is_offline():
    """Is no mistake of ours, and wants a minute."""
    with pytest.raises(ServerError) as caught:
        read(INVOICES, {"Type": "OrganisationOfflineException"}, 503)
    assert caught.value.retry_after_s == 60


def test_a_body_without_invoices():
    """XML, which comes where JSON was not asked for, is not read as no invoices."""
    for body in (b"<Response/>", b"{}", b'{"Invoices": null}'):
        with pytest.raises(BadPayloadError):
            read(INVOICES, body)
