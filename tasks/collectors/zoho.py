"""Zoho CRM: accounts, as far as they were modified: by an MCP server where there is one, by the SDK, by REST.

Documented (zoho.com/crm/developer/docs/api/v8: get records, API limits; github.com/zoho/crm-oas; read
2026-11): a number of credits in any 24 hours, by edition and 5,000 in the smallest; a page of 200 costs one;
10 calls at once; 429 says no time to wait. A page token holds for a day. Nothing is a 204. The address of an
MCP server is made for one account, so it is a secret; what its tools take is not published.
"""

import json
from typing import Any

from resilience.errors import BadPayloadError, ServerError
from resilience.headers import ZOHO_CREDITS
from tasks.collectors import Api, Cursor, Fetched, Limit, OAuth2, Rule, Tier, Token, Unit, iso
from tasks.collectors.values import Checkpoint
from tasks.collectors.zoho_sdk import FIELDS, by_sdk
from tasks.data import zoho_accounts

zoho = Api(
    "zoho",
    "https://www.zohoapis.com/crm/v8",
    auth=OAuth2(
        "https://accounts.zoho.com/oauth/v2/token",
        client_id="ZOHO_CLIENT_ID",
        client_secret="ZOHO_CLIENT_SECRET",
        refresh_token="ZOHO_REFRESH_TOKEN",
        client="body",
        scheme="Zoho-oauthtoken",
    ),
    limits=[
        Limit("5000/1d", per="account", headers=ZOHO_CREDITS),
        Limit("10 at once", per="account"),
    ],
    rules=[Rule("rate_limited", status=429, retry_after="1m")],
)


def by_mcp(unit: Unit, checkpoint: Checkpoint, session: Any) -> Fetched:
    """Call the server's tool, which takes no time of change: newest first, as far back as the unit goes."""
    arguments = {"module": "Accounts", "fields": ",".join(FIELDS), "per_page": 200} | checkpoint
    arguments |= {"sort_by": "Modified_Time", "sort_order": "desc"}
    call = {"name": "getRecords", "arguments": arguments}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
    answer = session.post(session.base_url, json=body)
    try:
        said = answer.json()
        if "error" in said or said["result"].get("isError"):
            raise ServerError("the MCP server's tool failed")
        found = json.loads(said["result"]["content"][0]["text"])
        rows, token = found["data"], found["info"]["next_page_token"]
        known = unit.start is not None and rows and iso(rows[-1]["Modified_Time"]) < unit.start
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise BadPayloadError(f"the MCP server's tool gave no records: {error!r}") from error
    return Fetched(rows, next={"page_token": token} if token and not known else None)


@zoho.endpoint(
    "/Accounts",
    tiers=[
        Tier("mcp", by_mcp, base_url="ZOHO_MCP_URL", limits=[Limit("60/1m", per="account")]),
        Tier("sdk", by_sdk, needs="zohocrmsdk"),
        Tier("rest"),
    ],
    params={"fields": ",".join(FIELDS), "sort_by": "id", "sort_order": "asc"},
    page=Token(param="page_token", at="info.next_page_token", size_param="per_page", size=200),
    rows="data",
    cursor=Cursor("modified_at", lag="10m", header="If-Modified-Since", unit="offset"),
    table=zoho_accounts,
    key="id",
    every="15m",
)
def accounts(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn an account as each of the three gives it into ours, and keep the original beside it."""
    del unit
    return {
        "id": row["id"],
        "name": row["Account_Name"],
        "owner": row["Owner"]["id"],
        "industry": row.get("Industry"),
        "phone": row.get("Phone"),
        "website": row.get("Website"),
        "created_at": iso(row["Created_Time"]),
        "modified_at": iso(row["Modified_Time"]),
        "data": row,
    }
