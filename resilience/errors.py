"""What can go wrong, and what follows from it.

PenstockError                 message, code, details, cause, recoverable, timestamp; to_dict()
├── ConfigurationError          fix the configuration; never retried
│   └── ServerAwayError           a server that we need does not answer: start it, or fix its address
├── Refused                     we did not call: never trips a circuit, spends no attempt
│   ├── CircuitOpenError          retry_at, failure_count (also a pybreaker.CircuitBreakerError)
│   └── Throttled                 retry_after_s, which limit
├── StoreUnavailableError       the shared state did not answer: nothing is known, nothing is spent
├── APIError                    the server answered, but not with what was asked for
│   ├── RateLimitError            429: retry_after_s; BannedError (418) stops the whole IP or key
│   ├── ServerError               5xx: retried, trips
│   ├── NotFoundError             this symbol is not there; ValidationError: this request is wrong
│   │                             (TooMuchError: it asks for too much at once)
│   └── BadPayloadError           the body is not what was agreed on; NoRowsError: it has no row
├── AuthenticationError         TokenExpiredError: refresh once; InvalidCredentialsError: stop
│   └── TokenFetchError           no token could be had; another try may get one
├── NetworkError                ApiConnectionError, ApiTimeoutError (also the builtins), DNSError (also
│                               socket.gaierror)
├── DatabaseError               SQL is away; the unit goes back and nothing is lost
│   ├── ConnectionPoolError       every connection is taken; TransactionError: another one came between
│   └── IntegrityError            a row breaks a rule of its table: no other try mends that
└── CollectionError             PartialCollectionError; RetryExhaustedError: attempts;
                                AllTiersFailedError: what each tier said

Three class attributes decide what follows, and nothing else does:
`recoverable` (is another try worth it), `trips` (does a circuit count it), `scope` (what it speaks about).
Of a single error `about` changes the latter two.
"""

import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, StrEnum
from itertools import islice
from typing import Any, ClassVar, Self, TypeVar

import pybreaker

T = TypeVar("T")


class Scope(StrEnum):
    """What an error says something about. A circuit counts `service` errors, unless it is made for another
    scope.
    """

    NONE = "none"
    SYMBOL = "symbol"
    ACCOUNT = "account"
    SERVICE = "service"


ABOUT: Mapping[str, Scope] = {
    "symbol": Scope.SYMBOL,
    "endpoint": Scope.SERVICE,
    "account": Scope.ACCOUNT,
    "host": Scope.SERVICE,
}


class PenstockError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    recoverable: ClassVar[bool] = False
    trips: bool = False
    scope: Scope = Scope.NONE
    whom: str | None = None  # of whom `about` said it speaks

    def __init__(
        self,
        message: str | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        cause: BaseException | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.details = dict(details or {})
        self.cause = cause
        self.timestamp = datetime.now(UTC)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    def about(self, whom: str) -> Self:
        """Let it speak of a "symbol", an "endpoint", an "account" or a "host", whatever its class says.

        What speaks of an endpoint or a host counts for its circuit, the rest does not. Returns the error.
        """
        self.whom = whom
        self.scope = ABOUT[whom]
        self.trips = self.scope is Scope.SERVICE
        return self

    @property
    def label(self) -> str:
        """Its code, after whom it speaks of where that is not what its class says."""
        return self.code if self.scope is type(self).scope else f"{self.whom}:{self.code}"

    def to_dict(self) -> dict[str, Any]:
        """What travels in outcomes and results: JSON, whatever the details hold, and bounded in size."""
        return {
            "error_type": type(self).__name__,
            "message": self.message,
            "code": self.code,
            "details": _Plain().of(self.details),
            "timestamp": _Plain().of(self.timestamp),
            "recoverable": self.recoverable,
            "cause": None if self.cause is None else _shown(self.cause),
        }


class ConfigurationError(PenstockError):
    """The configuration is wrong."""

    code = "configuration"


class ServerAwayError(ConfigurationError):
    """A server that is needed does not answer."""

    code = "server_away"


class Refused(PenstockError):  # noqa: N818 - the field's word for "we did not call"
    """The call was not made."""

    code = "refused"
    recoverable = True


class CircuitOpenError(Refused, pybreaker.CircuitBreakerError):  # type: ignore[misc]
    """The circuit is open."""

    code = "circuit_open"

    def __init__(
        self,
        message: str | None = None,
        *,
        circuit: str = "",
        retry_at: datetime | None = None,
        failure_count: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.circuit = circuit
        self.retry_at = retry_at
        self.reset_at = retry_at
        self.failure_count = failure_count


CircuitBreakerOpenError = CircuitOpenError  # the name that most breakers use


class Throttled(Refused):
    """A limit has no room for this call now."""

    code = "throttled"

    def __init__(
        self, message: str | None = None, *, limit: str = "", retry_after_s: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(message, **kwargs)
        self.limit = limit
        self.retry_after_s = retry_after_s


class StoreUnavailableError(PenstockError):
    """The shared state (Redis) did not answer."""

    code = "store_unavailable"
    recoverable = True


class APIError(PenstockError):
    """The server answered with an error."""

    code = "api_error"
    scope = Scope.SERVICE

    def __init__(
        self,
        message: str | None = None,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(message, **kwargs)
        self.status = status
        self.retry_after_s = retry_after_s


class RateLimitError(APIError):
    """The server says that we call too often."""

    code = "rate_limited"
    recoverable = True


class BannedError(RateLimitError):
    """The server has banned this address or key for a while."""

    code = "banned"


class ServerError(APIError):
    """The server failed."""

    code = "server_error"
    recoverable = True
    trips = True


class NotFoundError(APIError):
    """The server does not know this symbol."""

    code = "not_found"
    scope = Scope.SYMBOL


class ValidationError(APIError):
    """The server refuses this request as wrong."""

    code = "validation"
    scope = Scope.SYMBOL


class TooMuchError(ValidationError):
    """The server does not give that much at once."""

    code = "too_much"


class BadPayloadError(APIError):
    """The body is not what was agreed on."""

    code = "bad_payload"
    recoverable = True
    trips = True


class NoRowsError(BadPayloadError):
    """There is no row where some are always expected."""

    code = "no_rows"


class AuthenticationError(PenstockError):
    """The server does not accept our credentials."""

    code = "authentication"
    scope = Scope.ACCOUNT

    def __init__(self, message: str | None = None, *, status: int | None = None, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.status = status


class TokenExpiredError(AuthenticationError):
    """The access token is no longer valid."""

    code = "token_expired"


class InvalidCredentialsError(AuthenticationError):
    """The credentials are wrong or were revoked."""

    code = "invalid_credentials"


class TokenFetchError(AuthenticationError):
    """No access token could be fetched."""

    code = "token_fetch"
    recoverable = True


class NetworkError(PenstockError):
    """The server could not be reached."""

    code = "network"
    recoverable = True
    trips = True
    scope = Scope.SERVICE


class ApiConnectionError(NetworkError, ConnectionError):
    """The connection failed or broke off."""

    code = "connection"


class ApiTimeoutError(NetworkError, TimeoutError):
    """The server did not answer in time."""

    code = "timeout"


class DNSError(NetworkError, socket.gaierror):
    """The host name could not be resolved."""

    code = "dns"


class DatabaseError(PenstockError):
    """The database is away or refused the statement."""

    code = "database"
    recoverable = True


class ConnectionPoolError(DatabaseError):
    """Every connection to the database is taken."""

    code = "connection_pool"


class TransactionError(DatabaseError):
    """The transaction was undone because another one came between."""

    code = "transaction"


class IntegrityError(DatabaseError):
    """A row breaks a rule of its table."""

    code = "integrity"
    recoverable = False


class CollectionError(PenstockError):
    """The collection did not end as asked."""

    code = "collection"


class PartialCollectionError(CollectionError):
    """Only a part was collected."""

    code = "partial"


class RetryExhaustedError(CollectionError):
    """Every attempt failed."""

    code = "retries_exhausted"

    def __init__(self, message: str | None = None, *, attempts: int = 0, **kwargs: Any) -> None:
        super().__init__(message, **kwargs)
        self.attempts = attempts


class AllTiersFailedError(CollectionError):
    """Every tier failed."""

    code = "all_tiers_failed"

    def __init__(
        self, message: str | None = None, *, errors: Mapping[str, Exception] | None = None, **kwargs: Any
    ) -> None:
        self.errors = dict(errors or {})
        if message is None and self.errors:
            message = "every tier failed: " + "; ".join(f"{tier}: {e}" for tier, e in self.errors.items())
        super().__init__(message, **kwargs)
        self.details.setdefault("errors", self.errors)


_DEPTH, _VALUES, _LETTERS = 8, 1000, 1000


class _Plain:
    """Values as JSON has them: what it has no word for as text, and no more than somebody would read."""

    def __init__(self) -> None:
        self.left = _VALUES

    def of(self, value: Any, depth: int = 0) -> Any:
        self.left -= 1
        if self.left < 0 or depth > _DEPTH:
            return "…"
        try:
            return self._of(value.value if isinstance(value, Enum) else value, depth)
        except Exception:  # noqa: BLE001 - whatever it is, it must not hide the error that carries it
            return _shown(value)

    def _of(self, value: Any, depth: int) -> Any:
        match value:
            case None | bool():
                return value
            case int():
                return value if value.bit_length() < 1000 else _shown(value)
            case float() | Decimal():
                return value if isinstance(value, float) and math.isfinite(value) else str(value)
            case str():
                return value[:_LETTERS]
            case datetime() if value.tzinfo is not None:
                return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
            case date():
                return value.isoformat()
            case timedelta():
                return value.total_seconds()
        return self._of_many(value, depth)

    def _of_many(self, value: Any, depth: int) -> Any:
        match value:
            case BaseException():
                return self._of_error(value, depth)
            case Mapping():
                return {
                    self._name(name): self.of(each, depth + 1) for name, each in self._some(value.items())
                }
            case Sequence() | set() | frozenset() if not isinstance(value, (bytes, bytearray, memoryview)):
                return [self.of(each, depth + 1) for each in self._some(value)]
        return _shown(value)

    def _of_error(self, error: BaseException, depth: int) -> Any:
        facts = {"error_type": type(error).__name__, "message": str(error)}
        code = {"code": error.code} if isinstance(error, PenstockError) else {}
        return self.of(facts | code, depth + 1)

    def _some(self, values: Iterable[T]) -> Iterable[T]:
        return islice(values, max(0, self.left))

    @staticmethod
    def _name(key: Any) -> str:
        return (key if isinstance(key, str) else _shown(key))[:_LETTERS]


def _shown(value: Any) -> str:
    try:
        return repr(value)[:_LETTERS]
    except Exception:  # noqa: BLE001
        return f"a {type(value).__name__} that cannot be shown"
