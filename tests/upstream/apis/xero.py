"""Xero: invoices and contacts of tenants, refresh tokens that serve once, and three limits at a time."""

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
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
        "LineItems": [],
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
    """Every invoice or contact of a tenant, by id; `touched` says which were modified, and when."""
    found = (ROWS[kind](tenant, number, (touched or {}).get(number)) for number in range(COUNTS[kind]))
    return sorted(found, key=lambda row: row[IDS[kind]])


def updated_s(row: Mapping[str, Any]) -> int:
    return int(row["UpdatedDateUTC"].strip("/Date()").partition("+")[0]) // 1000


class Xero(TokenApi):
    """60 a minute, 5,000 a day and 5 at once for a tenant, 10,000 a minute for the app."""

    name = "xero"
    token_path = "connect/token"
    unit = "minute"
    documented = {"amount": 60, "window_s": 60, "at_once": 5}
    further = {"day": (5000, 86_400), "app": (10_000, 60)}
    rotates = refreshes = True

    def reset(self) -> None:
        super().reset()
        self.touched: dict[int, int] = {}

    def control(self, name: str, value: Any) -> None:
        if name != "touch":
            return super().control(name, value)
        return self.touched.update(dict.fromkeys(range(int(value["count"])), int(value["at"])))

    def key(self, request: Request) -> str:
        if super().key(request) == "token":
            return "token"
        tenant = request.headers.get("xero-tenant-id", "")
        if tenant not in TENANTS:
            raise RejectedError(
                403, {"Title": "Forbidden", "Status": 403, "Detail": "AuthenticationUnsuccessful"}
            )
        return tenant

    def charges(self, request: Request, key: str) -> list[Charge]:
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
        return encode({"ErrorNumber": 500, "Type": "InternalError", "Message": "An error occurred in Xero."})

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        kind, query = request.path.removeprefix("api.xro/2.0/"), request.query
        if kind not in ROWS:
            return Answer(
                404, encode({"Type": None, "Message": "The resource you're looking for cannot be found"})
            )
        if "json" not in request.headers.get("accept", ""):
            return Answer(200, b"<Response><Status>OK</Status></Response>", content_type="text/xml")
        found = rows(kind, request.headers["xero-tenant-id"], self.touched)
        if since := request.headers.get("if-modified-since"):
            after = datetime.strptime(since, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
            found = [row for row in found if updated_s(row) >= after]
        if query.get("order", IDS[kind]) != IDS[kind]:
            found.sort(key=updated_s)
        head = {
            "Id": str(uuid.UUID(int=4711)),
            "Status": "OK",
            "ProviderName": "Upstream",
            "DateTimeUTC": _date(int(now)),
        }
        if "page" not in query:
            return encode(head | {kind: found})
        size, page = int(query.get("pageSize", 100)), int(query["page"])
        if not 1 <= size <= 1000 or page < 1:
            return Answer(
                400, encode({"ErrorNumber": 16, "Type": "QueryParseException", "Message": "Bad page"})
            )
        pages = {"page": page, "pageSize": size, "pageCount": -(-len(found) // size), "itemCount": len(found)}
        return encode(head | {"pagination": pages, kind: found[(page - 1) * size : page * size]})
