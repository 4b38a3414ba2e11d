"""Lists that name their items only, each of which has to be fetched."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from resilience.errors import ConfigurationError
from tasks.collectors.paging import lookup

_IDS_MAX = 5000  # of a page: they stand in its checkpoint
_ID_MAX = 500  # characters


@dataclass(frozen=True, slots=True)
class Detail:
    """Where the items of a list are: a call for each row of a page, before the next page is read.

    `at` is where a listed row holds the id that {id} stands for in `path` and `params`. What such a call
    brings is a row for the parse function: the answer, or what stands in it at `row`. `weight` is what it
    costs, where that is not what a page of the list does. An item that is gone when it is asked for (404) is
    passed over and counted.
    """

    path: str
    at: str = "id"
    params: Mapping[str, str] = field(default_factory=dict)
    row: str | None = None
    weight: float | None = None

    def __post_init__(self) -> None:
        if not self.path or not self.at:
            raise ConfigurationError(
                "Detail needs `path`, where an item is, and `at`, where a row has its id"
            )

    def ids(self, rows: Sequence[Any]) -> list[str]:
        """The ids of listed rows, each once. Raises TypeError or ValueError for what can be none."""
        found = list(dict.fromkeys(_id(lookup(row, self.at), self.at) for row in rows))
        if len(found) > _IDS_MAX:
            raise ValueError(
                f"a page names {len(found)} items, and {_IDS_MAX} can be kept: ask for smaller pages"
            )
        return found


def _id(value: Any, at: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise TypeError(f"{at} holds no id but {type(value).__name__}")
    if not 0 < len(str(value)) <= _ID_MAX:
        raise ValueError(f"{at} holds an id of {len(str(value))} characters; it may have 1 to {_ID_MAX}")
    if str(value) in {".", ".."}:
        raise ValueError(f"{at} holds {value!r}, which is no id")
    return str(value)
