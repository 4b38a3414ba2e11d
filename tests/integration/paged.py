"""A collector with every kind of page and rule; the server behind it answers as the test says."""

from tasks.collectors import (
    Api,
    Bearer,
    Cursor,
    Detail,
    Limit,
    Number,
    RetryPolicy,
    Rule,
    Sync,
    Token,
    Window,
    iso,
)

stock = Api(
    "stock",
    "http://127.0.0.1:1",
    auth=Bearer("STOCK_TOKEN"),
    limits=[Limit("6000/1m", per="account")],
    retry=RetryPolicy(attempts=2),
    rules=[
        Rule("too_much", status=413),
        Rule("rate_limited", status=200, body="EAPI:Rate limit", retry_after="30s", scope="symbol"),
        Rule("banned", status=403, body="host", retry_after="2m", scope="host"),
        Rule("banned", status=403, body="account", retry_after="2m", scope="account"),
        Rule("server_error", status=500, body="of this symbol", scope="symbol"),
        Rule("not_found", status=410, scope="endpoint"),
        Rule("resync", status=404),
    ],
)


@stock.endpoint(
    "/items", page=Number(param="page", size_param="size", size=8), rows="items", key="id", expect_rows=True
)
def items(row, unit):
    return {"id": row}


@stock.endpoint(
    "/moves/{symbol}",
    symbols=["a", "b"],
    page=Window(start="from", end="to", limit=3, unit="iso"),
    cursor=Cursor("at", chunk="1d"),
    key="id",
)
def moves(row, unit):
    return {"id": row["id"], "at": iso(row["at"])}


@stock.endpoint(
    "/messages",
    page=Token(param="page", at="next", size_param="size", size=50),
    rows="messages",
    detail=Detail("/messages/{id}", weight=2),
    sync=Sync(
        param="since",
        at="token",
        start=("/profile", "token"),
        path="/history",
        rows=lambda body: body["added"],
    ),
    key="id",
    weight=5,
)
def messages(row, unit):
    return {"id": row["id"], "text": row["text"]}


@stock.endpoint("/events", rows="items", sync=Sync(param="token", at="token"), key="id")
def events(row, unit):
    return {"id": row}


@stock.endpoint("/files/{symbol}", symbols=["a", "b"], conditional=True, expect_rows=True, key="id")
def files(row, unit):
    return {"id": f"{unit.symbol}{row}"}
