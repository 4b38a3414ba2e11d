"""Which answer is which error: an API's own rules first, then what HTTP says."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from resilience.errors import (
    ABOUT,
    APIError,
    ApiTimeoutError,
    AuthenticationError,
    BadPayloadError,
    BannedError,
    ConfigurationError,
    InvalidCredentialsError,
    NotFoundError,
    PenstockError,
    RateLimitError,
    ServerError,
    TokenExpiredError,
    TooMuchError,
    ValidationError,
)
from resilience.headers import retry_after_s
from tasks.collectors.fields import clean, duration
from tasks.collectors.values import Answer

RESTART = "restart"
RESYNC = "resync"
TOO_MUCH = "too_much"
_SEARCHED_BYTES = 4096
_SHOWN_CHARACTERS = 200

_ERRORS: Mapping[str, type[PenstockError]] = {
    "rate_limited": RateLimitError,
    "banned": BannedError,
    "not_found": NotFoundError,
    "invalid_symbol": ValidationError,
    "validation": ValidationError,
    TOO_MUCH: TooMuchError,
    "server_error": ServerError,
    "unauthorized": InvalidCredentialsError,
    "token_expired": TokenExpiredError,
    "timeout": ApiTimeoutError,
    "bad_payload": BadPayloadError,
}


@dataclass(frozen=True, slots=True)
class Rule:
    """An answer with this status (and this pattern in its first 4 KB, where one is given) means `outcome`.

    `retry_after` ("2m") is the wait to keep where the server names none. `scope` is whom it speaks of, where
    that is not what the outcome says by itself: "symbol", "endpoint", "account" or "host".

    Three outcomes are no errors as long as something can be done. "restart": the checkpoint has gone stale,
    and the unit begins again at its first page, once. "resync": the sync token has, and everything is read
    again; only a call that sent one is looked at. "too_much": the page is asked for again by half.
    """

    outcome: str
    status: int | tuple[int, ...] | range | None = None
    body: str | None = None
    retry_after: str | None = None
    scope: str | None = None

    def __post_init__(self) -> None:
        if self.outcome not in {RESTART, RESYNC} and self.outcome not in _ERRORS:
            known = ", ".join([*_ERRORS, RESTART, RESYNC])
            raise ConfigurationError(f"Rule.outcome is {self.outcome!r}; it is one of {known}")
        if self.status is None and self.body is None:
            raise ConfigurationError(
                f"Rule({self.outcome!r}) needs `status` or `body`: it would match every answer"
            )
        if self.retry_after is not None:
            duration(self.retry_after, f"Rule({self.outcome!r}).retry_after")
        if self.scope is not None and self.scope not in ABOUT:
            raise ConfigurationError(
                f"Rule({self.outcome!r}).scope is {self.scope!r}; it is one of {', '.join(ABOUT)}"
            )
        try:
            re.compile((self.body or "").encode())
        except re.error as error:
            raise ConfigurationError(
                f"Rule({self.outcome!r}).body is no regular expression: {error}"
            ) from error

    def matches(self, answer: Answer) -> bool:
        """Whether this rule speaks about the answer."""
        if isinstance(self.status, int):
            if answer.status != self.status:
                return False
        elif self.status is not None and answer.status not in self.status:
            return False
        return self.body is None or re.search(self.body.encode(), answer.body[:_SEARCHED_BYTES]) is not None

    def error(self, api: str, answer: Answer) -> PenstockError:
        """The error that this rule says the answer is."""
        found = self._error(api, answer)
        return found if self.scope is None else found.about(self.scope)

    def _error(self, api: str, answer: Answer) -> PenstockError:
        kind = _ERRORS[self.outcome]
        message = f"{api} answered {answer.status}: {excerpt(answer.body)}"
        if issubclass(kind, APIError):
            return kind(message, status=answer.status, retry_after_s=self._wait_s(answer))
        if issubclass(kind, AuthenticationError):
            return kind(message, status=answer.status)
        return kind(message, details={"status": answer.status})

    def _wait_s(self, answer: Answer) -> float | None:
        asked = retry_after_s(answer.headers)
        if asked is None and self.retry_after is not None:
            return duration(self.retry_after, "Rule.retry_after").total_seconds()
        return asked


_BUILT_IN = (
    Rule("token_expired", status=401, body="(?i)expired"),
    Rule("unauthorized", status=(401, 403)),
    Rule("not_found", status=(404, 410)),
    Rule("timeout", status=408),
    Rule("rate_limited", status=429),
    Rule("validation", status=(400, 422)),
    Rule("server_error", status=range(500, 600)),
)


# What Google's APIs say over a limit, without a time to wait: of a minute, of a day.
GOOGLE_QUOTAS = (
    Rule("rate_limited", status=(403, 429), body='"(userR|r)ateLimitExceeded"', retry_after="30s"),
    Rule("rate_limited", status=(403, 429), body='"(dailyLimit|quota)Exceeded"', retry_after="1h"),
)


def classify(api: str, rules: Iterable[Rule], answer: Answer) -> PenstockError | None:
    """The error that an answer is, None for a good one and for one that asks to begin again."""
    rule = first_of(rules, answer)
    if rule is not None:
        return None if rule.outcome == RESTART else rule.error(api, answer)
    if 200 <= answer.status < 300:
        return None
    for rule in _BUILT_IN:
        if rule.matches(answer):
            return rule.error(api, answer)
    if 300 <= answer.status < 400:
        return _redirected(api, answer)
    return APIError(f"{api} answered {answer.status}: {excerpt(answer.body)}", status=answer.status)


def first_of(rules: Iterable[Rule], answer: Answer, *, synced: bool = False) -> Rule | None:
    """The first rule that speaks about an answer; those for sync tokens only if one was sent."""
    return next((rule for rule in rules if (synced or rule.outcome != RESYNC) and rule.matches(answer)), None)


def refuses(rules: Iterable[Rule], answer: Answer) -> bool:
    """Whether an answer refuses the credentials themselves: a 401, or what a rule says does.

    A 403 may be about this one resource, and so may a 401 that a rule says is.
    """
    rule = first_of(rules, answer)
    if rule is None:
        return answer.status == 401
    return rule.scope in {None, "account"} and issubclass(
        _ERRORS.get(rule.outcome, PenstockError), AuthenticationError
    )


def _redirected(api: str, answer: Answer) -> APIError:
    return APIError(
        f"{api} answered {answer.status} and points to {_host(answer.headers.get('location', ''))}; "
        "redirects are not followed: correct its base_url",
        status=answer.status,
    )


def _host(url: str) -> str:
    # Only the host: the rest of the address may carry what is nobody's business.
    try:
        return urlsplit(url).hostname or "another path"
    except ValueError:
        return "an address that is none"


def excerpt(body: bytes) -> str:
    """The first 200 characters, for messages."""
    return clean(body[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace")[:_SHOWN_CHARACTERS])
