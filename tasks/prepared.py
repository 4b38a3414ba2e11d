"""Statements that are compiled once, and then go to the driver.

SQLAlchemy prepares a statement anew for each execution, which takes longer than the database needs to find a
row by its key. What a unit executes several times a second is built by SQLAlchemy too, but only once: its
text, the places of its parameters, and what converts them and the columns that come back.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Dialect
from sqlalchemy.types import TypeEngine

Convert = Callable[[Any], Any]
Place = str | int  # of a parameter: its name or its position, as the driver wants it


class Prepared:
    """A statement, as `build` makes it for a dialect; parameters without a value are given by their names."""

    def __init__(self, build: Callable[[Dialect], Any]) -> None:
        self._build = build
        self._forms: dict[str, _Form] = {}

    def run(self, connection: Connection, given: Mapping[str, Any]) -> int:
        """Execute it; returns how many rows it changed."""
        form = self._form(connection.dialect)
        cursor = _execute(connection, form.sql, form.bound(given))
        changed: int = cursor.rowcount
        cursor.close()
        return changed

    def row(self, connection: Connection, given: Mapping[str, Any]) -> dict[str, Any] | None:
        """Execute it; returns the row that comes back, if one does."""
        form = self._form(connection.dialect)
        cursor = _execute(connection, form.sql, form.bound(given))
        found = cursor.fetchone()
        row = None if found is None else form.read(found, cursor.description)
        cursor.close()
        return row

    def _form(self, dialect: Dialect) -> "_Form":
        form = self._forms.get(dialect.name)
        if form is None:
            form = self._forms[dialect.name] = _Form(self._build(dialect), dialect)
        return form


class _Form:
    """A statement in the words of one dialect."""

    def __init__(self, statement: Any, dialect: Dialect) -> None:
        compiled = statement.compile(dialect=dialect)
        assert not compiled.post_compile_params, "a parameter that becomes several has no place of its own"
        self.sql = str(compiled)
        converts = {name: bind_processor(bind.type, dialect) for name, bind in compiled.binds.items()}
        names: Sequence[str] = compiled.positiontup or list(compiled.binds)
        places = list(enumerate(names)) if compiled.positiontup else [(name, name) for name in names]
        own = {name: bind.value for name, bind in compiled.binds.items() if not bind.required}
        self._given: list[tuple[Place, str, Convert | None]] = [
            (place, name, converts[name]) for place, name in places if name not in own
        ]
        values = {name: _converted(value, converts[name]) for name, value in own.items()}
        # What is there already is copied; the rest is put into its places.
        self._values: Any = (
            [values.get(name) for name in names] if compiled.positiontup else dict.fromkeys(names) | values
        )
        self._dialect = dialect
        self._types = {
            name: column.type for name, column in getattr(statement, "exported_columns", {}).items()
        }
        self._reads: list[tuple[str, Convert]] | None = None

    def bound(self, given: Mapping[str, Any]) -> Any:
        values = self._values.copy()
        for place, name, convert in self._given:
            value = given[name]
            values[place] = value if convert is None else convert(value)
        return values

    def read(self, row: Sequence[Any], description: Sequence[Any]) -> dict[str, Any]:
        if self._reads is None:
            self._reads = self._readers(description)
        found = dict(zip(self._types, row, strict=True))
        for name, read in self._reads:
            found[name] = read(found[name])
        return found

    def _readers(self, description: Sequence[Any]) -> list[tuple[str, Convert]]:
        """How columns are read, which for some types depends on what the driver says of them."""
        found = []
        for (name, kind), (_, code, *_) in zip(self._types.items(), description, strict=True):
            read = kind.dialect_impl(self._dialect).result_processor(self._dialect, code)
            if read is not None:
                found.append((name, read))
        return found


def bind_processor(kind: TypeEngine[Any], dialect: Dialect) -> Convert | None:
    """What turns a value of a type into the driver's, None where that takes it as it is."""
    return kind.dialect_impl(dialect).bind_processor(dialect)


def _converted(value: Any, convert: Convert | None) -> Any:
    return value if convert is None else convert(value)


def execute_each(connection: Connection, sql: str, parameters: Sequence[Any]) -> None:
    """Execute the driver's SQL once for each of the parameters; raises as a Prepared does."""
    _execute(connection, sql, parameters, by="executemany").close()


def _execute(connection: Connection, sql: str, parameters: Any, *, by: str = "execute") -> Any:
    """Execute on a cursor of the driver, which the caller closes, in the transaction of the connection.

    What the driver raises comes as SQLAlchemy's own errors, with all that it does about a lost connection.
    """
    try:
        cursor = connection.connection.cursor()
        getattr(cursor, by)(sql, parameters)
    except connection.dialect.loaded_dbapi.Error as error:
        # There is no public way to the same; parameters are left out, since messages would show them.
        connection._handle_dbapi_exception(error, sql, None, None, None)  # noqa: SLF001
        raise
    return cursor
