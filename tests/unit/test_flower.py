"""How Flower draws a task."""

from types import SimpleNamespace

import pytest

from workers.flower import shortened


@pytest.mark.parametrize(
    ("said", "drawn"),
    [
        (
            "{'run': 17, 'n': 3, 'endpoint': 'asana.tasks', 'symbol': 'a b'}",
            "symbol=a b run=17 n=3",
        ),
        ("{'unit': 3, 'outcome': 'stored', 'records': 9}", "outcome=stored records=9"),
        ("{'run': 17}", "run=17"),
        ("{}", "{}"),
        ("{'outcomes': [{'unit': 3, 'outc...", "{'outcomes': [{'unit': 3, 'outc..."),
        ("'text'", "'text'"),
        ("None", "None"),
        ("", ""),
        (None, None),
    ],
)
def test_a_task_is_short(said, drawn):
    """Pairs, without what the row says already; whatever else it may be stays as it is."""
    task = shortened(SimpleNamespace(kwargs=said, result=said))
    assert (task.kwargs, task.result) == (drawn, drawn)
