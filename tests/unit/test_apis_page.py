"""docs/apis.md tells of every shipped collector what it declares."""

import re
from pathlib import Path

import pytest

from tasks.collectors.registry import SHIPPED, load

PAGE = (Path(__file__).parents[2] / "docs/apis.md").read_text()
ROWS = {row[0]: row for row in re.findall(r"^\| `(\w+)` \|(.*)\|(.*)\|(.*)\|(.*)\|$", PAGE, re.MULTILINE)}


def words(cell):
    return re.findall(r"`([^`]+)`", cell)


def test_every_collector_has_a_row():
    """In the order of the alphabet, and none that is not shipped."""
    assert list(ROWS) == sorted(SHIPPED), "docs/apis.md has a row for each, in this order"


@pytest.mark.parametrize("name", sorted(SHIPPED))
def test_a_row_says_what_is_declared(name):
    """Endpoints and limits."""
    api = load([name], {})[name]
    _, endpoints, _, _, limits = ROWS[name]
    assert words(endpoints) == list(api.endpoints)
    declared = [each.spec for each in api.limits]
    for endpoint in api.endpoints.values():
        declared += [word for each in endpoint.limits for word in (each.spec, endpoint.name)]
    assert words(limits) == declared
