"""The token keeper among processes: one refreshes for all, none is lost, and who is refused stops alone."""

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from resilience.errors import ConfigurationError, InvalidCredentialsError
from tasks.collectors.registry import collectors
from tasks.models import accounts, events
from tasks.seal import new_key
from tasks.tokens import AccountStopped, TokenWait, keeper, missing
from tests.upstream import data
from tests.upstream.apis import xero
from tests.upstream.apis.reddit import Reddit
from tests.upstream.apis.tokens import CLIENT, REFRESH

ROOT = Path(__file__).parents[2]
SECRETS = {
    "XERO_CLIENT_ID": CLIENT[0],
    "XERO_CLIENT_SECRET": CLIENT[1],
    "XERO_REFRESH_TOKEN": REFRESH,
    "REDDIT_CLIENT_ID": CLIENT[0],
    "REDDIT_CLIENT_SECRET": CLIENT[1],
    "ASANA_TOKEN": "a-token",
}
GET = """
import sys, time
from tasks.collectors.registry import collectors
from tasks.tokens import TokenWait, keeper
api = collectors()["xero"]
print("ready", flush=True)
sys.stdin.read(1)
while True:
    try:
        print(keeper().credential(api, "").access)
        break
    except TokenWait as wait:  # as a unit does, which goes back to its queue for so long
        time.sleep(wait.seconds)
"""
DIE_BEFORE_IT_IS_STORED = """
import os, signal
from tasks import accounts
from tasks.collectors.registry import collectors
from tasks.tokens import keeper
accounts.keep = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
keeper().credential(collectors()["xero"], "")
"""


@pytest.fixture
def ready(fleet, upstream):
    """An installation with a key and the secrets of three APIs."""

    def configure(**changes):
        tables = {
            "xero": {
                "base_url": upstream.base("xero") + "/api.xro/2.0",
                "token_url": upstream.base("xero") + "/connect/token",
            },
            "reddit": {
                "base_url": upstream.base("reddit"),
                "token_url": f"{upstream.base('reddit')}/{Reddit.token_path}",
            },
        }
        variables = {
            "PENSTOCK_COLLECTORS": "xero,reddit,asana",
            "PENSTOCK_TOKEN_KEY": KEY,
            **SECRETS,
            **changes,
        }
        fleet.configure(tables, **variables)
        return fleet

    configure()
    return configure


KEY = new_key()


def credential(api="xero"):
    return keeper().credential(collectors()[api], "")


def process(script):
    return subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def told(fleet, kind="account_stopped"):
    return [row["subject"] for row in fleet.installation.rows(events, events.c.kind == kind)]


def test_eight_processes_and_one_refresh(ready, upstream):
    """All at once; each has the one token that there is."""
    running = [process(GET) for _ in range(8)]
    assert [each.stdout.readline() for each in running] == ["ready\n"] * 8
    for each in running:
        each.stdin.write("\n")
        each.stdin.flush()
    said = {each.communicate(timeout=60)[0] for each in running}
    assert len(said) == 1
    assert said != {""}
    assert upstream.stats("xero")["tokens"] == {"granted": 1, "refused": 0}


def test_again_when_it_has_expired(ready, upstream):
    """By the refresh token that came with it, which nobody but the database has."""
    upstream.control("xero", token_lifetime_s=1)
    first = credential().access
    time.sleep(1.1)
    second = credential().access
    assert first != second
    assert upstream.stats("xero")["tokens"] == {"granted": 2, "refused": 0}


def test_a_worker_that_dies_before_it_stores(ready, upstream):
    """The server has turned the token over and nobody knows the new one: the old one is tried again, and serves."""
    upstream.control("xero", token_grace_s=600)
    ready(PENSTOCK_CALL_TIMEOUT_S="1")
    with process(DIE_BEFORE_IT_IS_STORED) as dead:
        assert dead.wait(60) == -9
    assert upstream.stats("xero")["tokens"]["granted"] == 1
    deadline = time.monotonic() + 60
    found = None
    while found is None:
        assert time.monotonic() < deadline
        try:
            found = credential()
        except TokenWait as wait:  # as long as the dead one could still be at it
            time.sleep(wait.seconds)
    assert upstream.stats("xero")["tokens"] == {"granted": 2, "refused": 0}


def test_a_grant_that_was_revoked(ready, upstream, caplog):
    """Stops its account alone, and is told once; another secret, or a release, lets it go on."""
    fleet = ready()
    upstream.control("xero", revoke=True)
    with caplog.at_level(logging.ERROR), pytest.raises(InvalidCredentialsError, match="invalid_grant"):
        credential()
    for _ in range(3):
        fleet.installation.forget()  # other processes
        with pytest.raises(AccountStopped, match="penstock accounts release xero"):
            credential()
    assert told(fleet) == ["xero"]
    assert [record.levelname for record in caplog.records if "is stopped" in record.message] == ["ERROR"]
    assert upstream.stats("xero")["tokens"]["refused"] == 1
    assert credential("reddit").access
    upstream.control("xero", revoke=False)
    with pytest.raises(AccountStopped):
        credential()
    from tasks.accounts import release

    assert release("xero", "default", "ada")
    fleet.installation.forget()
    assert credential().access
    assert told(fleet, "account_released") == ["xero"]


def test_another_secret_lets_it_go_on(ready, upstream):
    """Without anybody's word."""
    upstream.control("xero", revoke=True)
    with pytest.raises(InvalidCredentialsError):
        credential()
    upstream.control("xero", revoke=False)
    ready(XERO_REFRESH_TOKEN="another-one")
    with pytest.raises(InvalidCredentialsError, match="invalid_grant"):  # it is tried, and is no good either
        credential()
    ready(XERO_REFRESH_TOKEN="a-third")
    upstream.control("xero", revoke=True)
    with pytest.raises(InvalidCredentialsError):
        credential()


def test_a_token_that_expired_early(ready, upstream):
    """401, a new token, the same call again: the unit does not notice."""
    fleet = ready()
    tenant = xero.TENANTS[0]
    queue = "collect.xero"
    for granted in (1, 2):
        run = fleet.run("xero.contacts", [tenant])
        fleet.inbox.drain(queue)
        (unit,) = fleet.units(run)
        assert (unit["outcome"], unit["attempts"]) == ("stored", 0)
        assert upstream.stats("xero")["tokens"]["granted"] == granted
        upstream.control("xero", expire_tokens=True)
    assert told(fleet) == []


def test_a_static_token_that_is_wrong(ready, upstream):
    """One call, one alert; the other units make none."""
    fleet = ready(ASANA_TOKEN="BAD-token")
    run = fleet.run("asana.tasks", data.PROJECTS[:4])
    fleet.inbox.drain("collect.asana")
    reasons = sorted(unit["reason"] for unit in fleet.units(run))
    assert reasons == ["account_stopped"] * 3 + ["invalid_credentials"]
    assert upstream.stats("asana")["requests"] == 1
    assert told(fleet) == ["asana"]


def test_nothing_in_clear(ready):
    """What stands in the table says nothing; another key does not open it."""
    fleet = ready()
    access = credential().access
    (row,) = fleet.installation.rows(accounts)
    text = repr(row)
    assert access not in text
    assert REFRESH not in text
    assert CLIENT[1] not in text
    assert access not in repr(credential())
    ready(PENSTOCK_TOKEN_KEY=new_key())
    with pytest.raises(ConfigurationError, match="no key in PENSTOCK_TOKEN_KEY opens its tokens"):
        credential()
    ready(PENSTOCK_TOKEN_KEY=f"{new_key()},{KEY}")
    assert credential().access == access


def test_what_is_missing(ready, monkeypatch):
    """Each secret by name; the key only where a token has to be kept."""
    from tasks.settings import get_settings

    ready()
    monkeypatch.delenv("PENSTOCK_TOKEN_KEY")
    monkeypatch.delenv("REDDIT_CLIENT_SECRET")
    get_settings.cache_clear()
    settings, found = get_settings(), collectors()
    assert "PENSTOCK_TOKEN_KEY is missing" in missing(found["xero"], settings)[0]
    (said,) = missing(found["reddit"], settings)
    assert said.startswith("reddit: the secret REDDIT_CLIENT_SECRET is missing")
    assert missing(found["asana"], settings) == []


def test_commands(ready, upstream):
    """The list says who is stopped and why; a release is noted."""
    import json

    from click.testing import CliRunner

    from workers.cli import main

    upstream.control("xero", revoke=True)
    with pytest.raises(InvalidCredentialsError):
        credential()
    assert credential("reddit").access

    def penstock(*words):
        return CliRunner().invoke(main, words)

    rows = {row["account"]: row for row in json.loads(penstock("accounts", "--json").stdout)}
    assert "invalid_grant" in rows["xero"]["reason"]
    assert rows["reddit"]["token_left_s"] > 60
    table = penstock("accounts").stdout
    assert "xero" in table
    assert "left" in table
    assert penstock("accounts", "release", "xero").stdout == "xero is tried again by the next unit\n"
    assert penstock("accounts", "release", "nobody").exit_code == 2
    assert len(penstock("accounts", "new-key").stdout.strip()) == 44
