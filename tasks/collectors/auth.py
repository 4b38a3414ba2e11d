"""How a call proves who we are. Declarations name secrets; only the HTTP client resolves them, at sending."""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from resilience.errors import ConfigurationError

Resolve = Callable[[str], str]
"""Gives the secret of a name."""


class Auth(Protocol):
    """Adds credentials to the headers or parameters of one call, in place."""

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that it takes."""

    def apply(self, headers: dict[str, str], params: dict[str, str], resolve: Resolve) -> None:
        """Add them. Raises what `resolve` raises for a secret that is not there."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """`Authorization: Bearer …` with the secret of this name."""

    secret: str

    def __post_init__(self) -> None:
        check_names("Bearer", self.secret)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return (self.secret,)

    def apply(self, headers: dict[str, str], params: dict[str, str], resolve: Resolve) -> None:
        """Set the Authorization header."""
        del params
        headers["Authorization"] = f"Bearer {resolve(self.secret)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """The secret of this name in a header or, where an API knows no better, in a query parameter."""

    secret: str
    header: str | None = None
    query: str | None = None

    def __post_init__(self) -> None:
        check_names("ApiKey", self.secret)
        if (self.header is None) == (self.query is None):
            raise ConfigurationError(
                "ApiKey needs exactly one of `header` and `query`, which carries the key"
            )

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return (self.secret,)

    def apply(self, headers: dict[str, str], params: dict[str, str], resolve: Resolve) -> None:
        """Set the header or the parameter."""
        if self.header is not None:
            headers[self.header] = resolve(self.secret)
        elif self.query is not None:
            params[self.query] = resolve(self.secret)


@dataclass(frozen=True, slots=True, kw_only=True)
class Basic:
    """`Authorization: Basic …` with the secrets of these two names."""

    user: str
    password: str

    def __post_init__(self) -> None:
        check_names("Basic", self.user, self.password)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return (self.user, self.password)

    def apply(self, headers: dict[str, str], params: dict[str, str], resolve: Resolve) -> None:
        """Set the Authorization header."""
        del params
        pair = f"{resolve(self.user)}:{resolve(self.password)}"
        headers["Authorization"] = f"Basic {base64.b64encode(pair.encode()).decode()}"


def in_query(auth: Auth | None) -> str | None:
    """The query parameter that carries a secret, None where no query does."""
    return auth.query if isinstance(auth, ApiKey) else None


def check_names(kind: str, *names: str) -> None:
    """Names of secrets, and not secrets."""
    for name in names:
        if not name or not name.replace("_", "").isalnum():
            # The value is not shown: who writes a secret here by mistake does not want to read it in a log.
            raise ConfigurationError(
                f"{kind} takes the name of a secret, such as 'ASANA_TOKEN', and not the secret itself"
            )
