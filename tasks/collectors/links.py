"""Pages that name the address of the next one.

A checkpoint keeps path and query of a link, and never its host: whatever an answer says, the next request
goes to the host of the Api.
"""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote_plus, urljoin, urlsplit

from resilience.errors import ConfigurationError
from tasks.collectors.paging import lookup
from tasks.collectors.values import Checkpoint, Reply, Unit

_VALUE = r'\s*=\s*(?:"([^"]*)"|([^\s;,"]*))'
_PARAM = re.compile(rf"\s*;\s*([^\s=;,\"<]+)(?:{_VALUE})?")
_TARGET = re.compile(r"<([^<>]*)>")
_PORTS = {"http": 80, "https": 443}
_KEPT = "/%:@!$&'()*+,;=?~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """Each answer names the address of the next page: at `at` in the body, else in its `Link` header (next).

    Path and query of the link replace those of the declaration. Missing, null and "" mean the end. A link to
    another host, port or scheme than the page came from raises ValueError, and so does the same link twice in
    a row.
    """

    at: str | None = None

    def __post_init__(self) -> None:
        if self.at == "":
            raise ConfigurationError("Link.at is empty; leave it out where the link is in the header `Link`")

    def first(self, unit: Unit) -> Checkpoint:
        """The first page is the declared one."""
        del unit
        return {}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """None: they are in the link."""
        del unit, checkpoint
        return {}

    def following(self, unit: Unit, checkpoint: Checkpoint, reply: Reply) -> Checkpoint | None:
        """Path and query of the link that the answer names."""
        del unit
        link = lookup(reply.body, self.at) if self.at else next_of(reply.headers.get("link", ""))
        if link is None or link == "":
            return None
        if not isinstance(link, str):
            raise TypeError(f"{self.at} holds no link but {type(link).__name__}")
        target = _target(link, reply)
        if target == checkpoint.get("link"):
            raise ValueError("the link to the next page leads to the page that was just read")
        return {"link": target}

    def sends(self) -> tuple[str, ...]:
        """No parameter of its own."""
        return ()


def next_of(header: str) -> str | None:
    """The first target of a `Link` header whose relation is "next", None where there is none."""
    at = 0
    while target := _TARGET.search(header, at):
        at, relations = target.end(), None
        while param := _PARAM.match(header, at):
            at = param.end()
            if param[1].lower() == "rel" and relations is None:  # of several the first counts
                relations = (param[2] or param[3] or "").lower().split()
        if "next" in (relations or ()):
            return target[1]
    return None


def on_host(url: str, link: str) -> str:
    """The address of a link, on the host of `url`."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{link}"


def _target(link: str, reply: Reply) -> str:
    here, there = urlsplit(reply.asked), urlsplit(urljoin(reply.asked, link))
    if _origin(there) != _origin(here):
        raise ValueError(
            f"credentials go to {_origin(here)} only, and the link to the next page leads to {_origin(there)}"
        )
    # An API that repeats the query may repeat a key; the client adds it anew, and it is not to be stored.
    query = "&".join(
        each for each in there.query.split("&") if unquote_plus(each.partition("=")[0]) != reply.credential
    )
    return quote(there.path or "/", safe=_KEPT) + (f"?{quote(query, safe=_KEPT)}" if query else "")


def _origin(parts: SplitResult) -> str:
    port = "" if parts.port in {None, _PORTS.get(parts.scheme)} else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname or 'no host'}{port}"
