"""Access tokens: what is asked of a token server, and what its answer means.

Pure, as every declaration: `tasks.tokens` makes the call and keeps what comes of it. No error here shows
anything of an answer but its error code, for an answer may hold a token.
"""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Literal, Self, TypeGuard, get_args
from urllib.parse import quote, urlencode, urlsplit

from resilience.errors import (
    BadPayloadError,
    ConfigurationError,
    InvalidCredentialsError,
    RateLimitError,
    ServerError,
    TokenFetchError,
)
from resilience.headers import retry_after_s
from tasks.collectors.auth import Resolve, check_names
from tasks.collectors.values import Answer, Request

ACCOUNT = "default"
GOOGLE_TOKEN_URL = "https://oauth2.googleapis.com/token"  # noqa: S105 - an address
LIFETIME_S = 3600.0  # of a token whose server does not say

ClientBy = Literal["basic", "body"]

_SYMBOL = "{symbol}"
_PLACEHOLDER = re.compile(r"\{(\w+)\}")
_LONGEST = 16_384  # letters of a token
_LONGEST_S = 90 * 86_400.0
_ASSERTION_S = 3600
# What no later try changes. Zoho says the last two.
_FINAL = frozenset(
    {
        "invalid_grant",
        "invalid_client",
        "unauthorized_client",
        "unsupported_grant_type",
        "invalid_scope",
        "invalid_code",
        "invalid_client_secret",
    }
)


@dataclass(frozen=True, slots=True)
class Grant:
    """What a token server gave. `refresh` is None where the one that was sent goes on to hold."""

    access: str = field(repr=False)
    refresh: str | None = field(repr=False)
    expires_s: float


class TokenAuth:
    """Credentials that are changed for an access token first, at `token_url` and nowhere else.

    `{NAME}` in its path stands for the secret of that name, as in "…/oauth2/{WORKSPACE_ID}/token".
    """

    __slots__ = ()

    token_url: str

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return tuple(_PLACEHOLDER.findall(self.token_url))

    @property
    def scheme(self) -> str:
        """What stands before the token in the Authorization header."""
        return "Bearer"

    @property
    def keeps(self) -> bool:
        """Whether a refresh token may hold once only, so that the next one has to be kept."""
        return False

    def account(self, symbol: str) -> str:
        """The account that a unit of this symbol speaks for."""
        del symbol
        return ACCOUNT

    def first_refresh(self, resolve: Resolve) -> str | None:
        """The refresh token to begin with, None where there is none."""
        del resolve
        return None

    def request(self, resolve: Resolve, *, refresh: str | None, account: str, now: datetime) -> Request:
        """The call that asks for an access token."""
        raise NotImplementedError

    def apply(self, headers: dict[str, str], params: dict[str, str], resolve: Resolve) -> None:
        """Add nothing: a call carries the access token."""

    def carry(self, headers: dict[str, str], access: str) -> None:
        """Set the Authorization header to an access token."""
        headers["Authorization"] = f"{self.scheme} {access}"

    def at(self, token_url: str) -> Self:
        """The same with another token server."""
        return replace(self, token_url=token_url)  # type: ignore[type-var]

    def _form(self, resolve: Resolve, form: Mapping[str, str | None], **headers: str) -> Request:
        url = _PLACEHOLDER.sub(lambda name: quote(resolve(name[1]), safe=""), self.token_url)
        body = urlencode({name: value for name, value in form.items() if value is not None})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return Request("POST", url, {}, kind | headers, body.encode())


@dataclass(frozen=True, slots=True)
class OAuth2(TokenAuth):
    """OAuth2 by a refresh token, where one is named, else by the client's own credentials.

    Client id, client secret and refresh token are names of secrets. The refresh token is the first one: what
    a server gives in its place is kept in the database, encrypted with `PENSTOCK_TOKEN_KEY`. `client` says
    how the client proves who it is, by a Basic header or in the body; `scheme` what stands before the token
    in the Authorization header.
    """

    token_url: str
    client_id: str
    client_secret: str
    refresh_token: str | None = None
    scope: str | None = None
    client: ClientBy = "basic"
    scheme: str = "Bearer"

    def __post_init__(self) -> None:
        check_token_url("OAuth2", self.token_url)
        check_names("OAuth2", *self._named())
        if self.client not in get_args(ClientBy):
            raise ConfigurationError(
                f"OAuth2: client is {self.client!r}; it is one of {', '.join(get_args(ClientBy))}"
            )
        if not re.fullmatch(r"[\w-]+", self.scheme, re.ASCII):
            raise ConfigurationError("OAuth2: scheme is one word, such as 'Bearer'")

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return (*self._named(), *_PLACEHOLDER.findall(self.token_url))

    @property
    def keeps(self) -> bool:
        """Whether a refresh token may hold once only: nobody knows before the first one is spent."""
        return self.refresh_token is not None

    def first_refresh(self, resolve: Resolve) -> str | None:
        """The refresh token of the secret."""
        return None if self.refresh_token is None else resolve(self.refresh_token)

    def request(self, resolve: Resolve, *, refresh: str | None, account: str, now: datetime) -> Request:
        """By refresh token or client credentials."""
        del account, now
        form = {
            "grant_type": "client_credentials" if refresh is None else "refresh_token",
            "refresh_token": refresh,
            "scope": self.scope,
        }
        client, secret = resolve(self.client_id), resolve(self.client_secret)
        if self.client == "body":
            return self._form(resolve, form | {"client_id": client, "client_secret": secret})
        pair = base64.b64encode(f"{client}:{secret}".encode()).decode()
        return self._form(resolve, form, Authorization=f"Basic {pair}")

    def _named(self) -> tuple[str, ...]:
        first = () if self.refresh_token is None else (self.refresh_token,)
        return (self.client_id, self.client_secret, *first)


@dataclass(frozen=True, slots=True)
class GoogleUser(TokenAuth):
    """A user of Google who gave consent. The secret holds the JSON that Google's tools write for one:
    client_id, client_secret and refresh_token.
    """

    secret: str
    token_url: str = GOOGLE_TOKEN_URL

    def __post_init__(self) -> None:
        check_names("GoogleUser", self.secret)
        check_token_url("GoogleUser", self.token_url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return (self.secret, *_PLACEHOLDER.findall(self.token_url))

    def first_refresh(self, resolve: Resolve) -> str | None:
        """The refresh token of the secret; Google's hold until they are revoked."""
        return _fields(self.secret, resolve, "refresh_token")["refresh_token"]

    def request(self, resolve: Resolve, *, refresh: str | None, account: str, now: datetime) -> Request:
        """By refresh token."""
        del account, now
        user = _fields(self.secret, resolve, "client_id", "client_secret")
        return self._form(resolve, {"grant_type": "refresh_token", "refresh_token": refresh} | user)


@dataclass(frozen=True, slots=True)
class GoogleServiceAccount(TokenAuth):
    """A service account of Google. The secret holds the JSON of its key.

    `subject` is the user whom it speaks for, by delegation: an address, or "{symbol}", which makes each
    symbol an account with a token of its own.
    """

    secret: str
    scopes: Sequence[str]
    subject: str | None = None
    token_url: str = GOOGLE_TOKEN_URL

    def __post_init__(self) -> None:
        check_names("GoogleServiceAccount", self.secret)
        check_token_url("GoogleServiceAccount", self.token_url)
        if isinstance(self.scopes, str) or not self.scopes or not all(map(_is_text, self.scopes)):
            raise ConfigurationError(
                "GoogleServiceAccount: scopes has to be a list like "
                "['https://www.googleapis.com/auth/gmail.readonly']"
            )
        object.__setattr__(self, "scopes", tuple(self.scopes))
        if self.subject is not None and not _is_text(self.subject):
            raise ConfigurationError("GoogleServiceAccount: subject is an address, or '{symbol}'")

    @property
    def secrets(self) -> tuple[str, ...]:
        """The names of the secrets that this takes."""
        return (self.secret, *_PLACEHOLDER.findall(self.token_url))

    def account(self, symbol: str) -> str:
        """The subject, where it is the symbol."""
        return symbol if self.subject == _SYMBOL else ACCOUNT

    def request(self, resolve: Resolve, *, refresh: str | None, account: str, now: datetime) -> Request:
        """By an assertion that the key of the account signs."""
        del refresh
        issued = int(now.timestamp())
        claims = {
            "iss": _fields(self.secret, resolve, "client_email")["client_email"],
            "scope": " ".join(self.scopes),
            "aud": self.token_url,
            "iat": issued,
            "exp": issued + _ASSERTION_S,
        }
        if self.subject is not None:
            claims["sub"] = account if self.subject == _SYMBOL else self.subject
        kind = "urn:ietf:params:oauth:grant-type:jwt-bearer"
        return self._form(resolve, {"grant_type": kind, "assertion": _signed(self.secret, resolve, claims)})


def read_grant(account: str, answer: Answer) -> Grant:
    """What the token server gave.

    Raises InvalidCredentialsError where it never will, RateLimitError or ServerError as any API,
    TokenFetchError for what else it had against it, and BadPayloadError for an answer that is none.
    """
    body = _body(answer)
    error = _error_code(body)
    said = f"{account}: the token server answered {answer.status}" + (f", {error}" if error else "")
    if error in _FINAL or (answer.status == 401 and error is None):
        raise InvalidCredentialsError(said, status=answer.status)
    if answer.status == 429:
        raise RateLimitError(said, status=answer.status, retry_after_s=retry_after_s(answer.headers))
    if answer.status >= 500:
        raise ServerError(said, status=answer.status, retry_after_s=retry_after_s(answer.headers))
    if error is not None or not 200 <= answer.status < 300:
        raise TokenFetchError(said, status=answer.status)
    access, refresh = body.get("access_token"), body.get("refresh_token") or None
    if not _is_token(access) or not (refresh is None or _is_token(refresh)):
        raise BadPayloadError(f"{said}, but with no access token in it", status=answer.status)
    return Grant(access, refresh, _lifetime_s(body.get("expires_in")))


def check_token_url(kind: str, url: Any) -> None:
    """An http(s) address with a host; names of secrets stand in its path only."""
    try:
        parts = urlsplit(url)
        fine = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except (ValueError, AttributeError, TypeError):
        fine = False
    if not fine or {"@", "{", "}"} & set(parts.netloc) or parts.query or parts.fragment:
        raise ConfigurationError(
            f"{kind}: token_url has to look like 'https://login.example.com/token', "
            "without query or credentials"
        )
    if {"{", "}"} & set(_PLACEHOLDER.sub("", parts.path)):
        raise ConfigurationError(f"{kind}: {{…}} in token_url takes the name of a secret")


def _signed(secret: str, resolve: Resolve, claims: Mapping[str, Any]) -> str:
    from google.auth import crypt, jwt  # noqa: PLC0415 - half a second and 14 MB, for those who need it

    key = _fields(secret, resolve, "private_key", "client_email")
    try:
        signer = crypt.RSASigner.from_service_account_info(key)  # type: ignore[no-untyped-call]
        return bytes(jwt.encode(signer, claims)).decode()  # type: ignore[no-untyped-call]
    except ValueError:
        # Its text may show the key.
        raise ConfigurationError(f"what {secret} holds is no private key") from None


def _fields(secret: str, resolve: Resolve, *names: str) -> dict[str, str]:
    """Fields of the JSON in a secret. Raises ConfigurationError, which shows nothing of it."""
    try:
        found = json.loads(resolve(secret))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigurationError(f"{secret} has to hold the JSON of a Google account")
    for name in names:
        if not _is_text(found.get(name)):
            raise ConfigurationError(f"the JSON that {secret} holds has no {name}")
    return {name: found[name] for name in names}


def _body(answer: Answer) -> Mapping[str, Any]:
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _error_code(body: Mapping[str, Any]) -> str | None:
    """The error that an answer names, as long as it is a plain word or two."""
    code = body.get("error")
    if code is None or isinstance(code, int):
        return None
    return code if isinstance(code, str) and re.fullmatch(r"[A-Za-z_ ]{1,40}", code) else "an error"


def _lifetime_s(said: Any) -> float:
    try:
        seconds = float(said)
    except (TypeError, ValueError):
        return LIFETIME_S
    return min(max(seconds, 1.0), _LONGEST_S) if math.isfinite(seconds) else LIFETIME_S


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_token(value: Any) -> TypeGuard[str]:
    return _is_text(value) and len(value) <= _LONGEST and value.isascii() and value.isprintable()
