"""Where the symbols of an endpoint come from when they are no list: a table, or another endpoint's rows."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Table

from resilience.errors import ConfigurationError
from tasks.collectors.fields import duration
from tasks.collectors.rows import kind_of

if TYPE_CHECKING:
    from tasks.collectors.endpoint import Endpoint


@dataclass(frozen=True, slots=True, eq=False)
class FromTable:
    """The values of a column, each once: of all rows, or of those that fulfil `where`.

    They are looked up when a run is planned, and again once that was `refresh` ago.
    """

    table: Table = field(repr=False)
    column: str
    where: ColumnElement[bool] | None = field(default=None, repr=False)
    refresh: str | timedelta = "1h"

    @property
    def refresh_s(self) -> float:
        """How long a list is used before it is looked up again."""
        return duration(self.refresh, "FromTable.refresh").total_seconds()


@dataclass(frozen=True, slots=True, eq=False)
class FromEndpoint:
    """A field of the rows of another endpoint of the same Api, as they are stored, each value once.

    It is a column of the table of that endpoint or, where it has none, a field of its JSON rows. They are
    looked up when a run is planned, and again once that was `refresh` ago.
    """

    endpoint: str
    field: str
    refresh: str | timedelta = "1h"

    @property
    def refresh_s(self) -> float:
        """How long a list is used before it is looked up again."""
        return duration(self.refresh, "FromEndpoint.refresh").total_seconds()


Symbols = tuple[str, ...] | Callable[[], Iterable[str]] | FromTable | FromEndpoint | None


def check(endpoint: "Endpoint") -> None:
    """A source exists and holds what can be a symbol. Raises ConfigurationError."""
    full, source = endpoint.full_name, endpoint.symbols
    if not isinstance(source, FromTable | FromEndpoint):
        return
    duration(source.refresh, f"{full}: symbols: refresh")
    if isinstance(source, FromTable):
        _column(full, source.table, source.column)
        return
    other = endpoint.api.endpoints.get(source.endpoint)
    if other is None:
        known = ", ".join(endpoint.api.endpoints) or "none"
        raise ConfigurationError(
            f"{full}: symbols come from endpoint {source.endpoint!r}, which has to be declared before it in "
            f"{endpoint.api.name}; declared there: {known}"
        )
    if not other.generic:
        _column(full, other.table, source.field)


def _column(endpoint: str, table: Any, name: str) -> None:
    if not isinstance(table, Table):
        raise ConfigurationError(f"{endpoint}: FromTable takes a table, and not {type(table).__name__}")
    if name not in table.columns:
        raise ConfigurationError(
            f"{endpoint}: symbols come from column {name!r}, which table {table.name} does not have; "
            f"it has {', '.join(table.columns.keys())}"
        )
    if kind_of(table.columns[name]) not in {str, int}:
        raise ConfigurationError(
            f"{endpoint}: symbols come from column {name!r} of table {table.name}, which holds "
            f"{kind_of(table.columns[name]).__name__}; symbols are texts or whole numbers"
        )
