"""The list of capabilities names only what is there, and the programs in the pages run."""

import re
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from tasks.collectors import Unit
from tasks.collectors.registry import load
from workers.cli import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "capabilities.md").read_text()
THERE, _, MISSING = TEXT.partition("## What is not there yet")


def rows(text):
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"
    ]
    return [row for row in cells if any(row) and row[0] != "what" and set(row[0]) != {"-"}]


@pytest.mark.parametrize("row", rows(THERE), ids=lambda row: row[0][:40])
def test_capability_has_a_place_and_a_proof(row):
    """Files that exist, and tests or targets that can fail."""
    what, where, proof = row
    places, proofs = re.findall(r"`([^`]+)`", where), re.findall(r"`([^`]+)`", proof)
    assert what
    assert places
    assert proofs
    makefile = (ROOT / "Makefile").read_text()
    for name in [*places, *proofs]:
        if name.startswith("make "):
            assert re.search(rf"^{name[5:]}:", makefile, re.MULTILINE), name
        else:
            assert (ROOT / name).is_file(), name
    assert all(re.fullmatch(r"tests/[\w/]+/test_\w+\.py|make \w+", name) for name in proofs)


def test_groups():
    """Those that a reader looks for, each with something in it."""
    found = [part.partition("\n") for part in THERE.split("\n## ")[1:]]
    assert [name for name, _, _ in found] == [
        "Circuits", "Limits", "Header feedback", "Retries", "Runs and results", "Collectors", "Schedules", "Errors",
        "Operation",
    ]  # fmt: skip
    assert all(rows(text) for _, _, text in found)


def test_every_command_and_collector_is_listed():
    """What is added has to be told, with its proof."""
    assert all(f"`penstock {name}`" in THERE for name in main.commands)
    assert all(f"`tasks/collectors/{name}.py`" in THERE for name in load(None, {}))


def test_what_is_missing_is_told_in_a_line_each():
    """So that nobody is misled."""
    missing = rows(MISSING)
    assert len(missing) > 10
    assert all(len(row) == 2 and all(row) for row in missing)


def test_readme_names_what_is_missing():
    """All of it and nothing else, in the order of the table."""
    said = " ".join((ROOT / "README.md").read_text().split())
    (names,) = re.findall(r"Not built yet: (.*?)\. ", said)
    assert names.split("; ") == [name for name, _ in rows(MISSING)]


def programs(page):
    """The Python blocks of a page."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)


def defined(text):
    """What a program leaves defined."""
    names = {}
    exec(compile(text, "a block", "exec"), names)
    return names


def run(page):
    """Each Python block of a page, as a program of its own: what it leaves defined."""
    return [defined(text) for text in programs(page)]


def test_every_page_with_programs_is_run():
    """A new one needs a test that looks at what it does."""
    pages = {path.name for path in (ROOT / "docs").glob("*.md") if "```python" in path.read_text()}
    assert pages == {
        "circuits.md",
        "classes.md",
        "collectors.md",
        "concurrency.md",
        "fallbacks.md",
        "fetching.md",
        "health.md",
        "limits.md",
        "retries.md",
    }


def test_declared_collector_asks_as_the_page_says():
    """Its first page, and a row."""
    page, _sources, _mail = run("collectors.md")
    endpoint = page["desk"].endpoints["tickets"]
    unit = Unit(
        run=1, n=0, collector="desk", endpoint="tickets", symbol="sales", cursor=None,
        start=datetime(2026, 1, 5, tzinfo=UTC), end=None,
    )  # fmt: skip
    request = endpoint.request(unit, endpoint.first(unit))
    assert request.url == "https://desk.example/api/v2/tickets"
    assert request.params["queue"] == "sales"
    assert request.params["limit"] == "200"
    assert request.params["updated_since"].startswith("2026-01-05T00:00:00")
    row = endpoint.parse({"id": 7, "updated_at": "2026-01-05T10:00:00Z"}, unit)
    assert row == {"id": 7, "queue": "sales", "updated_at": datetime(2026, 1, 5, 10, tzinfo=UTC)}


def test_declared_mail_is_listed_fetched_and_then_followed():
    """In thirty lines: where it begins, what a list and the history lead to."""
    *_, page = run("collectors.md")
    (_, _, program) = programs("collectors.md")
    assert len(program[program.index("def added") :].splitlines()) <= 30
    endpoint = page["mail"].endpoints["messages"]
    unit = Unit(1, 0, "mail", "messages", "me", None, None, None)

    def asked(unit, checkpoint):
        request = endpoint.request(unit, checkpoint)
        return request.url.removeprefix("https://mail.example/v1/users/me/"), request.params

    assert asked(unit, endpoint.first(unit)) == ("profile", {})
    listed = {"mode": "full", "ids": ["m1"], "of": 1, "then": None}
    assert asked(unit, listed) == ("messages/m1", {"format": "metadata"})
    later = replace(unit, cursor="17")
    assert asked(later, endpoint.first(later)) == ("history", {"startHistoryId": "17", "maxResults": "500"})
    history = {"history": [{"messagesAdded": [{"message": {"id": "m2"}}]}, {"labelsAdded": []}]}
    assert page["added"](history) == [{"id": "m2"}]


class Archive:
    """A session whose server has 700 documents."""

    def __init__(self):
        self.asked = []

    def post(self, path, json):
        self.asked.append((path, json))
        return self.answer(id="s1")

    def get(self, path, params):
        self.asked.append((path, params))
        return self.answer(documents=[{"id": params["start"], "changed": "2026-01-05T10:00:00Z"}], total=700)

    def answer(self, **body):
        self.json = lambda: body
        return self


def test_function_fetches_as_the_page_says():
    """It orders a search, and reads it in two pages."""
    page, tiered = run("fetching.md")
    assert [tier.name for tier in tiered["crm"].endpoints["accounts"].tiers] == ["mcp", "sdk", "rest"]
    endpoint, session = page["archive"].endpoints["documents"], Archive()
    unit = Unit(
        run=1, n=0, collector="archive", endpoint="documents", symbol="maps", cursor=None, start=None, end=None,
    )  # fmt: skip
    first = endpoint.take(unit, {}, endpoint.fetch(unit, {}, session), None)
    assert first.next == {"order": "s1", "start": 500}
    last = endpoint.take(unit, first.next, endpoint.fetch(unit, first.next, session), None)
    assert last.next is None
    assert [row["key"] for row in (*first.rows, *last.rows)] == ["0", "500"]
    assert [path for path, _ in session.asked] == ["/searches", *["/searches/s1/documents"] * 2]


def test_circuit_and_guard_do_what_the_page_says(capsys):
    """Two failures open the circuit, which refuses the third call; the guard gives its word."""
    alone, limited, guarded = run("limits.md")
    assert limited["limiter"].get_stats()["total_requests"] == 4
    assert limited["limiter"].get_stats()["total_violations"] == 1
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == ["failed 1 times", "failed 2 times"]
    assert said[2].startswith("not called, again at ")
    assert alone["circuit"].current_state == "open"
    assert type(guarded["verdict"]).__name__ in {"Go", "Wait"}


def test_circuits_do_what_the_page_says(capsys):
    """Awaited, asked by hand, and all at once."""
    run("circuits.md")
    assert capsys.readouterr().out.splitlines() == [
        "BTC 41000",
        "blocked for 300 s",
        f"open 2 1 {1 / 3}",
        "orders: closed > open (consecutive failures)",
        "shop/orders open 100% failed",
        "shop/prices closed 0% failed",
        "orders: open > closed (the shop is back)",
        "reset ['shop/orders']",
    ]


def test_ways_do_what_the_page_says(capsys):
    """Down a tier, three kinds of failure told apart, and the decorators."""
    run("fallbacks.md")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "{'id': '4711', 'source': 'sdk'} from sdk"
    assert said[1] == "every way failed: {'sdk': 'no account 4711 today', 'rest': 'no account 4711 today'}"
    assert said[2] == "tried 2 times, the last time: no account 4711 today"
    assert said[3].startswith("not called: direct is open until ")
    assert said[4:] == ["41000 0"]


def test_many_calls_do_what_the_page_says(capsys):
    """Items, pages, tasks, batches, and asyncio."""
    run("concurrency.md")
    assert capsys.readouterr().out.splitlines() == [
        "BTC 300",
        "USDC 400",
        "{'BTC': 300, 'USDC': 400} [('LUNA', 'no market LUNA')]",
        "[0, 1, 2, 3, 4, 5]",
        "{'orders': 12} {'stock': ZeroDivisionError('division by zero')}",
        "[0, 1, 4, 5, 6] but not [[2, 3]]",
        *("0", "1", "4", "9", "16"),
    ]


def test_health_is_what_the_page_says(capsys):
    """One answer, a monitor that finds out, and a symbol that comes back."""
    run("health.md")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "True degraded"
    assert re.fullmatch(r"shop/orders circuit_open 0\.0 \d{4}-.*Z", said[1])
    assert said[2] == "shop/stock healthy 1.0 None"
    assert said[3] == "circuit_open ['shop/orders has opened, 1 failures']"
    assert [line.split()[:3] for line in said[4:7]] == [["shop/orders", "open", "1"]] * 3
    assert said[7:] == ["True False", "False"]


def test_retries_and_sources_do_what_the_page_says(capsys):
    """Each program says what the page lets expect."""
    again, endings, source, awaited = map(defined, programs("retries.md")[:4])
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == ["call 1: busy", "call 2: busy", "42.10", "42.20"]
    assert again["circuit"].view.reading.total_failures == 2
    assert endings["said"][0] == "gave up after 3 calls: out of order"
    assert [line.partition(" before ")[0] for line in endings["said"][1:]] == ["not", "not"]
    assert list(source["rows"]) == ["BTC/USDT", "ETH/USDT"]
    assert said[-3:-1] == ["GONE/USDT is not traded here", "closed 4 calls, 1 retried"]
    assert said[-1] == "['tasks of mill', 'tasks of weir']"
    assert awaited["tasks"].__name__ == "tasks"


def test_classes_do_what_the_page_says(tmp_path, capsys):
    """What a constructor refuses; and two programs without any server, each with a database of its own."""
    declared, once, for_ever = programs("classes.md")
    names = defined(declared)
    assert capsys.readouterr().out.splitlines() == [
        "api_key is missing: name the secret that holds the key",
        "config has no interval",
    ]
    assert list(names["candles"].api.endpoints) == ["collect"]
    for program, said in (
        (once, "10\nTrue 700\nTrue healthy 8\n['broken: No data received']\nbroken: No data received\n"),
        (for_ever, "700\nTrue\nTrue\n"),
    ):
        done = subprocess.run(
            (sys.executable, "-X", "dev", "-W", "error", "-c", program),
            cwd=ROOT, env={"PENSTOCK_STATE_DIR": str(tmp_path / str(len(said)))}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, said), done.stderr


def test_shared_source_does_what_the_page_says(redis_url):
    """In a process that has no sources yet; afterwards Redis knows the source, and nothing was left open."""
    (shared,) = programs("retries.md")[4:]
    done = subprocess.run(
        (sys.executable, "-X", "dev", "-W", "error", "-c", shared),
        cwd=ROOT, env={"PENSTOCK_REDIS_URL": redis_url}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "rent: 17.40\n", "")
    with redis.Redis.from_url(redis_url) as client:
        assert any(b"ledger" in key for key in client.scan_iter())
