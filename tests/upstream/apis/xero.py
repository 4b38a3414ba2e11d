"""Xero: invoices and contacts of tenants, refresh tokens that serve once, and three limits at a time."""

import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any

from tests.upstream.apis.base import Answer, Charge, RejectedError, Request, encode, retry_after
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix, seed

TENANTS = [str(uuid.UUID(int=mix(90, n) << 64 | mix(91, n))) for n in range(3)]
COUNTS = {"Invoices": 2345, "Contacts": 310}
IDS = {"Invoices": "InvoiceID", "Contacts": "ContactID"}


def _date(seconds: int, *, offset: bool = True) -> str:
    return f"/Date({seconds * 1000}{'+0000' if offset else ''})/"


def _id(tenant: str, kind: str, number: int) -> str:
    bits = seed(f"{tenant}{kind}")
    return str(uuid.UUID(int=mix(bits, number) << 64 | mix(bits + 1, number)))


def invoice(tenant: str, number: int, touched_at: int | None = None) -> dict[str, Any]:
    bits = mix(seed(tenant), number)
    at = LISTED_AT_S + bits % 40_000_000
    return {
        "InvoiceID": _id(tenant, "Invoices", number),
        "Type": "ACCREC" if bits % 2 else "ACCPAY",
        "InvoiceNumber": f"INV-{number:04d}",
        "Contact": {
            "ContactID": _id(tenant, "Contacts", bits % COUNTS["Contacts"]),
            "Name": f"Contact {bits % 310}",
        },
        "Status": ("DRAFT", "AUTHORISED", "PAID", "VOIDED")[bits % 4] if touched_at is None else "PAID",
        "DateString": datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT00:00:00"),
        "Date": _date(at - at % 86_400),
        "DueDate": _date(at - at % 86_400 + 30 * 86_400),
        "SubTotal": bits % 10**7 / 100,
        "TotalTax": 0.0,
        "Total": bits % 10**7 / 100,
        "AmountDue": bits % 10**6 / 100,
        "CurrencyCode": ("NZD", "AUD", "EUR")[bits % 3],
        "LineItems": [{"LineItemID": _id(tenant, "Lines", number), "LineAmount": bits % 10**7 / 100}],
        "UpdatedDateUTC": _date(at if touched_at is None else touched_at, offset=bits % 2 == 0),
    }


def contact(tenant: str, number: int, touched_at: int | None = None) -> dict[str, Any]:
    bits = mix(seed(tenant) ^ 1, number)
    return {
        "ContactID": _id(tenant, "Contacts", number),
        "ContactStatus": "ARCHIVED" if bits % 11 == 0 else "ACTIVE",
        "Name": f"Contact {number} “Ünïcode”",
        "EmailAddress": "" if bits % 5 == 0 else f"contact{number}@example.com",
        "IsSupplier": bits % 2 == 0,
        "IsCustomer": bits % 3 == 0,
        "UpdatedDateUTC": _date(LISTED_AT_S + bits % 40_000_000 if touched_at is None else touched_at),
        "Addresses": [{"AddressType": "STREET", "City": f"Town {bits % 40}"}],
    }


ROWS = {"Invoices": invoice, "Contacts": contact}


def rows(kind: str, tenant: str, touched: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """Every invoice or contact of a tenant, by id; `touched` says which were modified or added, and when."""
    changed = {number: ROWS[kind](tenant, number, at) for number, at in (touched or {}).items()}
    found = dict(enumerate(_untouched(kind, tenant))) | changed
    return sorted(found.values(), key=lambda row: row[IDS[kind]])


def expected_invoices(tenant: str) -> list[dict[str, Any]]:
    """What has to be stored of a tenant's invoices, in the order of the ids."""
    return [
        {
            "tenant": tenant,
            "id": row["InvoiceID"],
            "number": row["InvoiceNumber"],
            "type": row["Type"],
            "status": row["Status"],
            "contact": row["Contact"]["ContactID"],
            "invoiced_on": date.fromisoformat(row["DateString"][:10]),
            "due_on": datetime.fromtimestamp(int(row["DueDate"][6:-7]) / 1000, UTC).date(),
            "currency": row["CurrencyCode"],
            # As JSON carries them.
            "total": Decimal(json.dumps(row["Total"])),
            "amount_due": Decimal(json.dumps(row["AmountDue"])),
            "updated_at": datetime.fromtimestamp(updated_s(row), UTC),
            "data": row,
        }
        for row in rows("Invoices", tenant)
    ]


def expected_contacts(tenant: str) -> list[dict[str, Any]]:
    """What has to be stored of a tenant's contacts, in the order of the ids."""
    return [
        {
            "tenant": tenant,
            "id": row["ContactID"],
            "name": row["Name"],
            "status": row["ContactStatus"],
            "email": row["EmailAddress"],
            "is_customer": row["IsCustomer"],
            "is_supplier": row["IsSupplier"],
            "updated_at": datetime.fromtimestamp(updated_s(row), UTC),
            "data": row,
        }
        for row in rows("Contacts", tenant)
    ]


@lru_cache(maxsize=8)
def _untouched(kind: str, tenant: str) -> list[dict[str, Any]]:
    return [ROWS[kind](tenant, number) for number in range(COUNTS[kind])]


def updated_s(row: Mapping[str, Any]) -> int:
    return int(row["UpdatedDateUTC"].strip("/Date()").partition("+")[0]) // 1000


class Xero(TokenApi):
    """60 a minute, 5,000 a day and 5 at once for a tenant, 10,000 a minute for the app.

    Archived contacts come only to who asks for them, and the lines of invoices only in pages.
    """

    name = "xero"
    token_path = "connect/token"
    unit = "minute"
    documented = {"amount": 60, "window_s": 60, "at_once": 5}
    further = {"day": (5000, 86_400), "app": (10_000, 60)}
    rotates = refreshes = True
    lifetime_s = 1800.0

    def reset(self) -> None:
        super().reset()
        self.touched: dict[str, dict[int, int]] = {kind: {} for kind in COUNTS}
        self.offline: frozenset[str] = frozenset()

    def control(self, name: str, value: Any) -> None:
        match name:
            case "touch":
                for touched in self.touched.values():
                    touched.update(dict.fromkeys(range(int(value["count"])), int(value["at"])))
            case "add":
                for kind, touched in self.touched.items():
                    first = max(COUNTS[kind], max(touched, default=0) + 1)
                    touched.update(dict.fromkeys(range(first, first + int(value["count"])), int(value["at"])))
            case "offline":
                self.offline = frozenset(value)
            case _:
                super().control(name, value)

    def key(self, request: Request) -> str:
        account = super().key(request)
        if account == "token" or request.path == "connections":
            return account
        tenant = request.headers.get("xero-tenant-id", "")
        if tenant not in TENANTS:
            raise RejectedError(
                403, {"Title": "Forbidden", "Status": 403, "Detail": "AuthenticationUnsuccessful"}
            )
        return tenant

    def charges(self, request: Request, key: str) -> list[Charge]:
        if request.path == "connections":
            return [(self.meters["app"], "app", 1)]
        of_app = {"app": "app"}
        return [
            (meter, of_app.get(meter.name, key), weight) for meter, _, weight in super().charges(request, key)
        ]

    def headers(self, key: str, now: float) -> dict[str, str]:
        names = {
            "minute": "X-MinLimit-Remaining",
            "day": "X-DayLimit-Remaining",
            "app": "X-AppMinLimit-Remaining",
        }
        return {
            names[name]: str(meter.amount - meter.granted["app" if name == "app" else key].at(now))
            for name, meter in self.meters.items()
        }

    def too_many(self, wait_s: float, limit: str) -> Answer:
        problem = {"at_once": "concurrent", "app": "appminute"}.get(limit, limit)
        return Answer(429, b"", retry_after(wait_s) | {"X-Rate-Limit-Problem": problem})

    def trouble(self, status: int) -> bytes:
        if status == 401:
            return encode({"Title": "Unauthorized", "Status": 401, "Detail": "TokenExpired: token expired"})
        if status == 400:
            return encode({"ErrorNumber": 16, "Type": "QueryParseException", "Message": "Bad parameter"})
        if status == 503:
            return encode(
                {"Title": "Service Unavailable", "Status": 503, "Detail": "Organisation is offline"}
            )
        return encode({"ErrorNumber": 500, "Type": "InternalError", "Message": "An error occurred in Xero."})

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        if request.path == "connections":
            return encode(
                [
                    {"id": _id(each, "Connections", 0), "tenantId": each, "tenantType": "ORGANISATION"}
                    | {"tenantName": f"Waterworks {number}"}
                    for number, each in enumerate(TENANTS)
                ]
            )
        kind, query = request.path.removeprefix("api.xro/2.0/"), request.query
        if kind not in ROWS:
            missing = {"Type": None, "Message": "The resource you're looking for cannot be found"}
            return Answer(404, encode(missing))
        tenant = request.headers["xero-tenant-id"]
        if tenant in self.offline:
            return Answer(503, self.trouble(503))
        if "json" not in request.headers.get("accept", ""):
            return Answer(200, b"<Response><Status>OK</Status></Response>", content_type="text/xml")
        found = self._selected(kind, tenant, request)
        head = {
            "Id": str(uuid.UUID(int=4711)),
            "Status": "OK",
            "ProviderName": "Upstream",
            "DateTimeUTC": _date(int(now)),
        }
        if "page" not in query:
            return encode(
                head | {kind: [row | ({"LineItems": []} if "LineItems" in row else {}) for row in found]}
            )
        size, page = self.whole(query, "pageSize", 100), self.whole(query, "page", 1)
        if size > 1000:
            raise self.wrong("pageSize")
        pages = {"page": page, "pageSize": size, "pageCount": -(-len(found) // size), "itemCount": len(found)}
        return encode(head | {"pagination": pages, kind: found[(page - 1) * size : page * size]})

    def _selected(self, kind: str, tenant: str, request: Request) -> list[dict[str, Any]]:
        found = rows(kind, tenant, self.touched[kind])
        if request.query.get("includeArchived") != "true":
            found = [row for row in found if row.get("ContactStatus") != "ARCHIVED"]
        if since := request.headers.get("if-modified-since"):
            try:
                after = datetime.strptime(since, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
            except ValueError:
                raise self.wrong("If-Modified-Since") from None
            found = [row for row in found if updated_s(row) >= after]
        order = re.fullmatch(
            rf"(UpdatedDateUTC|{IDS[kind]})(?: (ASC|DESC))?", request.query.get("order", IDS[kind])
        )
        if order is None:
            raise self.wrong("order")
        by = updated_s if order[1] == "UpdatedDateUTC" else lambda row: row[IDS[kind]]
        return sorted(found, key=by, reverse=order[2] == "DESC")
