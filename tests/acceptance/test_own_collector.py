"""A collector of a user's own package, found by its entry point, against a server that nobody here wrote."""

import inspect

from sqlalchemy import select

from tasks.models import records
from tests.acceptance import gauges


def test_table_of_a_datasette(fleet, levels):
    """Page after page by `_next`, until every row of the table is kept, once."""
    for _ in range(2):
        result = fleet.collect("run", "gauges")
        assert (result["outcome"], result["total_items"]) == ("ok", len(gauges.STATIONS))
        assert result["records"] == len(levels)
        assert result["calls"] == 4 * 8  # 715 or 716 rows at 100 a page
        kept = fleet.rows(select(records).where(records.c.source == "gauges"))
        names = ("station", "day", "level_mm", "note")
        assert sorted(tuple(row["data"][name] for name in names) for row in kept) == sorted(levels)
        assert {row["endpoint"] for row in kept} == {"levels"}
        assert all(row["symbol"] == row["data"]["station"] for row in kept)


def test_declaration_is_short():
    """Thirty lines at most, imports and all."""
    assert len(inspect.getsource(gauges).splitlines()) <= 30
