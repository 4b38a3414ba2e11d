"""Xero: invoices and contacts, as far as they were modified. Symbols are the ids of tenants.

Documented (developer.xero.com/documentation: OAuth 2.0 limits, invoices, contacts; read 2026-11): for a
tenant 60 requests per minute, 5,000 per day and 5 at once, for the app 10,000 per minute; 429 carries
Retry-After, and every answer says what is left. A refresh token serves once. `If-Modified-Since` is in UTC
and without a zone. Sorted by id, what is modified while pages are read keeps its place; sorted by time it
would push others out of sight.
"""

import re
from datetime import datetime
from typing import Any

from resilience.headers import XERO_APP_MINUTE, XERO_DAY, XERO_MINUTE
from tasks.collectors import Api, Cursor, Limit, Number, OAuth2, Rule, Unit, ms, number
from tasks.data import xero_contacts, xero_invoices

xero = Api(
    "xero",
    "https://api.xero.com/api.xro/2.0",
    auth=OAuth2(
        "https://identity.xero.com/connect/token",
        client_id="XERO_CLIENT_ID",
        client_secret="XERO_CLIENT_SECRET",
        refresh_token="XERO_REFRESH_TOKEN",
    ),
    limits=[
        Limit("60/1m", per="symbol", headers=XERO_MINUTE, reserve=0.3),
        Limit("5000/1d", per="symbol", headers=XERO_DAY),
        Limit("5 at once", per="symbol"),
        Limit("10000/1m", per="api", headers=XERO_APP_MINUTE),
    ],
    rules=[Rule("server_error", status=503, retry_after="1m")],
)


def moment(text: Any) -> datetime:
    """The time that `/Date(1539993600000+0000)/` says; the offset is how it is shown, not what it is."""
    found = re.fullmatch(r"/Date\((-?\d{1,16})(?:[+-]\d{4})?\)/", text)
    if found is None:
        raise ValueError(f"{text!r} is no time")
    return ms(int(found[1]))


@xero.endpoint(
    "/Invoices",
    symbols=[],
    symbol_pattern=r"[0-9a-f-]{36}",
    params={"order": "InvoiceID"},
    headers={"xero-tenant-id": "{symbol}"},
    page=Number(param="page", size=1000, size_param="pageSize", pages="pagination.pageCount"),
    rows="Invoices",
    cursor=Cursor("updated_at", lag="10m", header="If-Modified-Since", unit="naive"),
    table=xero_invoices,
    key=("tenant", "id"),
    every="5m",
)
def invoices(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn an invoice or a bill as Xero gives it into ours, and keep the original beside it."""
    return {
        "tenant": unit.symbol,
        "id": row["InvoiceID"],
        "number": row.get("InvoiceNumber"),
        "type": row["Type"],
        "status": row["Status"],
        "contact": row["Contact"]["ContactID"],
        "invoiced_on": moment(row["Date"]).date() if "Date" in row else None,
        "due_on": moment(row["DueDate"]).date() if "DueDate" in row else None,
        "currency": row["CurrencyCode"],
        "total": number(row["Total"]),
        "amount_due": number(row["AmountDue"]),
        "updated_at": moment(row["UpdatedDateUTC"]),
        "data": row,
    }


@xero.endpoint(
    "/Contacts",
    symbols=[],
    symbol_pattern=r"[0-9a-f-]{36}",
    params={"order": "ContactID", "includeArchived": "true"},
    headers={"xero-tenant-id": "{symbol}"},
    page=Number(param="page", size=1000, size_param="pageSize", pages="pagination.pageCount"),
    rows="Contacts",
    cursor=Cursor("updated_at", lag="10m", header="If-Modified-Since", unit="naive"),
    table=xero_contacts,
    key=("tenant", "id"),
    every="15m",
)
def contacts(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a contact as Xero gives it into ours, and keep the original beside it."""
    return {
        "tenant": unit.symbol,
        "id": row["ContactID"],
        "name": row["Name"],
        "status": row["ContactStatus"],
        "email": row.get("EmailAddress"),
        "is_customer": row["IsCustomer"],
        "is_supplier": row["IsSupplier"],
        "updated_at": moment(row["UpdatedDateUTC"]),
        "data": row,
    }
