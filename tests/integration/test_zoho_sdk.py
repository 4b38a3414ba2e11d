"""Accounts by Zoho's SDK, the real one, on our session: against the fake API and a server that fails."""

import importlib
import json
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace

import pytest

from resilience.errors import (
    BadPayloadError,
    ConfigurationError,
    InvalidCredentialsError,
    PenstockError,
    RateLimitError,
    ServerError,
)
from resilience.policy import Lane
from tasks import scratch
from tasks.calls import Calls, Snooze
from tasks.collectors.registry import endpoint_of
from tasks.collectors.values import Unit
from tasks.data import zoho_accounts
from tasks.limits import ask_for, circuit_of
from tasks.models import records
from tasks.seal import new_key
from tasks.session import GuardedSession
from tasks.settings import get_settings
from tests.upstream.apis import zoho
from tests.upstream.apis.tokens import CLIENT, REFRESH

from .conftest import connect

DATABASES = ("sqlite",)
SDK = Path(sys.prefix) / "zoho"
MODULE = "tests.integration.zoho_by_sdk"
AT = 1_900_000_000
SECRETS = {
    "PENSTOCK_TOKEN_KEY": new_key(),
    "ZOHO_CLIENT_ID": CLIENT[0],
    "ZOHO_CLIENT_SECRET": CLIENT[1],
    "ZOHO_REFRESH_TOKEN": REFRESH,
}
FIELDS = json.dumps({"fields": [zoho.field(n) for n in range(len(zoho.FIELDS))]}).encode()
JSON = {"Content-Type": "application/json;charset=UTF-8"}
TOKEN = {"access_token": "scripted-access-token", "token_type": "Bearer", "expires_in": 3600}


@pytest.fixture
def installed(monkeypatch, missing_server):
    """It lies apart from the other packages; `make test` puts it there."""
    if not (SDK / "zohocrmsdk").exists():
        missing_server("zohocrmsdk", "`make test` installs it")
    monkeypatch.syspath_prepend(SDK)


@pytest.fixture
def at(fleet, monkeypatch, tmp_path):
    """Have Zoho called at an address; whatever is written to the working directory is found out."""

    def configure(url, token_url, collector=f"{MODULE}:zoho"):
        table = {"base_url": f"{url}/crm/v8", "token_url": token_url}
        fleet.configure({"zoho": table}, PENSTOCK_COLLECTORS=collector, **SECRETS)
        connect(fleet.inbox.app)

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield configure
    assert list(Path().iterdir()) == []
    scratch.remove()  # the next test is a process that has asked nothing yet
    sys.modules.pop(MODULE, None)


@pytest.fixture
def fake(installed, at, upstream):
    """The fake API."""
    at(upstream.base("zoho"), f"{upstream.base('zoho')}/oauth/v2/token")
    return upstream


@pytest.fixture
def script(installed, at, scripted, upstream):
    """A server that gives the metadata, and then what the test says."""
    at(scripted.url, f"{upstream.base('zoho')}/oauth/v2/token")

    def answer(*answers):
        scripted.answers = [(200, JSON, FIELDS), *answers]
        return scripted

    return answer


def collect(fleet, endpoint="alone"):
    run = fleet.run(f"zoho.{endpoint}", None)
    fleet.inbox.deliver("collect.zoho")
    return fleet.unit(run)


def rows(fleet, table=records):
    return sorted((row["data"] for row in fleet.installation.rows(table)), key=lambda row: row["id"])


class Count:
    """What is spent is kept nowhere."""

    def spend(self, **amounts):
        pass


def page(checkpoint=None, since=None):
    """One page by a guarded session, as a delivery has it."""
    endpoint = endpoint_of("zoho.alone")
    unit = Unit(1, 0, "zoho", "alone", "", since, None, None)
    ask = ask_for(endpoint, "", Lane.LIVE, 1)
    calls = Calls(endpoint.api, ask, Count(), get_settings(), ticket=None, stopping=lambda: False)
    try:
        with GuardedSession(calls) as session:
            found = session.let(endpoint.fetch, unit, checkpoint or {})
    except PenstockError as error:
        calls.settle(error)
        raise
    calls.settle()
    return found


def pages(since=None):
    """All rows there are."""
    found, checkpoint = [], {}
    while checkpoint is not None:
        one = page(checkpoint, since)
        assert len(one.rows) <= 200
        found += one.rows
        checkpoint = one.next
    return found


def test_the_same_accounts_as_by_rest(fleet, fake):
    """All of them once, every value, owners and empty ones too; the metadata once, and one token."""
    row = collect(fleet)
    assert (row["outcome"], row["records"], row["calls"]) == ("stored", zoho.ACCOUNTS, 4)
    assert rows(fleet) == zoho.accounts()
    stats = fake.stats("zoho")
    assert (stats["requests"], stats["by_status"], stats["fields_calls"]) == (5, {"200": 5}, 1)
    assert stats["tokens"]["granted"] == 1
    assert (collect(fleet)["calls"], fake.stats("zoho")["fields_calls"]) == (3, 1)


def test_page_by_page(fleet, fake):
    """200 at a time, by token; a page by its number where there is none."""
    first = page()
    assert (len(first.rows), first.rows) == (200, zoho.accounts()[:200])
    assert set(first.next) == {"token"}
    assert page(first.next).rows == page({"page": 2}).rows == zoho.accounts()[200:400]
    last = page({"page": 3})
    assert (last.rows, last.next) == (zoho.accounts()[400:], None)
    assert (page({"page": 4}).rows, page({"page": 4}).next) == ([], None)


def test_what_was_modified(fleet, fake):
    """After the start of the unit; none is no row, which is no failure."""
    fake.control("zoho", touch={"count": 3, "at": AT})
    since = datetime.fromtimestamp(AT - 1, timezone(timedelta(hours=2)))
    assert pages(since) == [zoho.account(number, AT) for number in range(3)]
    found = page(since=since + timedelta(seconds=1))
    assert (found.rows, found.next, fake.stats("zoho")["by_status"]["304"]) == ([], None, 1)


@pytest.mark.parametrize("zone", ["UTC", "Europe/Zurich", "Asia/Kolkata"])
def test_times_are_utc_in_every_zone(fleet, script, monkeypatch, zone):
    """What is asked and what is answered, also in the hour that is twice."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        times = [datetime(2025, 10, 25, 23, tzinfo=UTC) + n * timedelta(minutes=30) for n in range(8)]
        offset = timezone(timedelta(hours=-7))
        served = [
            {"id": str(n), "Account_Name": "a", "Modified_Time": at.astimezone(offset).isoformat()}
            for n, at in enumerate(times)
        ]
        body = json.dumps({"data": served, "info": {"more_records": False}}).encode()
        server = script((200, JSON, body), (304, {}, b""))
        assert [row["Modified_Time"] for row in page(since=times[0]).rows] == [at.isoformat() for at in times]
        assert server.requests[1][1]["If-Modified-Since"] == "2025-10-25T23:00:00+00:00"
        assert page(since=times[0]).rows == []
    finally:
        monkeypatch.delenv("TZ")
        time.tzset()


def test_nothing(fleet, script):
    """An empty module is a 204, by which the unit is done."""
    server = script((204, {}, b""))
    row = collect(fleet)
    assert (row["outcome"], row["records"], row["calls"]) == ("empty", 0, 2)
    fields = "Account_Name%2COwner%2CIndustry%2CPhone%2CWebsite%2CCreated_Time%2CModified_Time"
    assert [path for path, _ in server.requests] == [
        "/crm/v8/settings/fields?module=Accounts",
        f"/crm/v8/Accounts?fields={fields}&per_page=200&sort_by=id&sort_order=asc",
    ]
    for _, headers in server.requests:
        assert headers["Authorization"].startswith("Zoho-oauthtoken access-of-zoho-")
        assert "If-Modified-Since" not in headers


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (401, b'{"code":"INVALID_TOKEN","details":{},"message":"invalid oauth token","status":"error"}', InvalidCredentialsError),
        (403, b'{"code":"NO_PERMISSION","details":{},"message":"permission denied","status":"error"}', InvalidCredentialsError),
        (429, b'{"code":"TOO_MANY_REQUESTS","details":{},"message":"?","status":"error"}', RateLimitError),
        (503, b"<html>", ServerError),
        (500, b'{"code":"INTERNAL_ERROR","details":{},"message":"?","status":"error"}', ServerError),
        (200, b"<html>", BadPayloadError),
        (200, b'{"data": [{"id": "1', BadPayloadError),
        (200, b"", BadPayloadError),
        (200, b"null", BadPayloadError),
        (200, b"[]", BadPayloadError),
        (200, b"[" * 100_000, BadPayloadError),
        (200, b'{"a": 1}', BadPayloadError),
        (200, b'{"data": []}', BadPayloadError),
        (200, b'{"data": [], "info": {}}', BadPayloadError),
        (200, b'{"data": [3], "info": {"more_records": false}}', BadPayloadError),
        (200, b'{"data": [{"id": "x"}], "info": {"more_records": false}}', BadPayloadError),
        (200, b'{"data": [{"id": "1", "Modified_Time": "soon"}], "info": {"more_records": false}}', BadPayloadError),
        (200, b'{"data": [{"id": "1", "Owner": 5}], "info": {"more_records": false}}', BadPayloadError),
        (200, b'{"code":"INVALID_DATA","details":{},"message":"?","status":"error"}', BadPayloadError),
        (302, b"", PenstockError),
        (304, b"", PenstockError),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_errors_are_ours(fleet, script, status, body, error, first):
    """Whether it is the answer about the fields or that with the records; the circuit hears of it."""
    server = script((status, JSON, body))
    if first:
        server.answers.pop(0)
    with pytest.raises(error) as raised:
        page()
    assert raised.value.to_dict()["error_type"] in {error.__name__, "APIError"}
    if status == 200:
        assert circuit_of(endpoint_of("zoho.alone")).view.failure_count == 1


@pytest.mark.parametrize("fields", [FIELDS, b'{"fields": []}'])
def test_whatever_the_metadata_says(fleet, script, fields):
    """Rows are the same where it knows no field; what REST would not give is not there, and null is."""
    owner = {"name": "O", "id": "4150868000000225001", "email": "o@example.com"}
    row = {
        "id": "1",
        "Account_Name": "\u0000 “a”",
        "Owner": owner,
        "Industry": "Not in the list",
        "Phone": None,
    }
    more = {"Vendor": {"id": "7"}, "$approved": True, "Tag": [{"name": "t", "id": "5", "color_code": None}]}
    body = json.dumps({"data": [row | more], "info": {"more_records": True, "page": 1}}).encode()
    script((200, JSON, body)).answers[0] = (200, JSON, fields)
    found = page()
    assert (found.rows, found.next) == ([row], {"page": 2})


def test_html_with_its_own_type(fleet, script):
    """The SDK takes it for a file to download."""
    script((200, {"Content-Type": "text/html"}, b"<html>"))
    with pytest.raises(BadPayloadError):
        page()


def test_metadata_is_asked_again_after_a_failure(fleet, script):
    """What could not be had is not taken for no fields."""
    server = script((204, {}, b""))
    server.answers.insert(0, (503, JSON, b"{}"))
    with pytest.raises(ServerError):
        page()
    assert page().rows == []
    paths = [path.partition("?")[0] for path, _ in server.requests]
    assert paths == ["/crm/v8/settings/fields"] * 2 + ["/crm/v8/Accounts"]


def test_limits_hold_through_it(fleet, fake):
    """A unit goes to sleep where there is no room, in the middle of the metadata too, and has not failed."""
    fake.control("zoho", limits={"amount": 0})
    row = collect(fleet)
    assert (row["state"], row["throttles"], row["attempts"], row["calls"]) == ("waiting", 1, 0, 1)
    with pytest.raises(Snooze):
        page()
    assert fake.stats("zoho")["fields_calls"] == 0


def test_an_access_token_that_expired(fleet, fake):
    """The session gets another one, and the SDK hears nothing of it."""
    page()
    fake.control("zoho", expire_tokens=True)
    assert page({"page": 2}).rows == zoho.accounts()[200:400]
    assert fake.stats("zoho")["tokens"]["granted"] == 2


def test_two_threads(fleet, fake):
    """Each has its session; the metadata is asked once, no row gets lost or mixed up."""
    found, ready = {}, threading.Barrier(2)

    def read(name, since):
        ready.wait()
        found[name] = [pages(since) for _ in range(3)]

    fake.control("zoho", touch={"count": 210, "at": AT})
    since = datetime.fromtimestamp(AT - 1, UTC)
    threads = [threading.Thread(target=read, args=each) for each in (("all", None), ("some", since))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    touched = dict.fromkeys(range(210), AT)
    assert found["all"] == [zoho.accounts(touched)] * 3
    assert found["some"] == [zoho.accounts(touched)[:210]] * 3
    assert fake.stats("zoho")["fields_calls"] == 1


def test_nothing_is_called_past_the_session(fleet, fake, monkeypatch):
    """No host but ours, no connection by the SDK, no call without a session, none but GET."""
    import requests

    def none(*args, **kwargs):
        raise AssertionError("past the session")

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", none)
    monkeypatch.setattr(requests.api, "request", none)
    reached, connect_to = set(), socket.socket.connect

    def connects(self, address):
        reached.add(address[:2])
        return connect_to(self, address)

    monkeypatch.setattr(socket.socket, "connect", connects)
    assert len(page().rows) == 200
    upstream = fake.url.removeprefix("http://").split(":")
    assert {each for each in reached if isinstance(each, tuple)} == {(upstream[0], int(upstream[1]))}
    sdk = importlib.import_module("zohocrmsdk.src.com.zoho.crm.api.record")
    with pytest.raises(Exception, match="through a guarded session only, and here is none"):
        sdk.RecordOperations("Accounts").get_records()
    tokens = importlib.import_module("zohocrmsdk.src.com.zoho.api.authenticator.oauth_token")
    with pytest.raises(ConfigurationError, match=r"reads only, and has no requests\.post"):
        tokens.requests.post("https://accounts.zoho.com/oauth/v2/token")


def test_another_address(fleet, script, scripted):
    """The session goes to its own host; a redirect leads nowhere."""
    server = script((302, {"Location": "https://example.com/"}, b""))
    with pytest.raises(PenstockError, match="redirects are not followed"):
        page()
    assert len(server.requests) == 2


def test_files_go_with_the_process(fleet, fake, tmp_path):
    """One directory, which is used again, and no file elsewhere; nothing of it is left at the end."""
    program = textwrap.dedent(
        f"""
        import sys
        sys.path.insert(0, {str(SDK)!r})
        import os, logging
        logging.basicConfig(level=logging.DEBUG)
        from tests.integration.test_zoho_sdk import page
        from tasks.scratch import scratch
        for _ in range(2):
            assert len(page().rows) == 200
        print(scratch())
        child = os.fork()  # as Celery has them: it knows of its parent's directory
        if child == 0:
            from workers.lifecycle import child_stops
            page()
            print(scratch(), flush=True)
            child_stops()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert scratch().exists()
        """
    )
    (tmp_path / "tmp").mkdir()
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 2
    assert list((tmp_path / "tmp").iterdir()) == []
    assert "SDKLogger" not in done.stderr
    assert fake.stats("zoho")["fields_calls"] == 2


def test_its_files_may_vanish(fleet, fake):
    """A cleaner of old files takes them: they are asked for again."""
    page()
    (found,) = scratch.scratch().rglob("*.json")
    assert "access-of" not in found.read_text()
    scratch.remove()
    assert len(page().rows) == 200


def test_the_shipped_collector_goes_by_it(fleet, at, fake):
    """Where there is no MCP server it is the first tier."""
    at(fake.base("zoho"), f"{fake.base('zoho')}/oauth/v2/token", "zoho")
    row = collect(fleet, "accounts")
    assert (row["outcome"], row["tier"], row["records"]) == ("stored", "sdk", zoho.ACCOUNTS)
    assert rows(fleet, zoho_accounts) == zoho.accounts()


def test_below_it_is_rest(fleet, at, script, upstream):
    """A body that the SDK cannot read is a failure of its tier: REST serves, in the same delivery."""
    good = json.dumps({"data": [zoho.account(1)], "info": {"next_page_token": None}}).encode()
    server = script((200, JSON, b'{"data": 3}'), (200, JSON, good))
    at(server.url, f"{upstream.base('zoho')}/oauth/v2/token", "zoho")
    row = collect(fleet, "accounts")
    assert (row["outcome"], row["tier"], row["calls"]) == ("stored", "rest", 3)
    assert rows(fleet, zoho_accounts) == [zoho.account(1)]


def test_what_a_worker_raises_passes(installed):
    """Its time limit reaches a task as any exception, which the SDK wraps like all others."""
    from celery.exceptions import SoftTimeLimitExceeded

    from tasks.collectors.zoho_sdk import _meant, _sdk

    sdk, limit = _sdk(), SoftTimeLimitExceeded()
    wrapped = sdk.SDKException(cause=sdk.SDKException(cause=limit))
    assert _meant(sdk, wrapped, SimpleNamespace()) is limit


def test_without_the_sdk(fleet, at, upstream, monkeypatch):
    """The tier is left out, and who calls its function is told what to do; REST serves."""
    from tasks.collectors import zoho_sdk

    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(SDK)])
    for name in [name for name in sys.modules if name.partition(".")[0] == "zohocrmsdk"]:
        monkeypatch.delitem(sys.modules, name)
    zoho_sdk._imported.cache_clear()
    token_url = f"{upstream.base('zoho')}/oauth/v2/token"
    at(upstream.base("zoho"), token_url, "zoho")
    _, sdk, rest = endpoint_of("zoho.accounts").tiers
    assert (sdk.missing(str), rest.missing(str)) == ("zohocrmsdk is not installed", None)
    row = collect(fleet, "accounts")
    assert (row["outcome"], row["tier"]) == ("stored", "rest")
    at(upstream.base("zoho"), token_url)
    with pytest.raises(ConfigurationError, match=r"pip install 'penstock\[zoho\]'"):
        page()
    zoho_sdk._imported.cache_clear()
