"""Several ways to the data of one endpoint, the best one first."""

import importlib.util
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from resilience.errors import ConfigurationError
from resilience.policy import Limit
from tasks.collectors import checks
from tasks.collectors.auth import Auth, Resolve
from tasks.collectors.values import Fetch

if TYPE_CHECKING:
    from tasks.collectors.spec import Api


@dataclass(frozen=True, slots=True)
class Tier:
    """One of several ways to the data of an endpoint: by a function, or without one by the declared call.

    Each has a circuit of its own, "zoho.accounts.mcp". `needs` names the module of a library that may be
    missing. `base_url` names the secret that holds the address of a host of its own: then neither the
    credentials and rules nor the limits of the Api hold there, but `auth` and `limits` of the tier.
    """

    name: str
    fetch: Fetch | None = field(default=None, repr=False)
    base_url: str | None = None
    needs: str | None = None
    auth: Auth | None = None
    limits: Sequence[Limit] = ()

    def __post_init__(self) -> None:
        checks.name(self.name, "a tier")
        if self.base_url is not None and not self.base_url.replace("_", "").isalnum():
            raise ConfigurationError(
                f"tier {self.name!r}: base_url is the name of a secret, such as 'ZOHO_MCP_URL'"
            )
        if self.base_url is None and (self.auth is not None or self.limits):
            raise ConfigurationError(
                f"tier {self.name!r}: auth and limits are for a host of its own; name its base_url"
            )
        if self.fetch is None and self.base_url is not None:
            raise ConfigurationError(
                f"tier {self.name!r}: the declared call goes to the host of the Api; "
                "base_url needs a function beside it"
            )
        object.__setattr__(self, "limits", checks.limits(f"tier {self.name!r}", self.limits))

    @property
    def placeholder(self) -> str | None:
        """What a function sees in place of the secret address."""
        return self.base_url and f"https://{self.base_url.lower()}"

    def missing(self, resolve: Resolve) -> str | None:
        """Why this tier cannot be used here, None where it can."""
        if self.needs is not None and not _installed(self.needs):
            return f"{self.needs} is not installed"
        if self.base_url is None:
            return None
        try:
            _address(self.name, self.base_url, resolve)
        except ConfigurationError as error:
            return str(error)
        return None

    def api(self, api: "Api", resolve: Resolve) -> "Api":
        """The Api as this tier calls it. Raises ConfigurationError where its address is not there."""
        if self.base_url is None:
            return api
        own = copy(api)
        own.base_url = _address(self.name, self.base_url, resolve)
        own.host = f"the host of {self.base_url}"
        own.auth, own.account, own.rules = self.auth, self.name, ()
        own.headers = own.secret_headers = MappingProxyType({})
        return own


def check(endpoint: str, tiers: Sequence[Tier], path: str, fetch: Fetch | None) -> tuple[Tier, ...]:
    """At least two tiers with names of their own, one of them at most the declared call, which has a path."""
    if not tiers:
        return ()
    if isinstance(tiers, str) or not all(isinstance(each, Tier) for each in tiers):
        raise ConfigurationError(
            f"{endpoint}: tiers has to be a list like [Tier('sdk', fetch), Tier('rest')]"
        )
    if fetch is not None:
        raise ConfigurationError(f"{endpoint}: fetch is of no use beside tiers; give it to one of them")
    if len({each.name for each in tiers}) < max(len(tiers), 2):
        raise ConfigurationError(f"{endpoint}: tiers are at least two, each with a name of its own")
    declared = sum(each.fetch is None for each in tiers)
    if declared > 1:
        raise ConfigurationError(f"{endpoint}: one tier at most is without a function, the declared call")
    if declared and not path:
        raise ConfigurationError(
            f"{endpoint}: a tier without a function is the declared call, which needs a path"
        )
    return tuple(tiers)


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _address(tier: str, secret: str, resolve: Callable[[str], str]) -> str:
    """An http(s) address out of a secret; what it is stands in no message."""
    text = resolve(secret)
    try:
        parts = urlsplit(text)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and "@" not in parts.netloc
    except ValueError:
        fine = False
    if not fine or not text.isascii() or not text.isprintable():
        raise ConfigurationError(f"tier {tier!r}: what {secret} holds is no address like https://…")
    return text
