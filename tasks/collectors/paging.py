"""How to get from one page to the next.

A paging is a frozen value: `first` gives the checkpoint to start from, `params` what to send there, and
`following` where to go on, None being the end. An empty page is no end where the API says that there is more,
or where a window says so. What a paging keeps in a checkpoint is its own; "size" there is how many rows it
asks for since the API said that it had asked for too many, and stays for the rest of the unit.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from resilience.errors import ConfigurationError
from tasks.collectors.values import Checkpoint, Reply, Unit


class Paging:
    """What an endpoint asks of its paging."""

    __slots__ = ()
    of_time: ClassVar[bool] = False  # whether it asks for ranges of time

    def first(self, unit: Unit) -> Checkpoint:
        """Where the unit starts."""
        raise NotImplementedError

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """What to send for this page."""
        raise NotImplementedError

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """Where the next page starts, None after the last. Raises ValueError or TypeError if unclear."""
        raise NotImplementedError

    def sends(self) -> tuple[str, ...]:
        """The names of the parameters that `params` sets."""
        return ()

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """Where to go on with fewer rows at a time, None where no fewer can be asked for."""
        del unit, checkpoint
        return None

    def cut(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """Where to ask again if this answer was cut short without a word, None if it was not."""
        del unit, checkpoint, reply
        return None


@dataclass(frozen=True, slots=True)
class Single(Paging):
    """Everything comes in one answer."""

    def first(self, unit: Unit) -> Checkpoint:
        """There is only one place to start."""
        del unit
        return {}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """Nothing to say."""
        del unit, checkpoint
        return {}

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """There is no second page."""
        del unit, checkpoint, reply
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token(Paging):
    """Each answer names the next page by a token.

    `param` carries it, `at` is where the answer holds it ("next_page.offset"); missing, null and "" mean the
    end. Tokens that lead in a circle raise ValueError instead of asking for ever.
    """

    param: str
    at: str
    size_param: str | None = None
    size: int = 100

    def __post_init__(self) -> None:
        if not self.param or not self.at:
            raise ConfigurationError(
                "Token needs `param`, which carries the token, and `at`, where the answer holds it"
            )
        check_size("Token", self.size)

    def first(self, unit: Unit) -> Checkpoint:
        """The first page has no token."""
        del unit
        return {}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The token, after the first page, and the size."""
        del unit
        sent = sized(self.size_param, self.size, checkpoint)
        return sent | ({self.param: checkpoint["token"]} if "token" in checkpoint else {})

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The token that the body names."""
        del unit
        token = lookup(reply.body, self.at)
        if token is None or token == "":
            return None
        if isinstance(token, bool) or not isinstance(token, str | int):
            raise TypeError(f"{self.at} holds no token but {type(token).__name__}")
        if str(token) == checkpoint.get("token"):
            raise ValueError(f"{self.at} names the page that was just read")
        return {"token": str(token)} | in_no_loop(checkpoint, str(token), began="token" in checkpoint)

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """The same page by half."""
        del unit
        return halved(checkpoint, self.size) if self.size_param else None

    def sends(self) -> tuple[str, ...]:
        """The token's parameter, and the size's."""
        return (self.param, self.size_param) if self.size_param else (self.param,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Number(Paging):
    """Pages are numbered, from `start` on; `param` carries the number.

    `pages` is where the answer holds how many there are ("pagination.pageCount"). Where it does not say, the
    first page with fewer than `size` rows is the last: `size` has to be what the API gives at most, since a
    larger one would end the reading early and unseen. The rows of the page before, once more, raise
    ValueError: an API that does not know `param` would be asked for ever.
    """

    param: str
    size: int
    size_param: str | None = None
    start: int = 1
    pages: str | None = None

    def __post_init__(self) -> None:
        if not self.param:
            raise ConfigurationError("Number needs `param`, which carries the number of the page")
        check_size("Number", self.size)
        if self.start not in {0, 1}:
            raise ConfigurationError(f"Number.start is {self.start!r}; pages are numbered from 0 or 1 on")

    def first(self, unit: Unit) -> Checkpoint:
        """The number of the first page."""
        del unit
        return {"page": self.start}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The number and the size."""
        del unit
        return {self.param: str(checkpoint["page"])} | sized(self.size_param, self.size, checkpoint)

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """The next number, up to the number of pages or a short page."""
        del unit
        after = checkpoint["page"] + 1
        pages = _count(reply.body, self.pages)
        if (
            after - self.start >= pages
            if pages is not None
            else len(reply.rows) < size_of(self.size, checkpoint)
        ):
            return None
        return {"page": after, "rows": _mark(checkpoint, reply.rows)}

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """From the first page on: with another size the same number names other rows."""
        if not self.size_param or (less := halved(checkpoint, self.size)) is None:
            return None
        return self.first(unit) | {"size": less["size"]}

    def sends(self) -> tuple[str, ...]:
        """The number's parameter, and the size's."""
        return (self.param, self.size_param) if self.size_param else (self.param,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset(Paging):
    """Each page begins after so many rows; `param` carries how many.

    `total` is where the answer holds how many there are in all ("total"). Where it does not say, the first
    page with fewer than `size` rows is the last: see Number. With a total the server may give fewer rows than
    it was asked for, but no page without any before all are read: that, and the rows of the page before once
    more, raise ValueError.
    """

    param: str
    size: int
    size_param: str | None = None
    total: str | None = None

    def __post_init__(self) -> None:
        if not self.param:
            raise ConfigurationError("Offset needs `param`, which carries how many rows to pass over")
        check_size("Offset", self.size)

    def first(self, unit: Unit) -> Checkpoint:
        """Before the first row."""
        del unit
        return {"offset": 0}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The offset and the size."""
        del unit
        return {self.param: str(checkpoint["offset"])} | sized(self.size_param, self.size, checkpoint)

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """After the rows that came, up to the total or a short page."""
        del unit
        reached = checkpoint["offset"] + len(reply.rows)
        total = _count(reply.body, self.total)
        if reached >= total if total is not None else len(reply.rows) < size_of(self.size, checkpoint):
            return None
        if not reply.rows:
            raise ValueError(f"{self.total} is {total}, but there is no row after the first {reached}")
        return {"offset": reached, "rows": _mark(checkpoint, reply.rows)}

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """From the same row on."""
        del unit
        return halved(checkpoint, self.size) if self.size_param else None

    def sends(self) -> tuple[str, ...]:
        """The offset's parameter, and the size's."""
        return (self.param, self.size_param) if self.size_param else (self.param,)


def lookup(body: Any, path: str) -> Any:
    """What `body` holds at a dotted path, None where it ends early. A number is a place in a list.

    Raises TypeError for what has no such parts.
    """
    for name in path.split("."):
        if body is None:
            return None
        if isinstance(body, list) and name.isdecimal():
            body = body[int(name)] if int(name) < len(body) else None
            continue
        if not isinstance(body, Mapping):
            raise TypeError(f"{path} is not there: {type(body).__name__} where an object was expected")
        body = body.get(name)
    return body


def check_size(kind: str, size: Any, field: str = "size") -> None:
    """Raise ConfigurationError for a number that is none, or below 1."""
    if type(size) is not int or size < 1:
        raise ConfigurationError(f"{kind}.{field} is {size!r}, but has to be at least 1")


def size_of(size: int, checkpoint: Checkpoint) -> int:
    """How many rows to ask for here."""
    return int(checkpoint.get("size", size))


def sized(param: str | None, size: int, checkpoint: Checkpoint) -> dict[str, str]:
    """The parameter that says so, where there is one."""
    return {param: str(size_of(size, checkpoint))} if param else {}


def halved(checkpoint: Checkpoint, size: int) -> Checkpoint | None:
    """The same page by half; None where one row was asked for already."""
    size = size_of(size, checkpoint)
    return checkpoint | {"size": size // 2} if size > 1 else None


def in_no_loop(checkpoint: Checkpoint, position: str, *, began: bool) -> Checkpoint:
    """What to keep so that positions that lead in a circle are found out. Raises ValueError for one that was.

    Brent's way: it remembers one position only, and another one each time that twice as many have passed.
    """
    if not began:
        return {}
    passed, mark = checkpoint.get("passed", 0) + 1, _digest(position)
    if mark == checkpoint.get("mark"):
        raise ValueError("the pages lead in a circle: one names a page that was read before")
    return {"passed": passed, "mark": checkpoint["mark"] if passed & (passed - 1) else mark}


def _count(body: Any, path: str | None) -> int | None:
    """The count at a path of the body, None where there is none."""
    found = lookup(body, path) if path else None
    if found is not None and (type(found) is not int or found < 0):
        raise TypeError(f"{path} holds no count but {type(found).__name__}")
    return found


def _mark(checkpoint: Checkpoint, rows: Sequence[Any]) -> str | None:
    """What tells these rows from others; an empty page has no mark."""
    if not rows:
        return None
    mark = _digest(repr(rows))
    if mark == checkpoint.get("rows"):
        raise ValueError("the page holds the rows of the page before: the API pays no heed to its parameter")
    return mark


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
