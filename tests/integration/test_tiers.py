"""Endpoints with several ways to their data: down where one fails, and back up when it is well again."""

import json
import threading

import pytest
from click.testing import CliRunner

from resilience.errors import NotFoundError, RateLimitError, ServerError
from resilience.guard import CircuitState
from tasks import circuits
from tasks.collectors import Fetched
from tasks.collectors.registry import endpoint_of
from tasks.limits import circuit_named, guard, limits, registry
from tasks.models import records
from workers.cli import main

from .conftest import Scripted, connect, on_both
from .tiered import steps

DATABASES = ("sqlite",)
CRM = "collect.crm"


@pytest.fixture
def mcp():
    """Another host."""
    made = Scripted()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def by_mcp(*ids, **more):
    return 200, {}, json.dumps({"result": {"rows": [{"id": n, "name": "mcp"} for n in ids], **more}}).encode()


def by_rest(*ids, **more):
    return 200, {}, json.dumps({"data": [{"id": n, "name": "rest"} for n in ids], **more}).encode()


def by_sdk(*ids):
    return Fetched([{"id": n, "name": "sdk"} for n in ids])


@pytest.fixture
def crm(fleet, scripted, mcp):
    """All three tiers answer with one account."""
    fleet.configure(
        {"crm": {"base_url": scripted.url}},
        PENSTOCK_COLLECTORS="tests.integration.tiered:crm",
        CRM_TOKEN="crm-secret-token",
        CRM_MCP_URL=f"{mcp.url}/mcp/message?key=mcp-secret-key",
    )
    connect(fleet.inbox.app)
    scripted.answers, mcp.answers = [by_rest(1)], [by_mcp(1)]
    steps["sdk"] = lambda checkpoint: by_sdk(1)
    yield scripted
    steps.clear()


def raising(error):
    def raise_it(checkpoint):
        raise error

    return raise_it


def collect(fleet, *symbols):
    """One delivery for each symbol; the units as SQL has them."""
    run = fleet.run("crm.accounts", symbols or ("north",))
    for _ in symbols or "n":
        fleet.inbox.deliver(CRM)
    return fleet.units(run)


def names(fleet):
    return [row["data"]["name"] for row in fleet.installation.rows(records)]


def state(tier):
    return str(circuit_named(f"crm.accounts.{tier}").current_state)


@on_both
def test_the_best_tier_serves(fleet, crm, mcp):
    """By JSON-RPC to its own host, with neither token nor headers of the API; the unit says who served it."""
    [row] = collect(fleet)
    assert (row["outcome"], row["tier"], row["calls"]) == ("stored", "mcp", 1)
    assert names(fleet) == ["mcp"]
    [(path, headers)] = mcp.requests
    assert path == "/mcp/message?key=mcp-secret-key"
    assert "Authorization" not in headers
    assert json.loads(mcp.bodies[0])["method"] == "tools/call"
    assert crm.requests == []


def test_down_the_tiers_in_one_delivery(fleet, crm, mcp):
    """A 503 there, a failure of the library, and the declared call at last, with its own token."""
    mcp.answers = [(503, {}, b"{}")]
    steps["sdk"] = raising(ServerError("no"))
    [row] = collect(fleet)
    assert (row["outcome"], row["tier"], row["calls"], row["attempts"]) == ("stored", "rest", 3, 0)
    assert names(fleet) == ["rest"]
    assert crm.requests[0][1]["Authorization"] == "Bearer crm-secret-token"


def test_an_open_circuit_is_passed_by_and_a_probe_leads_back(fleet, crm, mcp):
    """Two failures open it; while it is open nobody asks there; half-open, a unit does, and it closes."""
    mcp.answers = [(503, {}, b"{}")]
    assert [row["tier"] for row in collect(fleet, "north", "south")] == ["sdk", "sdk"]
    assert state("mcp") == "open"
    assert [row["tier"] for row in collect(fleet, "north", "south")] == ["sdk", "sdk"]
    assert len(mcp.requests) == 2
    mcp.answers = [by_mcp(1)]
    circuits.lift(circuit_named("crm.accounts.mcp"), by="me", why="it is well")
    assert [row["tier"] for row in collect(fleet, "north", "south")] == ["mcp", "mcp"]
    assert state("sdk") == state("rest") == "closed"


def test_a_half_open_circuit_without_a_permit_is_passed_by(fleet, crm, mcp, monkeypatch):
    """Nobody waits for the permit where another tier serves."""
    from resilience.guard import Wait
    from tasks import calls

    ask = guard().admit

    def no_permit(asked, **options):
        if asked.circuits[0].circuit == "crm.accounts.mcp":
            return Wait(2.0, None, "half_open", "crm.accounts.mcp")
        return ask(asked, **options)

    monkeypatch.setattr(guard(), "admit", no_permit)
    monkeypatch.setattr(calls.time, "sleep", lambda seconds: pytest.fail("it waited"))
    [row] = collect(fleet)
    assert (row["tier"], row["waits"]) == ("sdk", 0)


def test_an_answer_about_the_symbol_is_final(fleet, crm, mcp):
    """No other tier would know better."""
    mcp.answers = [(404, {}, b"{}")]
    [row] = collect(fleet)
    assert (row["outcome"], row["reason"]) == ("failed", "not_found")
    assert crm.requests == []
    steps["sdk"] = raising(NotFoundError())
    mcp.answers = [(503, {}, b"{}")]
    assert collect(fleet)[0]["reason"] == "not_found"


def test_another_hosts_limits_and_keys_are_its_own(fleet, crm, mcp):
    """Its 429 and its 401 lead on to the next tier, and hold nobody back there."""
    mcp.answers = [(429, {"Retry-After": "60"}, b"{}")]
    assert [row["tier"] for row in collect(fleet, "north", "south")] == ["sdk", "sdk"]
    assert len(mcp.requests) == 1
    guard().store.mark_fresh(["crm"])


def test_wrong_keys_of_another_host(fleet, crm, mcp):
    """They are nothing to those who call without them."""
    mcp.answers = [(401, {}, b"{}")]
    [row] = collect(fleet)
    assert row["tier"] == "sdk"


def test_a_shared_limit_is_waited_for(fleet, crm, mcp):
    """A 429 of a tier on the API's own host closes the limit of all who call there."""
    mcp.answers = [(503, {}, b"{}")]
    steps["sdk"] = raising(RateLimitError(retry_after_s=60))
    [row] = collect(fleet)
    assert (row["state"], row["throttles"], row["attempts"]) == ("waiting", 1, 0)
    assert crm.requests == []


def test_all_fail(fleet, crm, mcp):
    """It is tried again, and in the end says what each tier said."""
    mcp.answers, crm.answers = [(503, {}, b"{}")], [(500, {}, b"oops")]
    steps["sdk"] = raising(ServerError("the library has no connection"))
    run = fleet.run("crm.accounts", ["north"])
    assert fleet.inbox.deliver(CRM)[0] == "RETRY"
    assert fleet.unit(run)["attempts"] == 1
    assert fleet.inbox.deliver(CRM)[1]["outcome"] == "failed"
    row = fleet.unit(run)
    assert (row["outcome"], row["reason"], row["calls"]) == ("failed", "all_tiers_failed", 6)
    assert row["error"]["error"] == "AllTiersFailedError"
    assert all(
        said in row["error"]["message"] for said in ("mcp: ", "sdk: the library has", "rest: ", "oops")
    )
    assert "mcp-secret-key" not in row["error"]["message"]


def test_all_are_open(fleet, crm):
    """It waits for the circuit that opens first, parked like any other unit; a scheduled one is skipped."""
    run = fleet.run("crm.accounts", ["north"])
    for name in ("mcp", "sdk", "rest"):
        circuits.force(circuit_named(f"crm.accounts.{name}"), CircuitState.FORCED_OPEN, by="me", why="a test")
    fleet.inbox.deliver(CRM)
    row = fleet.unit(run)
    assert (row["state"], row["reason"], row["calls"]) == ("waiting", "circuit_open", 0)
    assert row["parked_on"].startswith("crm.accounts.")
    assert crm.requests == []
    from tasks.runs import carry_on

    carry_on(run)
    assert fleet.inbox.length(CRM) == 0


def test_a_unit_goes_on_by_the_tier_that_began(fleet, crm, mcp, monkeypatch):
    """Its checkpoint means nothing to another tier, which would begin anew: as it does when the first one fails."""
    mcp.answers = [by_mcp(1, next={"page": 2}), (503, {}, b"{}")]
    steps["sdk"] = raising(ServerError("no"))
    crm.answers = [by_rest(1, next="p2"), by_rest(2, 3)]
    [row] = collect(fleet)
    assert (row["tier"], row["records"], row["calls"]) == ("rest", 3, 5)
    assert [path for path, _ in crm.requests] == ["/accounts?of=north", "/accounts?of=north&page=p2"]
    assert names(fleet) == ["rest"] * 3


def test_a_retry_goes_on_by_its_tier(fleet, crm, mcp):
    """The saved checkpoint names the tier that made it."""
    mcp.answers = [(503, {}, b"{}"), (503, {}, b"{}"), by_mcp(9)]
    steps["sdk"] = raising(ServerError("no"))
    crm.answers = [by_rest(1, next="p2"), (503, {}, b"{}"), by_rest(2)]
    run = fleet.run("crm.accounts", ["north"])
    fleet.configure({"crm": {"base_url": crm.url, "breaker": {"failures": 100}}})
    assert fleet.inbox.deliver(CRM)[0] == "RETRY"
    assert fleet.unit(run)["checkpoint"]["tier"] == "rest"
    fleet.inbox.deliver(CRM)
    row = fleet.unit(run)
    assert (row["outcome"], row["tier"], row["records"]) == ("stored", "rest", 2)


def test_tiers_that_cannot_be_used_here(fleet, crm, mcp, monkeypatch):
    """Without an address or a library they are passed by, and `penstock collectors` says why."""
    monkeypatch.delenv("CRM_MCP_URL")
    fleet.installation.forget()
    [row] = collect(fleet)
    assert row["tier"] == "sdk"
    found = json.loads(CliRunner().invoke(main, ["collectors", "--json"]).output)
    assert found[0]["tiers"] == [
        {"tier": "mcp", "missing": "the secret CRM_MCP_URL is missing: set CRM_MCP_URL, or CRM_MCP_URL_FILE to a file that holds it"},
        {"tier": "sdk", "missing": None},
        {"tier": "rest", "missing": None},
    ]  # fmt: skip
    assert "CRM_MCP_URL" in CliRunner().invoke(main, ["collectors"], env={"COLUMNS": "300"}).output


def test_an_address_that_is_none(fleet, crm, monkeypatch):
    """What it is stands nowhere."""
    monkeypatch.setenv("CRM_MCP_URL", "ftp://secret.example")
    fleet.installation.forget()
    assert collect(fleet)[0]["tier"] == "sdk"
    said = endpoint_of("crm.accounts").tiers[0].missing(lambda name: "ftp://secret.example")
    assert said == "tier 'mcp': what CRM_MCP_URL holds is no address like https://…"


def test_circuits_and_limits_of_tiers_are_listed(fleet, crm):
    """A circuit for each tier, none for the endpoint; limits of the other host beside those of the API."""
    assert sorted(registry().statuses()) == [f"crm/crm.accounts.{name}" for name in ("mcp", "rest", "sdk")]
    with pytest.raises(Exception, match=r"a circuit for each of its tiers: crm\.accounts\.mcp, "):
        circuit_named("crm.accounts")
    found = {(limiter.name, limiter.key) for limiter in limits([endpoint_of("crm.accounts")])}
    assert found == {("6000/1m", "account"), ("600/1m", "tier:accounts.mcp:account")}


def test_who_served_is_shown(fleet, crm, mcp):
    """In the run's page and its JSON."""
    mcp.answers = [by_mcp(1), (503, {}, b"{}")]
    rows = collect(fleet, "north", "south")
    run = str(rows[0]["run"])
    shown = json.loads(CliRunner().invoke(main, ["show", run, "--json"]).output)
    assert shown["tiers"] == {"crm.accounts": {"mcp": 1, "sdk": 1}}
    assert "mcp 1, sdk 1" in CliRunner().invoke(main, ["show", run], env={"COLUMNS": "200"}).output


def test_a_secret_address_stands_nowhere(fleet, crm, mcp, monkeypatch, caplog):
    """Neither in what the function is shown nor in what it raises."""
    from tasks import session

    seen = []
    let = session.GuardedSession.let

    def look(guarded, function, *args):
        guarded.raises = False
        seen.append(guarded.base_url)
        return let(guarded, lambda unit, checkpoint, own: own.get("/x").raise_for_status(), *args)

    monkeypatch.setattr(session.GuardedSession, "let", look)
    monkeypatch.setattr(
        endpoint_of("crm.accounts").tiers[0].__class__,
        "missing",
        lambda tier, resolve: None if tier.name == "mcp" else "no",
    )
    mcp.answers = [(410, {}, b"{}")]
    [row] = collect(fleet)
    assert mcp.requests[0][0] == "/mcp/message/x?key=mcp-secret-key"
    assert seen == ["https://crm_mcp_url"]
    assert (row["outcome"], row["reason"]) == ("failed", "not_found")
    assert "mcp-secret-key" not in caplog.text
