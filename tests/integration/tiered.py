"""A collector with three ways to the same rows; the test says what two of them do."""

from tasks.collectors import Api, Bearer, BreakerPolicy, Fetched, Limit, RetryPolicy, Tier, Token

steps = {}

crm = Api(
    "crm",
    "http://127.0.0.1:1",
    auth=Bearer("CRM_TOKEN"),
    limits=[Limit("6000/1m", per="account")],
    breaker=BreakerPolicy(failures=2),
    retry=RetryPolicy(attempts=2),
)


def by_mcp(unit, checkpoint, session):
    call = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "accounts", "arguments": checkpoint},
    }
    answer = session.post(session.base_url, json=call).json()["result"]
    return Fetched(answer["rows"], next=answer.get("next"))


def by_sdk(unit, checkpoint, session):
    with session.calling():
        return steps["sdk"](checkpoint)


@crm.endpoint(
    "/accounts",
    symbols=["north", "south"],
    params={"of": "{symbol}"},
    page=Token(param="page", at="next"),
    rows="data",
    key="id",
    tiers=[
        Tier("mcp", by_mcp, base_url="CRM_MCP_URL", limits=[Limit("600/1m", per="account")]),
        Tier("sdk", by_sdk, needs="json"),
        Tier("rest"),
    ],
)
def accounts(row, unit):
    return {"id": row["id"], "name": row["name"]}
