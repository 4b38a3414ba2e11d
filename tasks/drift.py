"""Which fields the rows of an endpoint have, of which types, and what became different.

The first rows of each page are looked at, as they come, and compared with what this process knows. SQL is
asked only when something is other than known. What is seen in the first hour is how an endpoint is; later a
field that is new, of another type, or gone from all rows is drift: told by one event, and shown until it is
accepted.
"""

import functools
import logging
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import SQLAlchemyError

from resilience.errors import PenstockError
from tasks.models import events, fields
from tasks.store import db_now, reading, writing

logger = logging.getLogger(__name__)

LEARNS = timedelta(hours=1)  # after the first row of an endpoint
GONE_AFTER = 20  # rows in a row without a field that all had before
MOST = 500  # fields of an endpoint
NAMED = 50  # fields that an event names
LOOKS_AGAIN_S = 3600.0

_KINDS: Mapping[type, str] = {
    dict: "object",
    list: "array",
    str: "string",
    bool: "boolean",
    int: "number",
    float: "number",
    Decimal: "number",
    type(None): "null",
}
# A unit whose rows are stored does not fail by what they look like. A time limit passes.
_IN_THE_WAY = (
    PenstockError,
    SQLAlchemyError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(slots=True)
class Sample:
    """The fields of some rows: their types, how many rows had them, and how many could have had them."""

    rows: int = 0
    types: dict[str, set[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)

    def absent(self, name: str) -> int:
        """Rows that could have this field and do not; a field of an object that is not there could not."""
        above = name.rpartition(".")[0]
        could = self.objects.get(above, 0) if above else self.rows
        return max(0, could - self.counts.get(name, 0))

    def note(self, name: str, value: Any) -> str:
        """A row has this field."""
        kind = _KINDS.get(type(value)) or type(value).__name__
        seen = self.types.get(name)
        if seen is None:
            if len(self.types) >= MOST:
                return kind
            self.types[name] = {kind}
            self.counts[name] = 1
        else:
            seen.add(kind)
            self.counts[name] += 1
        return kind


def sample_of(rows: Iterable[Any]) -> Sample:
    """What fields these rows have: of objects by name, of lists by place, and one level below."""
    sample = Sample()
    for row in rows:
        sample.rows += 1
        if type(row) is dict:
            pairs: Iterable[tuple[str, Any]] = row.items()
        elif type(row) is list:
            pairs = ((f"[{n}]", value) for n, value in enumerate(row))
        else:
            pairs = (("row", row),)
        for name, value in pairs:
            if sample.note(_short(name), value) == "object":
                _note_object(sample, _short(name), value)
    return sample


def _note_object(sample: Sample, name: str, value: Mapping[str, Any]) -> None:
    sample.objects[name] = sample.objects.get(name, 0) + 1
    for below, inner in value.items():
        sample.note(_short(f"{name}.{below}"), inner)


def _short(name: str) -> str:
    return name if len(name) <= 200 and name.isprintable() else ascii(name)[:200]


@dataclass(slots=True)
class Known:
    """What this process knows of an endpoint's fields."""

    types: dict[str, frozenset[str]] = field(default_factory=dict)
    always: frozenset[str] = frozenset()
    missing: frozenset[str] = frozenset()
    absent: dict[str, int] = field(default_factory=dict)  # rows in a row without a field that all have
    full: bool = False  # whether there are as many fields as are kept
    looked_at: float | None = None
    usual: set[Any] = field(default_factory=set)  # forms of rows that differ in nothing and lack nothing
    turn: threading.Lock = field(default_factory=threading.Lock)

    def gone(self) -> set[str]:
        """Fields that all rows had, and none of the last."""
        return {name for name, rows in self.absent.items() if rows >= GONE_AFTER}

    def learn(self, forms: set[Any], sample: Sample) -> None:
        """Rows of these forms need not be looked at again, if there is nothing about them."""
        if len(self.usual) < MOST and not any(sample.absent(name) for name in self.always):
            self.usual |= forms

    def differs(self, sample: Sample) -> bool:
        """Whether rows are other than known; counts those without a field that all have."""
        for name in self.always:
            if name in sample.counts:
                self.absent.pop(name, None)
            elif lacking := sample.absent(name):
                self.absent[name] = self.absent.get(name, 0) + lacking
        return (
            any(
                not types <= self.types.get(name, types if self.full else frozenset())
                for name, types in sample.types.items()
            )
            or any(name in self.always and sample.absent(name) for name in sample.counts)
            or bool(self.gone())
            or not self.missing.isdisjoint(sample.counts)
        )


@functools.cache
def _known(endpoint: str) -> Known:
    del endpoint
    return Known()


def watch(endpoint: str, rows: Sequence[Any]) -> None:
    """Compare rows, as they came, with those before; what stands in the way is only logged."""
    if not rows:
        return
    known = _known(endpoint)
    try:
        forms = {_form(row) for row in rows}
        with known.turn:
            old = known.looked_at is None or time.monotonic() - known.looked_at > LOOKS_AGAIN_S
            if not old and forms <= known.usual:
                known.absent.clear()
                return
            sample = sample_of(rows)
            if known.differs(sample) or old:
                _look(endpoint, known, sample)
            else:
                known.learn(forms, sample)
    except _IN_THE_WAY as error:
        logger.warning("%s: its fields could not be compared: %r", endpoint, error)


def _form(row: Any) -> Any:
    """The same for rows with the same fields of the same types, and quicker than to name them."""
    if type(row) not in {dict, list}:
        return type(row)
    names, values = (tuple(row), row.values()) if type(row) is dict else (None, row)
    kinds = tuple(map(type, values))
    if dict not in kinds:
        return names, kinds
    below = [(tuple(value), tuple(map(type, value.values()))) for value in values if type(value) is dict]
    return names, kinds, tuple(below)


def _look(endpoint: str, known: Known, sample: Sample) -> None:
    """Compare a sample with SQL, record what is new there, and know that from now on."""
    with writing() as connection:
        rows = _rows(connection, endpoint, lock=True)
        now = connection.execute(select(db_now())).scalar_one()
        learns = all(row["first_seen_at"] > now - LEARNS for row in rows.values())
        drift = {
            "new": _add(connection, endpoint, rows, sample, now, learns=learns),
            "retyped": _retype(connection, endpoint, rows, sample, learns=learns),
            "missing": _miss(connection, endpoint, rows, known.gone(), sample, learns=learns),
        }
        seen = [name for name in sample.types if name in rows]
        _set(connection, endpoint, seen, last_seen_at=now)
        if not learns and any(drift.values()):
            _tell(connection, endpoint, drift)
        rows = _rows(connection, endpoint)
    known.types = {name: frozenset(row["types"].split("|")) for name, row in rows.items()}
    known.full = len(rows) >= MOST
    known.always = frozenset(name for name, row in rows.items() if row["always"])
    known.missing = frozenset(name for name, row in rows.items() if row["missing_at"] is not None)
    known.absent = {}
    known.usual = set()
    known.looked_at = time.monotonic()


def _rows(connection: Connection, endpoint: str, *, lock: bool = False) -> dict[str, RowMapping]:
    statement = select(fields).where(fields.c.endpoint == endpoint).order_by(fields.c.name)
    found = connection.execute(statement.with_for_update() if lock else statement).mappings()
    return {row["name"]: row for row in found}


def _set(connection: Connection, endpoint: str, names: Sequence[str], **values: Any) -> None:
    if names:
        connection.execute(
            update(fields).where(fields.c.endpoint == endpoint, fields.c.name.in_(names)).values(**values)
        )


def _add(
    connection: Connection,
    endpoint: str,
    rows: Mapping[str, RowMapping],
    sample: Sample,
    now: Any,
    *,
    learns: bool,
) -> dict[str, str]:
    """Fields that nobody has seen, with their types."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    unseen = [name for name in sample.types if name not in rows][: max(0, MOST - len(rows))]
    added = {}
    for name in unseen:
        types = _text(sample.types[name])
        statement = dialect.insert(fields).values(
            endpoint=endpoint,
            name=name,
            types=types,
            normal_types=types if learns else None,
            always=not rows and not sample.absent(name),  # of later ones nobody knows what was before
            first_seen_at=now,
            last_seen_at=now,
        )
        made = connection.execute(statement.on_conflict_do_nothing().returning(fields.c.name)).first()
        if made is not None:  # else another process was faster
            added[name] = types
    return added


def _retype(
    connection: Connection, endpoint: str, rows: Mapping[str, RowMapping], sample: Sample, *, learns: bool
) -> dict[str, str]:
    """Fields with types that they did not have: all types from now on."""
    changed = {}
    for name, row in rows.items():
        before = set(row["types"].split("|"))
        if sample.types.get(name, set()) <= before:
            continue
        types = _text(before | sample.types[name])
        _set(connection, endpoint, [name], types=types, **({"normal_types": types} if learns else {}))
        changed[name] = f"{row['types']} → {types}"
    return changed


def _miss(
    connection: Connection,
    endpoint: str,
    rows: Mapping[str, RowMapping],
    gone: set[str],
    sample: Sample,
    *,
    learns: bool,
) -> list[str]:
    """Fields that are gone from all rows. One that only some rows lack, or that is back, may be missing."""
    some = [name for name, row in rows.items() if row["always"] and sample.absent(name)]
    optional = [name for name in some if name in sample.counts or learns]
    back = [name for name, row in rows.items() if row["missing_at"] is not None and name in sample.counts]
    missing = [
        name for name in some if name not in optional and name in gone and not rows[name]["missing_at"]
    ]
    _set(connection, endpoint, optional, always=False)
    _set(connection, endpoint, back, always=False, missing_at=None)
    _set(connection, endpoint, missing, missing_at=db_now(), always=False)
    return missing


def _text(types: Iterable[str]) -> str:
    return "|".join(sorted(types))


def _tell(connection: Connection, endpoint: str, drift: Mapping[str, Any]) -> None:
    detail: dict[str, Any] = {}
    for kind, found in drift.items():
        detail[f"{kind}_fields"] = len(found)
        some = list(found)[:NAMED]
        detail[kind] = {name: found[name] for name in some} if isinstance(found, dict) else some
    connection.execute(
        insert(events).values(at=db_now(), kind="schema_drift", subject=endpoint, detail=detail)
    )
    logger.warning(
        "%s: its rows have changed: new %s, retyped %s, missing %s; `penstock drift` shows them",
        endpoint,
        *(", ".join(detail[kind]) or "none" for kind in ("new", "retyped", "missing")),
    )


def report(endpoints: Iterable[str]) -> list[dict[str, Any]]:
    """What differs from the normal, endpoint by endpoint."""
    statement = select(fields).where(fields.c.endpoint.in_(list(endpoints)))
    with reading() as connection:
        rows = connection.execute(statement.order_by(fields.c.endpoint, fields.c.name)).mappings().all()
    return [
        {
            "endpoint": row["endpoint"],
            "field": row["name"],
            "drift": drift,
            "types": row["types"],
            "normal_types": row["normal_types"],
            "first_seen_at": row["first_seen_at"],
            "last_seen_at": row["last_seen_at"],
            "missing_at": row["missing_at"],
        }
        for row in rows
        if (drift := _drift(row)) is not None
    ]


def _drift(row: RowMapping) -> str | None:
    if row["missing_at"] is not None:
        return "missing"
    if row["normal_types"] is None:
        return "new"
    return "retyped" if row["normal_types"] != row["types"] else None


def accept(endpoint: str) -> int:
    """Take the present for normal; returns how many fields differed. Fields that are gone are forgotten."""
    with writing() as connection:
        differing = [name for name, row in _rows(connection, endpoint, lock=True).items() if _drift(row)]
        connection.execute(
            delete(fields).where(fields.c.endpoint == endpoint, fields.c.missing_at.is_not(None))
        )
        connection.execute(
            update(fields).where(fields.c.endpoint == endpoint).values(normal_types=fields.c.types)
        )
    return len(differing)
