"""A collector whose pages a function fetches; the test says which."""

from tasks.collectors import Api, Bearer, Cursor, RetryPolicy, Rule, iso

steps = {}

shop = Api(
    "shop",
    "http://127.0.0.1:1",
    auth=Bearer("SHOP_TOKEN"),
    headers={"X-Shop": "yes"},
    retry=RetryPolicy(attempts=2),
    rules=[Rule("rate_limited", status=200, body="slow down", retry_after="30s")],
)


def fetch(unit, checkpoint, session):
    return steps["fetch"](unit, checkpoint, session)


@shop.endpoint(fetch=fetch, symbols=["a", "b"], key="id")
def orders(row, unit):
    return {"id": row["id"], "price": row.get("price")}


@shop.endpoint(fetch=fetch, key="id", cursor=Cursor("at", lag="1m", chunk="1d"))
def visits(row, unit):
    return {"id": row["id"], "at": iso(row["at"])}
