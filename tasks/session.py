"""The session that a function of `fetch=` is given: a `requests.Session`, and the guard is its network.

Whatever takes a `requests.Session` works with it, and none of its requests gets past circuits and limits,
goes to another host, takes longer or brings more than a declared call may.
"""

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from http.client import responses
from typing import Any, TypeVar
from urllib.parse import urlsplit, urlunsplit

import requests
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from requests.utils import get_encoding_from_headers

from resilience.errors import ConfigurationError, PenstockError
from tasks.calls import Calls
from tasks.collectors.values import Answer, Fetched, Request

T = TypeVar("T")

# The client underneath sets these, or they would change how the call is made.
_NOT_PASSED_ON = frozenset({"accept-encoding", "connection", "content-length", "host", "transfer-encoding"})


class GuardedSession(requests.Session):
    """A `requests.Session` for one page of one unit. What it raises is no `requests.RequestException`.

    A path such as "/orders" is one below `base_url`; a request to another host raises ConfigurationError.
    Where that address is a secret, the function is shown a `placeholder` in its place.
    Credentials are added underneath and seen neither here nor in a response. An answer that is an error
    raises what the rules of the Api say. With `raises = False` it comes back as a response, for clients that
    read answers themselves; whatever then leaves the function is what the circuit hears.

    No redirect is followed, no cookie, proxy or `.netrc` used; `verify`, `cert` and `stream` change nothing.
    """

    def __init__(self, calls: Calls, *, placeholder: str | None = None) -> None:
        super().__init__()
        self.trust_env = False
        self.raises = True
        self.base_url = placeholder or calls.api.base_url
        self.headers = CaseInsensitiveDict(calls.api.headers)
        self._calls: Calls | None = calls
        for scheme in ("https://", "http://"):
            self.adapters[scheme] = _Guarded(self)

    def request(self, method: str | bytes, url: str | bytes, *args: Any, **kwargs: Any) -> requests.Response:
        """As `requests` has it; a path is one below `base_url`."""
        if isinstance(url, str) and url.startswith("/"):
            url = self.base_url + url
        return super().request(method, url, *args, **kwargs)

    def send(self, request: requests.PreparedRequest, **kwargs: Any) -> requests.Response:
        """As `requests` has it, without redirects."""
        return super().send(request, **(kwargs | {"allow_redirects": False}))

    def mount(self, prefix: str | bytes, adapter: BaseAdapter) -> None:
        """Raise ConfigurationError: another adapter would call past the guard."""
        del prefix, adapter
        if "_calls" not in vars(self):
            return  # `requests` mounts its own at first
        raise ConfigurationError("a guarded session takes no other adapter: it would call past the guard")

    def close(self) -> None:
        """End the session; what keeps it beyond its page can no longer call."""
        self._calls = None
        super().close()

    def real(self, url: str) -> str:
        """The address that a request goes to, where the session only has a placeholder for it."""
        base, asked, real = urlsplit(self.base_url), urlsplit(url), urlsplit(self.calls.api.base_url)
        if (asked.scheme, asked.netloc) != (base.scheme, base.netloc) or base == real:
            return url
        path = real.path + (asked.path if asked.path != "/" else "")
        query = "&".join(filter(None, (real.query, asked.query)))
        return urlunsplit((real.scheme, real.netloc, path, query, ""))

    @contextmanager
    def calling(self) -> Iterator[None]:
        """One call by a library that takes no session: admitted before the block, settled by what leaves it.

        Only circuits and limits hold for it. Deadline, size, host and credentials are the library's business.
        """
        with self.calls.calling():
            yield

    @property
    def calls(self) -> Calls:
        """The calls behind this session. Raises ConfigurationError once its page is over."""
        if self._calls is None:
            raise ConfigurationError("a guarded session ends with its page: take the one of the next call")
        return self._calls

    def let(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function with this session; what a client made of our errors counts as what it was.

        Libraries wrap exceptions in their own, or swallow them; a refusal must stay one.
        """
        calls = self.calls
        try:
            result = function(*args, self)
        except PenstockError:
            raise
        except Exception as error:
            if (known := calls.refused or calls.failure) is not None:
                raise known from error
            raise
        if calls.refused is not None:
            raise calls.refused
        if not isinstance(result, Fetched):
            raise ConfigurationError(
                f"{calls.api.name}: fetch has to return Fetched(rows), and not {type(result).__name__}"
            )
        return result


class _Guarded(BaseAdapter):
    """Hands a request to the guarded client and makes a response of its answer."""

    def __init__(self, session: GuardedSession) -> None:
        super().__init__()
        self._session = session

    def send(  # type: ignore[override]
        self, request: requests.PreparedRequest, timeout: Any = None, **_ignored: Any
    ) -> requests.Response:
        url = self._session.real(request.url or "")
        asked = Request(request.method or "GET", url, {}, dict(_passed_on(request.headers)), _body(request))
        answer = self._session.calls.send(asked, timeout_s=_seconds(timeout), raises=self._session.raises)
        return _response(request, answer)

    def close(self) -> None:
        """Nothing is held here."""


def _passed_on(headers: Mapping[str, str | bytes]) -> Iterator[tuple[str, str]]:
    for name, value in headers.items():
        if name.lower() not in _NOT_PASSED_ON:
            yield name, value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _body(request: requests.PreparedRequest) -> bytes | None:
    body = request.body
    if body is None or isinstance(body, bytes):
        return body
    if isinstance(body, str):
        return body.encode()
    raise ConfigurationError("a guarded session sends bytes and text, and no stream")


def _seconds(timeout: Any) -> float | None:
    """The time of a whole call: `requests` allows a pair, for connecting and for reading."""
    given = [each for each in (timeout if isinstance(timeout, tuple) else (timeout,)) if each is not None]
    return sum(given) if given else None


def _response(request: requests.PreparedRequest, answer: Answer) -> requests.Response:
    response = requests.Response()
    response.status_code = answer.status
    response.reason = responses.get(answer.status, "")
    response.headers = CaseInsensitiveDict(answer.headers)
    response.encoding = get_encoding_from_headers(response.headers)
    response.url = request.url or ""
    response.request = request
    response.elapsed = timedelta(seconds=answer.elapsed_s)
    response.raw = io.BytesIO(answer.body)
    response._content = answer.body  # noqa: SLF001 - read already; there is no other way to say so
    response._content_consumed = True  # type: ignore[attr-defined]  # noqa: SLF001
    return response
