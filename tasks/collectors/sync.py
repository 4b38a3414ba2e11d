"""Reading everything once, and from then on what has changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from resilience.errors import ConfigurationError
from tasks.collectors.paging import lookup
from tasks.collectors.rows import Where

# What a unit does at a checkpoint, under "mode".
START = "start"  # asks for the token of this moment, before it reads everything
FULL = "full"
CHANGES = "changes"

_TOKEN_MAX = 4000  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Sync:
    """A token that the API gives with the last page, and takes back for what has changed since.

    `param` carries it, `at` is where the answer holds it. It is the cursor of the endpoint: committed with
    the rows of the last page, and replaced. Without one everything is read, and so it is, in the same unit,
    when the API drops the token: an answer that a rule calls "resync". `without` names declared parameters
    that do not go together with a token.

    Where changes are had at another path, that is `path`, with `params` of its own, and `rows` where its
    answers hold them. `start` is the path and the place of a token for the time before everything is read,
    as in ("/profile", "historyId"); then that of the first page counts also among changes, for what happens
    between its pages comes again rather than never.
    """

    param: str
    at: str
    start: tuple[str, str] | None = None
    path: str | None = None
    params: Mapping[str, str] = field(default_factory=dict)
    rows: Where = None
    without: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.param or not self.at:
            raise ConfigurationError(
                "Sync needs `param`, which carries the token, and `at`, where the answer holds it"
            )
        if self.start is not None and (isinstance(self.start, str) or len(self.start) != 2):
            raise ConfigurationError(
                "Sync.start is a pair: the path of a call, and where its answer has the token"
            )
        if isinstance(self.without, str):
            raise ConfigurationError("Sync.without is a list of parameters, as in without=('timeMin',)")
        if self.path is None and self.params:
            raise ConfigurationError(
                "Sync.params are for a path of its own; without one name what is left out"
            )

    def begins(self, token: str | None) -> dict[str, Any]:
        """The mode of a unit, by its cursor."""
        if token is not None:
            return {"mode": CHANGES}
        return {"mode": FULL} if self.start is None else {"mode": START}

    def token(self, body: Any, at: str | None = None) -> str | None:
        """The token in an answer, None where there is none. Raises ValueError for what is no token."""
        found = lookup(body, at or self.at)
        if found is None or found == "":
            return None
        if isinstance(found, bool) or not isinstance(found, str | int) or len(str(found)) > _TOKEN_MAX:
            raise ValueError(f"{at or self.at} holds no token, or one of more than {_TOKEN_MAX} characters")
        return str(found)
