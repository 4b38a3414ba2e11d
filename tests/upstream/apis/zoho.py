"""Zoho CRM: accounts by REST, in pages by token, and by an MCP server."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.upstream.apis.base import Answer, Charge, RejectedError, Request, encode, seal
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix

ACCOUNTS = 523
DEEPEST = 2000  # records that pages by number reach
MCP_PATH = "mcp/let-me-in"


def _at(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def account(number: int, touched_at: int | None = None) -> dict[str, Any]:
    bits = mix(60, number)
    at = LISTED_AT_S + bits % 50_000_000
    return {
        "id": str(4_150_868_000_000_000_000 + number),
        "Account_Name": f"Account {number} “Ünïcode”",
        "Owner": {"name": f"Owner {bits % 7}", "id": str(4_150_868_000_000_225_000 + bits % 7)},
        "Industry": None if bits % 3 else "Utilities",
        "Phone": None if bits % 2 else f"+41 44 {bits % 10**7:07d}",
        "Website": None if bits % 4 else f"https://account{number}.example",
        "Created_Time": _at(at),
        "Modified_Time": _at(at + bits % 1_000_000 if touched_at is None else touched_at),
    }


def accounts(touched: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """Every account, by id; `touched` says which were modified or added, and when."""
    numbers = range(max(ACCOUNTS, max(touched or (), default=0) + 1))
    return [account(number, (touched or {}).get(number)) for number in numbers]


def expected(touched: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """What has to be stored of the accounts, in the order of the ids."""
    return [
        {
            "id": row["id"],
            "name": row["Account_Name"],
            "owner": row["Owner"]["id"],
            "industry": row["Industry"],
            "phone": row["Phone"],
            "website": row["Website"],
            "created_at": datetime.fromisoformat(row["Created_Time"]),
            "modified_at": datetime.fromisoformat(row["Modified_Time"]),
            "data": row,
        }
        for row in accounts(touched)
    ]


# Of what data type each field of an account is; the last two point to other modules.
FIELDS = {
    "Owner": "ownerlookup",
    "Account_Name": "text",
    "Industry": "picklist",
    "Phone": "phone",
    "Website": "website",
    "Annual_Revenue": "currency",
    "Created_Time": "datetime",
    "Modified_Time": "datetime",
    "Parent_Account": "lookup",
    "Vendor": "lookup",
}
POINTS_TO = {"Parent_Account": "Accounts", "Vendor": "Vendors"}


def field(number: int) -> dict[str, Any]:
    """What the metadata says of a field."""
    name, data_type = list(FIELDS.items())[number]
    custom, identity = name == "Vendor", 4_150_868_000_000_002_000 + number
    found: dict[str, Any] = {
        "id": str(identity),
        "api_name": name,
        "field_label": name.replace("_", " "),
        "display_label": name.replace("_", " "),
        "data_type": data_type,
        "json_type": "jsonobject" if "lookup" in data_type else "string",
        "length": 120,
        "system_mandatory": name == "Account_Name",
        "custom_field": custom,
        "read_only": name.endswith("_Time"),
        "visible": True,
        "sequence_number": number + 1,
        "unique": {},
        "lookup": {},
        "pick_list_values": [],
        "decimal_place": 2 if data_type == "currency" else None,
        "default_value": None,
    }
    if name in POINTS_TO:
        module = {"api_name": POINTS_TO[name], "id": str(identity + 500)}
        found["lookup"] = {"id": str(identity + 700), "api_name": name, "module": module}
    if data_type == "picklist":
        found["pick_list_values"] = [
            {
                "id": str(identity + 900 + n),
                "display_value": value,
                "actual_value": value,
                "sequence_number": n + 1,
            }
            for n, value in enumerate(("-None-", "Utilities"))
        ]
    return found


class Zoho(TokenApi):
    """10 at once and 5,000 credits in 24 hours; 429 names no wait; nothing is 204.

    Pages have numbers up to 2,000 records, and tokens beyond, which hold for a day.
    """

    name = "zoho"
    token_path = "oauth/v2/token"
    scheme = "zoho-oauthtoken"
    refreshes = True
    unit = "credits"
    documented = {"amount": 5000, "window_s": 86_400, "at_once": 10}

    def reset(self) -> None:
        super().reset()
        self.mcp, self.rest, self.mcp_calls, self.fields_calls = True, True, 0, 0
        self.mcp_error = False
        self.touched: dict[int, int] = {}

    def control(self, name: str, value: Any) -> None:
        match name:
            case "mcp":
                self.mcp = bool(value)
            case "mcp_error":  # a tool that fails says so inside a success
                self.mcp_error = bool(value)
            case "touch":
                self.touched.update(dict.fromkeys(range(int(value["count"])), int(value["at"])))
            case "add":
                first = max(ACCOUNTS, max(self.touched, default=0) + 1)
                self.touched.update(
                    dict.fromkeys(range(first, first + int(value["count"])), int(value["at"]))
                )
            case "rest":
                self.rest = bool(value)
            case _:
                super().control(name, value)

    def report(self) -> dict[str, Any]:
        return super().report() | {"mcp_calls": self.mcp_calls, "fields_calls": self.fields_calls}

    def key(self, request: Request) -> str:
        return "mcp" if request.path == MCP_PATH else super().key(request)

    def charges(self, request: Request, key: str) -> list[Charge]:
        return [] if key == "mcp" else super().charges(request, key)

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def trouble(self, status: int) -> bytes:
        codes = {400: "INVALID_DATA", 401: "INVALID_TOKEN", 429: "TOO_MANY_REQUESTS"}
        code = codes.get(status, "INTERNAL_ERROR")
        return encode({"code": code, "details": {}, "message": code.lower(), "status": "error"})

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        if request.path == MCP_PATH:
            return self._mcp(request, now)
        if not self.rest:
            return Answer(503, self.trouble(503))
        if request.path == "crm/v8/settings/fields":
            return self._fields(request.query)
        if request.path != "crm/v8/Accounts":
            return Answer(404, encode({"code": "INVALID_URL_PATTERN", "status": "error"}))
        fields = request.query.get("fields", "")
        if not fields:
            return Answer(400, encode({"code": "REQUIRED_PARAM_MISSING", "status": "error"}))
        if fields.count(",") >= 50:
            raise self.wrong("fields")
        found = accounts(self.touched)
        if since := request.headers.get("if-modified-since"):
            try:
                after = datetime.fromisoformat(since)
            except ValueError:
                raise self.wrong("If-Modified-Since") from None
            if after.tzinfo is None:
                raise self.wrong("If-Modified-Since")
            found = [row for row in found if datetime.fromisoformat(row["Modified_Time"]) > after]
            if not found:
                return Answer(304, b"")
        page, info = self._page(self._sorted(found, request.query), request.query, now)
        return encode({"data": page, "info": info}) if page else Answer(204, b"")

    def _fields(self, query: Mapping[str, str]) -> bytes | Answer:
        """What fields a module has; there is one."""
        self.fields_calls += 1
        module = query.get("module", "")
        if module != "Accounts":
            code = "INVALID_MODULE" if module else "REQUIRED_PARAM_MISSING"
            return Answer(
                400, encode({"code": code, "details": {}, "message": code.lower(), "status": "error"})
            )
        return encode({"fields": [field(number) for number in range(len(FIELDS))]})

    def _sorted(self, found: list[dict[str, Any]], query: Mapping[str, str]) -> list[dict[str, Any]]:
        """By id or by a time; without a word the newest ids first."""
        by, order = query.get("sort_by", "id"), query.get("sort_order", "desc")
        if by not in {"id", "Created_Time", "Modified_Time"}:
            raise self.wrong("sort_by")
        if order not in {"asc", "desc"}:
            raise self.wrong("sort_order")
        return sorted(found, key=lambda row: (row[by], row["id"]), reverse=order == "desc")

    def wrong(self, name: str) -> RejectedError:
        details = {"code": "INVALID_DATA", "details": {"param_name": name}, "message": "invalid_data"}
        return RejectedError(400, details | {"status": "error"})

    def _page(
        self, found: list[dict[str, Any]], query: Mapping[str, str], now: float
    ) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        size, number = self.whole(query, "per_page", 200), self.whole(query, "page", 1)
        if size > 200:
            raise self.wrong("per_page")
        start = size * (number - 1)
        if "page_token" in query:
            generation, issued_at, start = self.unsealed(query, "page_token", 3)
            if "page" in query or generation != self.generation or now > issued_at + 86_400:
                raise self.wrong("page_token")
        elif start >= DEEPEST:
            code = {"code": "DISCRETE_PAGINATION_LIMIT_EXCEEDED", "details": {}, "status": "error"}
            raise RejectedError(400, code)
        wanted = {"id", *query.get("fields", "").split(",")}
        page = [{k: v for k, v in row.items() if k in wanted} for row in found[start : start + size]]
        more = start + size < len(found)
        until = datetime.fromtimestamp(int(now), UTC) + timedelta(days=1)
        info = {
            "per_page": size,
            "count": len(page),
            "page": start // size + 1,
            "more_records": more,
            "next_page_token": seal([self.generation, now, start + size]) if more else None,
            "page_token_expiry": until.isoformat() if more else None,
        }
        return page, info

    def _mcp(self, request: Request, now: float) -> bytes | Answer:
        if not self.mcp:
            return Answer(503, self.trouble(503))
        self.mcp_calls += 1
        call = request.json
        if not isinstance(call, dict):
            return _fault(None, -32700, "Parse error")
        params = call.get("params")
        if call.get("method") != "tools/call" or not isinstance(params, dict):
            return _fault(call.get("id"), -32601, "Method not found")
        arguments = params.get("arguments")
        if params.get("name") != "getRecords" or not isinstance(arguments, dict):
            return _fault(call.get("id"), -32602, "Invalid params")
        if self.mcp_error:
            return _result(call, "The tool failed.", failed=True)
        try:
            # A tool takes numbers as such, a query carries them as text.
            query = {name: str(value) for name, value in arguments.items()}
            page, info = self._page(self._sorted(accounts(self.touched), query), query, now)
        except RejectedError as error:
            return _result(call, json.dumps(error.body), failed=True)
        return _result(call, json.dumps({"data": page, "info": info}))


def _fault(call: Any, code: int, message: str) -> bytes:
    return encode({"jsonrpc": "2.0", "id": call, "error": {"code": code, "message": message}})


def _result(call: Mapping[str, Any], text: str, *, failed: bool = False) -> bytes:
    result = {"content": [{"type": "text", "text": text}], "isError": failed}
    return encode({"jsonrpc": "2.0", "id": call.get("id"), "result": result})
