"""Pages that name the address of the next one.

A checkpoint keeps path and query of a link, and never its host: whatever an answer says, the next request
goes to the host of the Api.
"""

import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote_plus, urljoin, urlsplit

from resilience.errors import ConfigurationError
from tasks.collectors.paging import Paging, check_size, halved, in_no_loop, lookup, sized
from tasks.collectors.values import Checkpoint, Reply, Unit

_VALUE = r'\s*=\s*(?:"([^"]*)"|([^\s;,"]*))'
_PARAM = re.compile(rf"\s*;\s*([^\s=;,\"<]+)(?:{_VALUE})?")
_TARGET = re.compile(r"<([^<>]*)>")
_PORTS = {"http": 80, "https": 443}
_KEPT = "/%:@!$&'()*+,;=?~"


@dataclass(frozen=True, slots=True, kw_only=True)
class Link(Paging):
    """Each answer names the address of the next page: at `at` in the body, else in its `Link` header (next).

    Path and query of the link replace those of the declaration. Missing, null and "" mean the end. A link to
    another host, port or scheme than the page came from raises ValueError, and so do links that lead in a
    circle. `size_param` sends the size with the first page; links carry it on.
    """

    at: str | None = None
    size_param: str | None = None
    size: int = 100

    def __post_init__(self) -> None:
        if self.at == "":
            raise ConfigurationError("Link.at is empty; leave it out where the link is in the header `Link`")
        check_size("Link", self.size)

    def first(self, unit: Unit) -> Checkpoint:
        """The first page is the declared one."""
        del unit
        return {}

    def params(self, unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
        """The size, with the first page; after it everything is in the link."""
        del unit
        return {} if "link" in checkpoint else sized(self.size_param, self.size, checkpoint)

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
        return {"link": target} | in_no_loop(checkpoint, target, began="link" in checkpoint)

    def sends(self) -> tuple[str, ...]:
        """The size's parameter."""
        return (self.size_param,) if self.size_param else ()

    def smaller(self, unit: Unit, checkpoint: Checkpoint) -> Checkpoint | None:
        """The same page by half, where its link says a size that can be changed."""
        del unit
        if not self.size_param or (less := halved(checkpoint, self.size)) is None:
            return None
        if "link" not in less:
            return less
        link = _sized_link(less["link"], self.size_param, less["size"])
        return None if link is None else less | {"link": link}


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


def _sized_link(link: str, param: str, size: int) -> str | None:
    """The link with another size, None where it says none."""
    path, _, query = link.partition("?")
    parts = query.split("&")
    said = [n for n, each in enumerate(parts) if unquote_plus(each.partition("=")[0]) == param]
    for n in said:
        parts[n] = f"{parts[n].partition('=')[0]}={size}"
    return f"{path}?{'&'.join(parts)}" if said else None


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
