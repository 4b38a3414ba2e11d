"""`penstock flower` beside the fleet: who is let in, what is found there, and what is nowhere."""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from tasks.models import units
from tasks.settings import Settings
from tests.acceptance.conftest import SECRETS
from tests.acceptance.dashboard import started
from tests.acceptance.fleet import ROOT
from tests.upstream import data
from workers import health

OPEN = {"/metrics", "/healthcheck", "/static/(.*)", ".*", "/login/?", "/logout"}
ELSEWHERE = {
    "FLOWER_UNAUTHENTICATED_API": "true",
    "FLOWER_BASIC_AUTH": "me:mine",
    "FLOWER_TASKS_COLUMNS": "args",
}
COLUMNS = ["name", "kwargs", "state", "retries", "result", "received", "runtime", "worker", "uuid"]


@pytest.fixture
def dashboard(fleet):
    """Started by the command, where somebody has opened another Flower to the world."""
    fleet.env |= ELSEWHERE
    try:
        with started(fleet) as made:
            yield made
    finally:
        for name in ELSEWHERE:
            del fleet.env[name]


def test_flower(fleet, dashboard, upstream, monkeypatch):
    """In one test, because the process is the expensive part."""
    the_password_is_needed(dashboard)
    upstream.control("binance", fail_next=1)
    result = fleet.collect("run", "binance.klines", "--symbols", "LTCUSDT,ETCUSDT")
    units_are_found(fleet, dashboard, result["run"])
    retries_are_seen(fleet, dashboard)
    workers_are_online(dashboard)
    upstream.control("asana", fail_next=1)
    result = fleet.collect("run", "asana.tasks", "--symbols", ",".join(data.PROJECTS[:2]))
    no_secret_is_shown(fleet, dashboard, units_with_a_token(fleet, dashboard, result["run"]))
    a_taken_port_is_one_sentence(fleet, dashboard)
    its_health_is_seen_by_compose(dashboard, monkeypatch)


def the_password_is_needed(dashboard):
    """On every route of Flower's but the ones that tell little, for looking and for doing."""
    from flower.urls import handlers

    patterns = [each.regex.pattern.rstrip("$") if hasattr(each, "regex") else each[0] for each in handlers]
    closed = [re.sub(r"\(.*\)", "x", pattern) for pattern in patterns if pattern not in OPEN]
    assert {"/", "/tasks", "/tasks/datatable", "/api/workers", "/api/worker/shutdown/x"} <= set(closed)
    for auth in (None, ("me", "mine"), (dashboard.auth[0], "wrong")):
        for path in closed:
            got = {method: dashboard.ask(path, method, auth=auth).status_code for method in ("GET", "POST")}
            assert set(got.values()) in ({401}, {401, 405}), path
    assert dashboard.ask("/healthcheck", auth=None).text == "OK"


def units_are_found(fleet, dashboard, run):
    """By name, by run and by symbol, each with what came of it."""
    fleet.wait_for(
        lambda: len(dashboard.results(f"kwargs:run={run} binance.klines")) == 2, "both units in Flower"
    )
    rows = dashboard.found(f"kwargs:run={run} kwargs:symbol=LTCUSDT")
    ((uuid, row),) = rows.items()
    assert (row["name"], row["state"]) == ("binance.klines", "SUCCESS")
    assert re.fullmatch(rf"symbol=LTCUSDT run={run} n=\d", row["kwargs"])
    assert re.fullmatch(r"outcome=stored records=\d+", row["result"])
    assert uuid in dashboard.found("binance.klines")
    assert uuid in dashboard.found("kwargs:symbol=LTCUSDT")
    page = dashboard.ask("/tasks").text
    assert re.findall(r'<th data-column="(\w+)"', page) == COLUMNS
    assert "symbol=LTCUSDT" in dashboard.ask(f"/task/{uuid}").text


def retries_are_seen(fleet, dashboard):
    """The call that was answered 500, whoever made it: its unit was tried again."""
    fleet.wait_for(lambda: fleet.rows(retried()), "a unit that was tried again")
    row = fleet.rows(retried())[0]
    search = f"kwargs:run={row['run']} kwargs:n={row['n']}"
    fleet.wait_for(
        lambda: [each for each in dashboard.found(search).values() if each["retries"] >= 1],
        f"the retries of {search}",
    )


def retried():
    found = units.select().where(units.c.retries > 0, units.c.endpoint == "binance.klines")
    return found.order_by(units.c.run.desc())


def workers_are_online(dashboard):
    """The page takes them from what they said last."""
    page = dashboard.ask("/workers?json=1").json()["data"]
    kinds = {row["hostname"].partition("-")[0] for row in page if row["status"]}
    assert {"units", "ctl", "alone"} <= kinds


def units_with_a_token(fleet, dashboard, run):
    """Of an API that answers nobody without one; one of them was tried again, so its page shows why."""
    search = f"kwargs:run={run} asana.tasks"
    fleet.wait_for(lambda: len(dashboard.results(search)) == 2, "both units in Flower")
    rows = dashboard.results(search).values()
    assert all(re.fullmatch(r"outcome=stored records=[1-9]\d*", row["result"]) for row in rows)
    assert sum(row["retries"] for row in rows) >= 1
    return [row["uuid"] for row in rows]


def no_secret_is_shown(fleet, dashboard, with_token):
    """In no page, no answer of the API, no log and no argument."""
    servers = ("PENSTOCK_REDIS_URL", "PENSTOCK_BROKER_URL", "PENSTOCK_DATABASE_URL")
    passwords = [urlsplit(fleet.env.get(name, "")).password for name in servers]
    secrets = [*SECRETS.values(), *filter(None, passwords), dashboard.auth[1]]
    assert all(len(secret) > 10 for secret in secrets)
    tasks = [*list(dashboard.found("binance.klines"))[:3], *with_token]
    broken = {}
    for path, answer in dashboard.pages(tasks):
        shown = answer.text + json.dumps(dict(answer.headers))
        assert not [secret for secret in secrets if secret in shown], path
        if answer.status_code >= 400:
            broken[path] = answer.status_code
    assert broken == {"/nothing": 404, "/tasks/datatable": 400}
    process = Path(f"/proc/{fleet.processes['flower'].pid}")
    for text in (fleet.log("flower").read_text(), (process / "cmdline").read_text()):
        assert not [secret for secret in secrets if secret in text]


def a_taken_port_is_one_sentence(fleet, dashboard):
    """And the status of a wrong configuration."""
    port = urlsplit(dashboard.url).port
    said = fleet.command("flower", f"--port={port}")
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == (
        f"penstock: Flower cannot listen on 127.0.0.1 port {port} (Address already in use); "
        "choose another --port or --address\n"
    )


def its_health_is_seen_by_compose(dashboard, monkeypatch):
    """By the command in the file, without a password; and it fails where nobody listens."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    assert services["flower"]["healthcheck"]["test"] == ["CMD", "penstock", "health", "--flower"]
    monkeypatch.setattr(health, "FLOWER", urlsplit(dashboard.url).netloc)
    assert health.look(health.Part.FLOWER, Settings()) == "Flower answers"
    monkeypatch.setattr(health, "FLOWER", "127.0.0.1:1")
    with pytest.raises(health.StalledError):
        health.look(health.Part.FLOWER, Settings())
