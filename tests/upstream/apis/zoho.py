"""Zoho CRM: accounts by REST, in pages by token, and by an MCP server."""

import base64
import json
from datetime import UTC, datetime
from typing import Any

from tests.upstream.apis.base import Answer, Charge, Request, encode
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix

ACCOUNTS = 523
MCP_PATH = "mcp/let-me-in"


def _at(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")


def account(number: int) -> dict[str, Any]:
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
        "Modified_Time": _at(at + bits % 1_000_000),
    }


def accounts() -> list[dict[str, Any]]:
    """Every account, by id."""
    return [account(number) for number in range(ACCOUNTS)]


class Zoho(TokenApi):
    """10 at once and 5,000 credits in 24 hours; 429 names no wait; nothing is 204."""

    name = "zoho"
    token_path = "oauth/v2/token"
    scheme = "zoho-oauthtoken"
    refreshes = True
    unit = "credits"
    documented = {"amount": 5000, "window_s": 86_400, "at_once": 10}

    def reset(self) -> None:
        super().reset()
        self.mcp, self.rest, self.mcp_calls = True, True, 0

    def control(self, name: str, value: Any) -> None:
        match name:
            case "mcp":
                self.mcp = bool(value)
            case "rest":
                self.rest = bool(value)
            case _:
                super().control(name, value)

    def report(self) -> dict[str, Any]:
        return super().report() | {"mcp_calls": self.mcp_calls}

    def key(self, request: Request) -> str:
        return "mcp" if request.path == MCP_PATH else super().key(request)

    def charges(self, request: Request, key: str) -> list[Charge]:
        return [] if key == "mcp" else super().charges(request, key)

    def too_many(self, wait_s: float, limit: str) -> Answer:
        return Answer(429, self.trouble(429))

    def trouble(self, status: int) -> bytes:
        codes = {401: "INVALID_TOKEN", 429: "TOO_MANY_REQUESTS"}
        code = codes.get(status, "INTERNAL_ERROR")
        return encode({"code": code, "details": {}, "message": code.lower(), "status": "error"})

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        if request.path == MCP_PATH:
            return self._mcp(request)
        if not self.rest:
            return Answer(503, self.trouble(503))
        if request.path != "crm/v8/Accounts":
            return Answer(404, encode({"code": "INVALID_URL_PATTERN", "status": "error"}))
        if not request.query.get("fields"):
            return Answer(400, encode({"code": "REQUIRED_PARAM_MISSING", "status": "error"}))
        found = accounts()
        if since := request.headers.get("if-modified-since"):
            after = datetime.fromisoformat(since)
            found = [row for row in found if datetime.fromisoformat(row["Modified_Time"]) > after]
            if not found:
                return Answer(304, b"")
        page, info = self._page(found, request.query)
        return encode({"data": page, "info": info}) if page else Answer(204, b"")

    @staticmethod
    def _page(found: list[dict[str, Any]], query: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        size = min(200, int(query.get("per_page", 200)))
        start = size * (int(query.get("page", 1)) - 1)
        if token := query.get("page_token"):
            start = json.loads(base64.urlsafe_b64decode(token))
        wanted = {"id", *str(query.get("fields", "")).split(",")}
        page = [{k: v for k, v in row.items() if k in wanted} for row in found[start : start + size]]
        more = start + size < len(found)
        info = {
            "per_page": size,
            "count": len(page),
            "page": start // size + 1,
            "more_records": more,
            "next_page_token": base64.urlsafe_b64encode(encode(start + size)).decode() if more else None,
        }
        return page, info

    def _mcp(self, request: Request) -> bytes | Answer:
        if not self.mcp:
            return Answer(503, self.trouble(503))
        self.mcp_calls += 1
        call = json.loads(request.body)
        if call["method"] != "tools/call" or call["params"]["name"] != "getRecords":
            error = {"code": -32601, "message": "Method not found"}
            return encode({"jsonrpc": "2.0", "id": call.get("id"), "error": error})
        page, info = self._page(accounts(), call["params"]["arguments"])
        said = {"data": page, "info": info}
        result = {"content": [{"type": "text", "text": json.dumps(said)}], "isError": False}
        return encode({"jsonrpc": "2.0", "id": call["id"], "result": result})
