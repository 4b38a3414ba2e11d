"""What travels between a unit, a declaration and the HTTP client: frozen values."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

Checkpoint = dict[str, Any]
"""Where paging stands, as JSON. Only the paging that made it reads it."""


@dataclass(frozen=True, slots=True)
class Unit:
    """One endpoint, symbol and window of a run.

    The window is half-open, `start <= t < end`, in aware UTC; it is fixed when the run is planned. `cursor`
    is the committed cursor of that moment, as text.
    """

    run: int
    n: int
    collector: str
    endpoint: str
    symbol: str
    start: datetime | None
    end: datetime | None
    cursor: str | None


@dataclass(frozen=True, slots=True)
class Request:
    """One call, without secrets: the client adds them from the Api's `auth` when it sends."""

    method: str
    url: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes | None = None


class Headers(Mapping[str, str]):
    """Response headers; their names are found in any case."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = {name.lower(): value for name, value in values.items()}

    def __getitem__(self, name: str) -> str:
        return self._values[name.lower()]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Headers({self._values!r})"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server sent, read completely. Any mapping is taken for `headers` and becomes `Headers`."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float

    def __post_init__(self) -> None:
        if not isinstance(self.headers, Headers):
            object.__setattr__(self, "headers", Headers(self.headers))


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as a paging reads it: the body and the rows in it, decoded and not yet parsed.

    `asked` is the address that was asked, `credential` the query parameter, if any, that carries a secret.
    """

    body: Any
    rows: Sequence[Any]
    headers: Mapping[str, str]
    asked: str
    credential: str | None


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be taken: why, and how it came, as JSON of at most 16 KB."""

    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Known:
    """What the server said of the last complete read of a request: its ETag, and since when it is so."""

    asked: str
    etag: str | None
    modified: str | None

    @property
    def headers(self) -> dict[str, str]:
        """What asks for an answer only if something has changed."""
        named = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Page:
    """Checked rows, where to go on (None: that was all) and the highest cursor value among the rows.

    `bad` are the first rows that could not be taken, `bad_rows` counts them all, `sample` are the first rows
    as they came. `light` is a page that may
    be stored together with those after it, `vanished` counts items that were gone. The last page has the sync
    `token` to go on from, what is now `known`, and a `reason` where it is no answer with rows.
    """

    rows: list[dict[str, Any]]
    next: Checkpoint | None
    cursor: str | None
    bad: Sequence[BadRow] = ()
    bad_rows: int = 0
    sample: Sequence[Any] = ()
    light: bool = False
    vanished: int = 0
    token: str | None = None
    known: Known | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a function of `fetch=` brings: rows for the parse function, and the checkpoint to go on from.

    `next` None is the end. It is any JSON object that the function wants to be given next time.
    """

    rows: Sequence[Any]
    next: Checkpoint | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rows, str | bytes) or not isinstance(self.rows, Sequence):
            raise TypeError(f"Fetched takes a list of rows, and not {type(self.rows).__name__}")
        if self.next is not None and not isinstance(self.next, dict):
            raise TypeError(f"Fetched.next is a dict or None, and not {type(self.next).__name__}")


Fetch = Callable[[Unit, Checkpoint, Any], Fetched]
"""Takes the unit, the checkpoint ({} at first) and a guarded `requests.Session`."""
