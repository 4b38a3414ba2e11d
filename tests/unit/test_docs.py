"""The list of capabilities names only what is there."""

import re
from pathlib import Path

import pytest

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
