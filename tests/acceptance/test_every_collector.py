"""Every shipped collector at once, by four workers: all that was served is kept, once and exactly, and no secret is."""

import json
from datetime import UTC, date, datetime
from decimal import Decimal

import pytest
from sqlalchemy import select

from tasks.data import (
    asana_projects,
    gmail_messages,
    greenlake_devices,
    greenlake_subscriptions,
    reddit_posts,
    xero_contacts,
    xero_invoices,
)
from tasks.seal import new_key
from tests.acceptance.fleet import Fleet
from tests.deployments import BOTH
from tests.upstream import data
from tests.upstream.apis import ALL, PATHS, google, greenlake, reddit, xero
from tests.upstream.apis.tokens import CLIENT, REFRESH, TokenApi
from workers.embedded import EmbeddedRedis

GOOGLE = json.dumps({"client_id": CLIENT[0], "client_secret": CLIENT[1], "refresh_token": REFRESH})
SECRETS = {
    "PENSTOCK_TOKEN_KEY": new_key(),
    "ASANA_TOKEN": "the-token-of-a-test",
    "GOOGLE_USER_TOKEN": GOOGLE,
    "GREENLAKE_CLIENT_ID": CLIENT[0],
    "GREENLAKE_CLIENT_SECRET": CLIENT[1],
    "GREENLAKE_WORKSPACE": greenlake.WORKSPACE,
    "REDDIT_CLIENT_ID": CLIENT[0],
    "REDDIT_CLIENT_SECRET": CLIENT[1],
    "XERO_CLIENT_ID": CLIENT[0],
    "XERO_CLIENT_SECRET": CLIENT[1],
    "XERO_REFRESH_TOKEN": REFRESH,
}
# What of them is secret, and what the token servers give in exchange.
NOWHERE = ("the-token-of-a-test", CLIENT[1], REFRESH, "-and-of-nobody-else")
SUBREDDITS = ["rivers", "lakes"]


def iso(text):
    return datetime.fromisoformat(text).astimezone(UTC)


def seconds(at):
    return datetime.fromtimestamp(at, UTC)


def exact(number):
    """A number of the fakes as JSON carries it."""
    return Decimal(json.dumps(number))


def projects():
    return [
        {
            "gid": row["gid"],
            "workspace": data.WORKSPACE,
            "name": row["name"],
            "archived": row["archived"],
            "owner": row["owner"] and row["owner"]["gid"],
            "created_at": iso(row["created_at"]),
            "modified_at": iso(row["modified_at"]),
            "due_on": row["due_on"] and date.fromisoformat(row["due_on"]),
        }
        for row in (data.project(gid, data.WORKSPACE) for gid in data.PROJECTS)
    ]


def mails():
    return [
        {
            "mailbox": "me",
            "id": row["id"],
            "thread": row["threadId"],
            "received_at": seconds(int(row["internalDate"]) / 1000),
            "sender": row["payload"]["headers"][0]["value"],
            "subject": row["payload"]["headers"][1]["value"],
            "snippet": row["snippet"],
            "labels": row["labelIds"],
            "size": row["sizeEstimate"],
            "data": row,
        }
        for row in google.messages("me")
    ]


def devices():
    return [
        {
            "id": row["id"],
            "serial": row["serialNumber"],
            "type": row["deviceType"],
            "model": row["model"],
            "created_at": iso(row["createdAt"]),
            "updated_at": iso(row["updatedAt"]),
            "data": row,
        }
        for row in greenlake.rows("devices")
    ]


def subscriptions():
    return [
        {
            "id": row["id"],
            "key": row["key"],
            "sku": row["sku"],
            "quantity": int(row["quantity"]),
            "available": int(row["availableQuantity"]),
            "starts_at": iso(row["startTime"]),
            "ends_at": iso(row["endTime"]),
            "updated_at": iso(row["updatedAt"]),
            "data": row,
        }
        for row in greenlake.rows("subscriptions")
    ]


def posts():
    return [
        {
            "id": row["name"],
            "subreddit": subreddit,
            "author": row["author"],
            "title": row["title"],
            "text": row["selftext"],
            "url": row["url"],
            "score": row["score"],
            "comments": row["num_comments"],
            "created_at": seconds(row["created_utc"]),
            "data": row,
        }
        for subreddit in SUBREDDITS
        for row in reddit.posts(subreddit)
    ]


def invoices():
    return [
        {
            "tenant": tenant,
            "id": row["InvoiceID"],
            "number": row["InvoiceNumber"],
            "type": row["Type"],
            "status": row["Status"],
            "contact": row["Contact"]["ContactID"],
            "invoiced_on": date.fromisoformat(row["DateString"][:10]),
            "due_on": seconds(int(row["DueDate"][6:-7]) / 1000).date(),
            "currency": row["CurrencyCode"],
            "total": exact(row["Total"]),
            "amount_due": exact(row["AmountDue"]),
            "updated_at": seconds(xero.updated_s(row)),
            "data": row,
        }
        for tenant in xero.TENANTS
        for row in xero.rows("Invoices", tenant)
    ]


def contacts():
    return [
        {
            "tenant": tenant,
            "id": row["ContactID"],
            "name": row["Name"],
            "status": row["ContactStatus"],
            "email": row["EmailAddress"],
            "is_customer": row["IsCustomer"],
            "is_supplier": row["IsSupplier"],
            "updated_at": seconds(xero.updated_s(row)),
            "data": row,
        }
        for tenant in xero.TENANTS
        for row in xero.rows("Contacts", tenant)
    ]


# Each endpoint, the table it fills, what makes a row the same row there, and every row that a complete run finds.
SERVED = {
    "asana.projects": (asana_projects, ("gid",), projects),
    "gmail.messages": (gmail_messages, ("mailbox", "id"), mails),
    "greenlake.devices": (greenlake_devices, ("id",), devices),
    "greenlake.subscriptions": (greenlake_subscriptions, ("id",), subscriptions),
    "reddit.posts": (reddit_posts, ("id",), posts),
    "xero.contacts": (xero_contacts, ("tenant", "id"), contacts),
    "xero.invoices": (xero_invoices, ("tenant", "id"), invoices),
}
SYMBOLS = {
    "asana.projects": [data.WORKSPACE],
    "gmail.messages": ["me"],
    "reddit.posts": SUBREDDITS,
    "xero.contacts": xero.TENANTS,
    "xero.invoices": xero.TENANTS,
}
WORKERS = ["worker", "worker-2", "worker-3", "worker-4"]


def settings_of(upstream):
    """The TOML tables of an installation that calls the fakes."""
    tables = {}
    for endpoint in SERVED:
        api = endpoint.partition(".")[0]
        tables[api] = {"base_url": upstream.base(api) + PATHS.get(api, "")}
        site = next(each for each in ALL if each.name == api)
        if issubclass(site, TokenApi):
            tables[api]["token_url"] = f"{upstream.base(api)}/{site.token_path}"
    return tables | {endpoint: {"symbols": symbols} for endpoint, symbols in SYMBOLS.items()}


@pytest.fixture
def fleet(tmp_path, redis_server, upstream, new_deployment):
    """Four workers and a ctl worker."""
    del redis_server
    names = sorted({endpoint.partition(".")[0] for endpoint in SERVED})
    upstream.reset()
    settings = {"PENSTOCK_POOL": "threads", "PENSTOCK_COLLECTORS": ",".join(names), **SECRETS}
    with EmbeddedRedis(tmp_path / "redis") as server, new_deployment(BOTH[0], tmp_path) as deployment:
        made = Fleet(tmp_path, deployment, redis_url=server.url, **settings)
        try:
            made.configure(settings_of(upstream))
            made.start_workers()
            for name in WORKERS[1:]:
                made.start(name, "worker")
            yield made
        finally:
            statuses = made.stop()
            made.engine.dispose()
    assert set(statuses.values()) == {0}


def assert_kept(fleet, endpoint):
    """Every row that was served, once, and no other."""
    table, key, served = SERVED[endpoint]
    kept = {tuple(row[name] for name in key): row for row in fleet.rows(select(table))}
    expected = {tuple(row[name] for name in key): row for row in served()}
    assert kept.keys() == expected.keys(), endpoint
    for one, row in expected.items():
        assert {name: kept[one][name] for name in row} == row, endpoint


def assert_nowhere(fleet):
    """No secret in clear: not in logs, not in the files of database and Redis."""
    fleet.engine.dispose()
    looked_at = [path for path in fleet.directory.rglob("*") if path.is_file()]
    assert {".log", ".db"} <= {path.suffix for path in looked_at}
    for path in looked_at:
        held = path.read_bytes()
        found = [secret for secret in NOWHERE if secret.encode() in held]
        assert not found, f"{path.name} holds {found}"


def test_all_at_once(fleet, upstream):
    """One run of each, together; then everything once more, which changes nothing."""
    for _ in range(2):
        said = fleet.command("run", *SERVED, "--json", timeout_s=300)
        assert said.returncode == 0, said.stderr
        results = {run["collector_name"]: run for run in json.loads(said.stdout)}
        assert results.keys() == {endpoint.partition(".")[0] for endpoint in SERVED}
        assert {run["outcome"] for run in results.values()} == {"ok"}
        for endpoint in SERVED:
            assert_kept(fleet, endpoint)
    for api in results:
        stats = upstream.stats(api)
        assert (api, stats["violations"]) == (api, 0)
        assert (api, stats.get("tokens", {}).get("granted", 1)) == (api, 1)
    assert_nowhere(fleet)


def test_a_missing_secret_is_named(fleet):
    """With its collector, before any call."""
    del fleet.env["XERO_CLIENT_SECRET"]
    said = fleet.command("run", "xero.contacts", "asana.projects")
    assert (said.returncode, said.stdout) == (2, "")
    assert "xero: " in said.stderr
    assert "XERO_CLIENT_SECRET" in said.stderr
    said = fleet.command("collectors")
    assert said.returncode == 0
    assert "XERO_CLIENT_SECRET" in said.stdout
