"""Every shipped collector at once, by four workers: all that was served is kept, once and exactly, and no secret is."""

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from tasks.collectors.registry import SHIPPED, load
from tasks.models import units
from tasks.seal import new_key
from tests.acceptance import dashboard
from tests.acceptance.fleet import ROOT, Fleet
from tests.deployments import BOTH
from tests.upstream import data
from tests.upstream.apis import (
    ALL,
    PATHS,
    asana,
    binance,
    coinbase,
    glassnode,
    google,
    greenlake,
    kraken,
    lunarcrush,
    moralis,
    reddit,
    x,
    xero,
    zoho,
)
from tests.upstream.apis.tokens import CLIENT, REFRESH, TokenApi
from workers.embedded import EmbeddedRedis

KEYS = ("GLASSNODE_API_KEY", "LUNARCRUSH_API_KEY", "MORALIS_API_KEY", "X_BEARER_TOKEN", "ASANA_TOKEN")
SECRETS = {
    **{name: f"the-{name.lower()}-of-a-test" for name in KEYS},
    "PENSTOCK_TOKEN_KEY": new_key(),
    "GOOGLE_USER_TOKEN": json.dumps(
        {"client_id": CLIENT[0], "client_secret": CLIENT[1], "refresh_token": REFRESH}
    ),
    "GREENLAKE_WORKSPACE": greenlake.WORKSPACE,
    "XERO_REFRESH_TOKEN": REFRESH,
    "ZOHO_REFRESH_TOKEN": REFRESH,
    **{f"{name}_CLIENT_ID": CLIENT[0] for name in ("GREENLAKE", "REDDIT", "XERO", "ZOHO")},
    **{f"{name}_CLIENT_SECRET": CLIENT[1] for name in ("GREENLAKE", "REDDIT", "XERO", "ZOHO")},
}
# What of them is secret, and what the token servers give in exchange. An MCP server's path is its key.
NOWHERE = (
    *(SECRETS[name] for name in KEYS),
    SECRETS["PENSTOCK_TOKEN_KEY"],
    CLIENT[1],
    REFRESH,
    "-and-of-nobody-else",
    zoho.MCP_PATH.rpartition("/")[2],
)
WORKERS = ["worker", "worker-2", "worker-3", "worker-4"]
# What is asked of them has to be the same at the end as at the beginning; bars are of the minutes that pass.
STILL = [api.name for api in ALL if api.name not in {"binance", "coinbase"}]
TOKEN = "eth:0x" + "5a" * 20
SDK = Path(sys.prefix) / "zoho"  # where `make test` puts it
QUERY = '(pump OR "sluice gate") lang:en'

Window = tuple[datetime, datetime]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Served:
    """What a collector is asked for, and the rows of a symbol that a complete run at a moment finds."""

    symbols: Sequence[str]
    rows: Callable[[str, Window, datetime], Rows]


def tasks(project: str, _: Window, now: datetime) -> Rows:
    return [asana.expected_task(project, row) for row in data.tasks(project, now.timestamp())]


def days(metric: str) -> Callable[[str, Window, datetime], Rows]:
    return lambda asset, window, now: glassnode.expected(metric, asset, *window, now.timestamp())


def found(path: str) -> Callable[[str, Window, datetime], Rows]:
    return lambda symbol, _, now: x.expected(path.format(symbol), symbol, now.timestamp())


def hours(coin: str, window: Window, now: datetime) -> Rows:
    return lunarcrush.expected(
        coin, window[0], now.replace(minute=0, second=0, microsecond=0), now.timestamp()
    )


def minutes(pair: str, window: Window, now: datetime) -> Rows:
    return kraken.expected(pair, window[0], now.replace(second=0, microsecond=0))


SERVED = {
    "asana.projects": Served([data.WORKSPACE], lambda *_: asana.expected_projects()),
    "asana.tasks": Served(data.PROJECTS[:3], tasks),
    "binance.klines": Served(["BTCUSDT", "ETHUSDT"], lambda one, window, _: binance.expected(one, *window)),
    "calendar.events": Served(google.CALENDARS, lambda one, *_: google.expected_events(one)),
    "coinbase.candles": Served(
        ["BTC-USD", "QUIET-USD"], lambda one, window, _: coinbase.expected(one, *window)
    ),
    "glassnode.active_addresses": Served(["BTC", "ETH"], days("addresses/active_count")),
    "glassnode.price": Served(["BTC", "ETH"], days("market/price_usd_close")),
    "gmail.messages": Served(["me"], lambda one, *_: google.expected_messages(one)),
    "greenlake.devices": Served([], lambda *_: greenlake.expected_devices()),
    "greenlake.subscriptions": Served([], lambda *_: greenlake.expected_subscriptions()),
    "kraken.ohlc": Served(["ETHUSD", "XBTUSD"], minutes),
    "lunarcrush.coins": Served([], lambda _, __, now: lunarcrush.expected_coins(now.timestamp())),
    "lunarcrush.hours": Served(["btc"], hours),
    "moralis.prices": Served([TOKEN], lambda one, _, now: [moralis.expected_price(one, now.timestamp())]),
    "moralis.transfers": Served(
        [TOKEN], lambda one, _, now: moralis.expected(one, datetime(2020, 1, 1, tzinfo=UTC), now)
    ),
    "reddit.posts": Served(["rivers", "lakes"], lambda one, *_: reddit.expected(one)),
    "x.posts": Served(["17"], found("users/{}/tweets")),
    "x.search": Served([QUERY], found("tweets/search/recent")),
    "xero.contacts": Served(xero.TENANTS, lambda one, *_: xero.expected_contacts(one)),
    "xero.invoices": Served(xero.TENANTS, lambda one, *_: xero.expected_invoices(one)),
    "zoho.accounts": Served([], lambda *_: zoho.expected()),
}
COLLECTORS = sorted(SHIPPED)


def settings_of(upstream) -> dict[str, dict[str, Any]]:
    """The TOML tables of an installation that calls the fakes."""
    tables: dict[str, dict[str, Any]] = {}
    for site in ALL:
        tables[site.name] = {"base_url": upstream.base(site.name) + PATHS.get(site.name, "")}
        if issubclass(site, TokenApi):
            tables[site.name]["token_url"] = f"{upstream.base(site.name)}/{site.token_path}"
    return tables | {name: {"symbols": one.symbols} for name, one in SERVED.items() if one.symbols}


@pytest.fixture
def now(upstream):
    """The moment that it is for all but two of the APIs, as long as a test goes on."""
    upstream.reset()
    moment = datetime.now(UTC) - timedelta(seconds=1)
    for name in STILL:
        upstream.control(name, now=moment.timestamp())
    yield moment
    upstream.reset()


@pytest.fixture
def fleet(tmp_path, redis_server, upstream, now, new_deployment, missing_server):
    """Four workers and a ctl worker, with all that any collector needs."""
    del redis_server, now
    if not (SDK / "zohocrmsdk").exists():
        missing_server("zoho", "`make test` installs it")
    settings = {
        "PENSTOCK_POOL": "threads",
        "PENSTOCK_COLLECTORS": ",".join(COLLECTORS),
        "PYTHONPATH": f"{ROOT}:{SDK}",
        "ZOHO_MCP_URL": f"{upstream.base('zoho')}/{zoho.MCP_PATH}",
        **SECRETS,
    }
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


def windows_of(fleet) -> Mapping[tuple[str, str], Window]:
    """From when to when each symbol of each endpoint was ever collected."""
    asked = select(
        units.c.endpoint,
        units.c.symbol,
        func.min(units.c.start_at).label("start"),
        func.max(units.c.end_at).label("end"),
    ).group_by(units.c.endpoint, units.c.symbol)
    return {(row["endpoint"], row["symbol"]): (row["start"], row["end"]) for row in fleet.rows(asked)}


def assert_kept(fleet, now) -> dict[str, int]:
    """Every row that was served, once and exactly, and no other; returns how many, by endpoint."""
    windows, endpoints = windows_of(fleet), {}
    for api in load(COLLECTORS, {}).values():
        endpoints |= {endpoint.full_name: endpoint for endpoint in api.endpoints.values()}
    assert endpoints.keys() == SERVED.keys()
    wanted: dict[Any, dict[tuple[Any, ...], dict[str, Any]]] = defaultdict(dict)
    counts = {}
    for name, one in SERVED.items():
        table = endpoints[name].table
        key = [column.name for column in table.primary_key]
        rows = [row for each in one.symbols or [""] for row in one.rows(each, windows[name, each], now)]
        assert rows, name
        counts[name] = len(rows)
        wanted[table] |= {tuple(row[column] for column in key): row for row in rows}
    for table, rows in wanted.items():
        key = [column.name for column in table.primary_key]
        kept = {tuple(row[column] for column in key): row for row in fleet.rows(select(table))}
        assert kept.keys() == rows.keys(), table.name
        for one, row in rows.items():
            assert {name: kept[one][name] for name in row} == row, table.name
    return counts


def assert_nowhere(fleet) -> None:
    """No secret in clear: not in logs, not in the files of database and Redis."""
    fleet.engine.dispose()
    looked_at = [path for path in fleet.directory.rglob("*") if path.is_file()]
    assert {".log", ".db"} <= {path.suffix for path in looked_at}
    for path in looked_at:
        held = path.read_bytes()
        hits = [secret for secret in NOWHERE if secret.encode() in held]
        assert not hits, f"{path.name} holds {hits}"


def assert_not_in_flower(fleet, flower) -> None:
    """Nor in any page or answer of Flower, those of a unit of each endpoint among them."""
    ids = []
    for name in SERVED:
        fleet.wait_for(lambda name=name: flower.results(name), f"{name} in Flower")
        ids += list(flower.found(name))[:1]
    for path, answer in flower.pages(ids):
        shown = answer.text + json.dumps(dict(answer.headers))
        assert not [secret for secret in NOWHERE if secret in shown], path


def everything(fleet) -> dict[str, str]:
    """One run of each collector, together; their outcomes."""
    said = fleet.command("run", *SERVED, "--json", timeout_s=400)
    assert said.returncode == 0, said.stderr
    results = {run["collector_name"]: run for run in json.loads(said.stdout)}
    assert sorted(results) == COLLECTORS
    return {name: run["outcome"] for name, run in results.items()}


def test_all_at_once(fleet, upstream, now):
    """One run of each; then once more, which changes nothing, and Zoho by the second of its ways."""
    with dashboard.started(fleet) as flower:
        assert set(everything(fleet).values()) == {"ok"}
        counts = assert_kept(fleet, now)
        upstream.control("zoho", mcp=False)
        assert set(everything(fleet).values()) == {"ok", "empty"}
        assert assert_kept(fleet, now).keys() == counts.keys()
        assert fleet.column(units.c.tier, units.c.endpoint == "zoho.accounts") == ["mcp", "sdk"]
        assert_not_in_flower(fleet, flower)
    print("\ncollector  endpoints  records  requests  over a limit")
    for name in COLLECTORS:
        stats = upstream.stats(name)
        own = [count for endpoint, count in counts.items() if endpoint.partition(".")[0] == name]
        print(f"{name:10} {len(own):9} {sum(own):8} {stats['requests']:9} {stats['violations']:13}")
        assert (name, stats["violations"]) == (name, 0)
        assert (name, stats.get("tokens", {}).get("granted", 1)) == (name, 1)
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
