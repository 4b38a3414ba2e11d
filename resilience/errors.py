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
│   └── BadPayloadError           the body is not what was agreed on
├── AuthenticationError         TokenExpiredError: refresh once; InvalidCredentialsError: stop
├── NetworkError                ApiConnectionError, ApiTimeoutError (also the builtins), DNSError
├── DatabaseError               SQL is away or refused; the unit goes back and nothing is lost
└── CollectionError             PartialCollectionError, RetryExhaustedError

Three class attributes decide what follows, and nothing else does:
`recoverable` (is another try worth it), `trips` (does a circuit count it), `scope` (what it speaks about).
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar

import pybreaker


class Scope(StrEnum):
    """What an error says something about. Only `service` errors are counted by a circuit."""

    NONE = "none"
    SYMBOL = "symbol"
    ACCOUNT = "account"
    SERVICE = "service"


class PenstockError(Exception):
    """Something went wrong."""

    code: ClassVar[str] = "error"
    recoverable: ClassVar[bool] = False
    trips: ClassVar[bool] = False
    scope: ClassVar[Scope] = Scope.NONE

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

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe facts; what travels in outcomes and results."""
        return {
            "error_type": type(self).__name__,
            "message": self.message,
            "code": self.code,
            "details": self.details,
            "timestamp": self.timestamp.isoformat().replace("+00:00", "Z"),
            "recoverable": self.recoverable,
            "cause": None if self.cause is None else repr(self.cause),
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


class BadPayloadError(APIError):
    """The body is not what was agreed on."""

    code = "bad_payload"
    recoverable = True
    trips = True


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


class DNSError(NetworkError):
    """The host name could not be resolved."""

    code = "dns"


class DatabaseError(PenstockError):
    """The database is away or refused the statement."""

    code = "database"
    recoverable = True


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
