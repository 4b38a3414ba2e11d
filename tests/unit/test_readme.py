"""Nothing in the README is only text: each block is run, here or in the test that is named.

Of commands it is only seen here that they are understood. tests/acceptance/test_up.py types those that
a running `penstock up` can answer, of the README and of all pages.
"""

import re
import shlex
import tomllib
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import click
import pytest
import yaml
from click.testing import CliRunner

from tasks.collectors import Unit
from tasks.overrides import parse_overrides
from tasks.settings import Settings
from workers.cli import main

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language, pages=PAGES):
    return [text for page in pages for kind, text in FENCED.findall(page.read_text()) if kind == language]


COMMANDS = sorted(
    {line.partition("  #")[0].strip() for block in blocks("sh") for line in block.splitlines()} - {""}
)


def target(line):
    """`make demo KEEP=1`: the Makefile has it."""
    words = [word for word in shlex.split(line)[1:] if "=" not in word]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words)


def activation(line):
    """`. .venv/bin/activate`: where `make setup` makes it."""
    assert re.search(
        rf"^BIN := {Path(shlex.split(line)[1]).parent}$", (ROOT / "Makefile").read_text(), re.MULTILINE
    )


def setting(line):
    """`export PENSTOCK_X=y`: a setting that exists, with a value that it takes."""
    name, _, value = line.removeprefix("export ").partition("=")
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patch:
        patch.setenv(name, value)
        assert getattr(Settings(), name.removeprefix("PENSTOCK_").lower())


def command(line):
    """`penstock …`: options and values are understood."""
    words, found = shlex.split(line)[1:], main
    while words and isinstance(found, click.Group):
        name, found, words = found.resolve_command(click.Context(found), words)
    found.make_context(name, list(words))


def compose(line):
    """Only what it names can be checked without an engine; tests/integration/test_compose.py has the rest."""
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    words = shlex.split(line)[2:]
    scaled = {word.partition("=")[0] for word in words if re.fullmatch(r"\w+=\d+", word)}
    assert scaled <= services.keys()
    if words[0] == "exec":
        command(shlex.join(words[2:]))
        assert words[1] in services
    else:
        assert words[0] in {"up", "down", "logs"}


def package(line):
    """The build server installs it by the same name."""
    assert set(shlex.split(line)[2:]) <= set(re.findall(r"[\w-]+", (ROOT / ".ci/run").read_text()))


CHECKS = {
    "make": target,
    ".": activation,
    "export": setting,
    "penstock": command,
    "docker": compose,
    "apt-get": package,
}


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line):
    """By the program that it is typed for."""
    CHECKS[line.split()[0]](line)


def test_every_kind_of_block_is_known():
    """A new kind needs a check of its own; `text` is for pictures."""
    kinds = {kind for page in PAGES for kind, _ in FENCED.findall(page.read_text())}
    assert kinds == {"python", "sh", "toml", "text"}
    assert all(page.read_text().count("```") == 2 * len(FENCED.findall(page.read_text())) for page in PAGES)


# What somebody may want to type or to paste, but not a line of a drawing.
CODE = re.compile(
    r"^(penstock|make|docker)\b.*|^\s*(import|from|export|await|def|async|class|@\w+)\b.*|^\s*[\w.]+ ?=[^=].*",
    re.MULTILINE,
)


def test_pictures_hide_no_code():
    """A block that calls itself text would be run by nobody."""
    assert CODE.search("x\nprices.store = 1")
    assert CODE.search("penstock circuits\n")
    assert [found.group() for text in blocks("text") for found in CODE.finditer(text)] == []


def test_exit_statuses_name_who_else_ends_with_1(tmp_path, monkeypatch):
    """What does not get on is no wrong usage; tests/integration/test_health.py has the ways not to."""
    monkeypatch.chdir(tmp_path)
    (cell,) = re.findall(r"^\| 1 \|[^|]+\|([^|]+)\|$", TEXT, re.MULTILINE)
    (words,) = re.findall(r"`penstock (\w+)`", cell)
    assert CliRunner().invoke(main, [words]).exit_code == 1


def test_declaration_is_complete():
    """It runs as it stands, in 30 lines; tests/acceptance/test_up.py collects with it."""
    (source,) = blocks("python", [ROOT / "README.md"])
    assert len(source.splitlines()) <= 30
    namespace = {}
    exec(compile(source, "prices.py", "exec"), namespace)
    endpoint = namespace["market"].endpoints["hours"]
    start = datetime(2024, 1, 1, tzinfo=UTC)
    unit = Unit(
        run=1, n=0, collector="market", endpoint="hours", symbol="BTCUSDT", cursor=None,
        start=start, end=start.replace(day=2),
    )  # fmt: skip
    request = endpoint.request(unit, endpoint.first(unit))
    assert request.url == "https://api.binance.com/api/v3/klines"
    assert (request.params["symbol"], request.params["interval"]) == ("BTCUSDT", "1h")
    row = endpoint.parse([1_704_067_200_000, "1", "2", "3", "4.50"], unit)
    assert row == {"symbol": "BTCUSDT", "open_time": start, "close": Decimal("4.50")}


@pytest.mark.parametrize("text", blocks("toml"))
def test_settings_file_is_understood(text):
    """By the reader of penstock.toml, and by the collectors it speaks of."""
    from tasks.collectors.registry import load

    assert parse_overrides(text, "README.md") == tomllib.loads(text)
    assert load(None, tomllib.loads(text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    """Links, and paths in tables and sentences."""
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for path in re.findall(r"`((?:tests|tasks|workers|resilience|migrations|docs)/[\w/.-]*)`", text):
        assert (ROOT / path).exists(), path


def test_everything_asked_for_has_a_row_and_a_proof():
    """Seven packages, three uses, eight parts."""
    table = TEXT.partition("## What was asked for")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if "|" in line
    ][2:]
    groups = {}
    for first, _, proof in rows:
        if first.startswith("**"):
            group = groups.setdefault(first.strip("*"), [])
        else:
            assert re.search(r"`tests/[\w/]+\.py`", proof), first
            group.append(first.strip("`"))
    assert groups["packages"] == ["celery", "redis", "kombu", "requests", "pybreaker", "flower", "sqlalchemy"]
    assert len(groups["uses"]) == 3
    assert groups["shape"] == [
        "pyproject.toml", "workers/", "tasks/", "resilience/", "migrations/", "tests/", "docker-compose.yml", "README.md",
    ]  # fmt: skip


def test_few_words():
    """A glossary that nobody finishes helps nobody."""
    glossary = TEXT.partition("## Words")[2]
    words = re.findall(r"^\| (\w+) \|", glossary, re.MULTILINE)
    assert 10 < len(words) <= 20
    assert len(set(words)) == len(words)
