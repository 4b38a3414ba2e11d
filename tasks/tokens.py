"""The token keeper: access tokens for calls, refreshed by one process at a time, and accounts that stop.

Of all workers one refreshes an account; the others wait for what it stores, and never longer than a unit
waits for a limit. A new refresh token is stored before its access token is used. A worker that dies in
between leaves the old one in SQL, which is tried again: many servers let it serve a while longer. One that
was only slow may still store what it got, as long as nobody else has.
"""

import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import lru_cache
from types import MappingProxyType
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from resilience.errors import (
    ConfigurationError,
    DatabaseError,
    InvalidCredentialsError,
    PenstockError,
    Refused,
)
from resilience.guard import CallResult, Refuse, Wait
from tasks import accounts
from tasks.accounts import Account
from tasks.collectors.oauth import Grant, TokenAuth, read_grant
from tasks.collectors.spec import Api
from tasks.http import client
from tasks.limits import guard, token_ask
from tasks.seal import Seal, Tokens, fingerprint
from tasks.settings import Settings, get_settings

logger = logging.getLogger(__name__)

LOOKED_AT_S = 2.0  # how long a process believes that an account was not stopped by another one
_LOOKS_EVERY_S = 0.1
_MOST_HELD = 4096
_MARGIN_S, _MARGIN = 60.0, 0.1  # a token is not used up to its very end
_BODY_BYTES = 1 << 16
_SAVES_AFTER_S = (0.0, 0.2, 0.5, 1.0, 2.0)


class AccountStopped(Refused):
    """The credentials of an account were refused."""

    code = accounts.STOPPED
    recoverable = False


class TokenWait(Refused):
    """Another worker is refreshing."""

    code = "token_wait"

    def __init__(self, seconds: float, reason: str) -> None:
        super().__init__(f"waits {seconds:.1f} s for {reason}")
        self.seconds = seconds
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Credential:
    """What a call carries: an access token, or nothing where the secrets themselves do."""

    access: str | None = field(repr=False)
    version: int


@dataclass(frozen=True, slots=True)
class Use:
    """The stored token will do."""

    access: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Refresh:
    """Get another one."""


@dataclass(frozen=True, slots=True)
class Await:
    """Somebody else gets another one, and has so long for it."""

    seconds: float


def decide(account: Account, stored: Tokens | None, *, past: int | None) -> Use | Refresh | Await:
    """What to do for a token.

    `stored` are the tokens that go back to the secrets which we have, `past` is the version that was refused.
    """
    if stored is not None and account.left_s > 0 and (past is None or account.version > past):
        return Use(stored.access)
    return Await(account.leased_s) if account.leased_s > 0 else Refresh()


@dataclass(frozen=True, slots=True)
class _Held:
    credential: Credential
    good_until: float
    seen_at: float


@dataclass(frozen=True, slots=True)
class _Got:
    """Tokens that are not in SQL yet."""

    account: Account
    tokens: Tokens = field(repr=False)
    until: float
    begun: str | None
    refused: tuple[str, ...]  # secrets of others, which stay refused


@dataclass(frozen=True, slots=True)
class _Asked:
    api: Api
    whose: str
    name: str
    refused: Credential | None
    timeout_s: float

    @property
    def key(self) -> tuple[str, str]:
        return self.whose, self.name


class Keeper:
    """The credentials of this process. Threads may share it."""

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        keys = settings.token_keys
        self._seal = Seal(keys) if keys else None
        self._secret = settings.secret
        self._wait_s = settings.inline_wait_s
        self._call_s = settings.call_timeout_s
        self._clock = clock
        self._sleep = sleep
        self._held: OrderedDict[tuple[str, str], _Held] = OrderedDict()
        self._got: dict[tuple[str, str], _Got] = {}
        self._alone: WeakValueDictionary[tuple[str, str], threading.Lock] = WeakValueDictionary()
        self._mutex = threading.Lock()

    def credential(
        self, api: Api, symbol: str, *, refused: Credential | None = None, timeout_s: float | None = None
    ) -> Credential | None:
        """What a call for this symbol carries; None where the Api takes no credentials.

        Newer than the one that was `refused`. Raises AccountStopped, TokenWait where another worker takes
        long, ConfigurationError for secrets that are missing, and what went wrong with the token server.
        """
        if not api.secrets:
            return None
        key = (api.name, accounts.name_of(api, symbol))
        held = self._held.get(key)
        if held is not None and refused is None and self._is_fresh(held):
            return held.credential
        asked = _Asked(api, *key, refused, min(self._call_s, timeout_s or self._call_s))
        with self._one_at_a_time(key):
            held = self._held.get(key)
            if held is not None and held.credential != refused and self._is_fresh(held):
                return held.credential
            return self._look(asked)

    def stop(self, api: Api, symbol: str, credential: Credential, reason: str) -> None:
        """A call was refused, and what it carried is the newest there is: no more calls for the account."""
        key = (api.name, accounts.name_of(api, symbol))
        self._stop(api, accounts.ready(*key), credential.version, reason)

    def _is_fresh(self, held: _Held) -> bool:
        now = self._clock()
        return now < held.good_until and now < held.seen_at + LOOKED_AT_S

    @contextmanager
    def _one_at_a_time(self, key: tuple[str, str]) -> Iterator[None]:
        """Of the threads of this process."""
        with self._mutex:
            lock = self._alone.setdefault(key, threading.Lock())
        if not lock.acquire(timeout=self._wait_s):
            raise TokenWait(self._wait_s, f"the token of {accounts.titled(*key)}")
        try:
            yield
        finally:
            lock.release()

    def _look(self, asked: _Asked) -> Credential:
        if not isinstance(asked.api.auth, TokenAuth):
            account = accounts.read(*asked.key)
            self._check(asked.api, account)
            return self._hold(asked.key, Credential(None, account.version), float("inf"))
        if self._seal is not None:
            return self._shared(asked, asked.api.auth, self._seal)
        if asked.api.auth.keeps:
            raise ConfigurationError(_no_key(accounts.titled(*asked.key)))
        return self._own(asked, asked.api.auth)

    def _own(self, asked: _Asked, auth: TokenAuth) -> Credential:
        """A token for this process alone: without a key none is stored."""
        account = accounts.read(*asked.key)
        self._check(asked.api, account)
        held = self._held.get(asked.key)
        if held is not None and held.credential != asked.refused and self._clock() < held.good_until:
            return self._hold(asked.key, held.credential, held.good_until)
        try:
            grant = self._ask(asked, auth, auth.first_refresh(self._secret))
        except InvalidCredentialsError as error:
            self._stop(asked.api, accounts.ready(*asked.key), account.version, str(error))
            raise
        credential = Credential(grant.access, account.version)
        return self._hold(asked.key, credential, self._clock() + _used_s(grant))

    def _shared(self, asked: _Asked, auth: TokenAuth, seal: Seal) -> Credential:
        """The token that all workers share, refreshed by one of them."""
        until = self._clock() + self._wait_s
        past = None if asked.refused is None else asked.refused.version
        self._save_what_is_left(asked.key, seal)
        while True:
            account = accounts.read(*asked.key)
            self._check(asked.api, account)
            first = auth.first_refresh(self._secret)
            stored = None
            if account.token is not None and (first is None or _goes_back_to(account, first)):
                stored = _opened(seal, account, needed=auth.keeps)
            match decide(account, stored, past=past):
                case Use(access):
                    credential = Credential(access, account.version)
                    return self._hold(asked.key, credential, self._clock() + account.left_s)
                case Await(seconds):
                    if self._clock() >= until:
                        raise TokenWait(min(seconds, self._wait_s), f"the token of {account.title}")
                    self._sleep(_LOOKS_EVERY_S)
                case Refresh():
                    locked = accounts.lock(account, self._call_s + 5)
                    if locked is not None:
                        got = self._refresh(asked, auth, locked, stored, first)
                        if got is not None:
                            self._got[asked.key] = got
                            self._save_what_is_left(asked.key, seal)

    def _refresh(
        self, asked: _Asked, auth: TokenAuth, locked: Account, stored: Tokens | None, first: str | None
    ) -> _Got | None:
        """New tokens, by the stored refresh token or else the first one.

        None where somebody else stored some meanwhile.
        """
        refresh = first if stored is None else stored.refresh
        try:
            grant = self._ask(asked, auth, refresh)
        except InvalidCredentialsError as error:
            if accounts.read(*asked.key).version != locked.version:
                return None
            self._stop(asked.api, locked, locked.version, str(error))
            raise
        except BaseException:
            with suppress(DatabaseError):
                accounts.unlock(locked)
            raise
        tokens = Tokens(grant.access, grant.refresh or refresh)
        begun = fingerprint(locked.salt, first) if stored is None and first is not None else None
        refused = locked.refused
        if refused:
            refused = tuple(each for each in refused if each != self._fingerprint(asked.api, locked))
        return _Got(locked, tokens, self._clock() + _used_s(grant), begun, refused)

    def _save_what_is_left(self, key: tuple[str, str], seal: Seal) -> None:
        """Store what was got. A refresh token is not given up for a database that is away for a moment."""
        got = self._got.get(key)
        if got is None:
            return
        token = seal.close(got.account.title, got.tokens)
        for n, pause_s in enumerate(_SAVES_AFTER_S):
            self._sleep(pause_s)
            try:
                left_s = max(0.0, got.until - self._clock())
                kept = accounts.keep(got.account, token, left_s, got.begun, got.refused)
            except DatabaseError:
                if n == len(_SAVES_AFTER_S) - 1:
                    raise  # the next call for this account tries again
                continue
            if not kept:
                logger.info("account %s has newer tokens than those that came late", got.account.title)
            self._got.pop(key, None)
            return

    def _ask(self, asked: _Asked, auth: TokenAuth, refresh: str | None) -> Grant:
        """One guarded call to the token server."""
        api = asked.api
        form = auth.request(self._secret, refresh=refresh, account=asked.name, now=datetime.now(UTC))
        agent = {name: value for name, value in api.headers.items() if name.lower() == "user-agent"}
        request = replace(form, headers={**form.headers, **agent})
        verdict = guard().admit(token_ask(api))
        if isinstance(verdict, Refuse):
            raise verdict.error()
        if isinstance(verdict, Wait):
            raise TokenWait(verdict.seconds, f"the token server of {api.name}")
        failure: BaseException | None = None
        started = self._clock()
        try:
            answer = client().send(
                _token_server(api, request.url),
                request,
                lease=verdict.lease,
                timeout_s=asked.timeout_s,
                max_body_bytes=_BODY_BYTES,
            )
            return read_grant(accounts.titled(*asked.key), answer)
        except BaseException as error:
            failure = error
            raise
        finally:
            result = CallResult.of(failure, latency_s=self._clock() - started)
            guard().settle_quietly(verdict.lease, result)

    def _check(self, api: Api, account: Account) -> None:
        """Raise AccountStopped if our secrets were refused; others than those let it go on."""
        if not account.refused:
            return
        if self._fingerprint(api, account) in account.refused:
            self._held.pop((account.api, account.name), None)
            reason = account.reason or "the credentials that this process has are old ones"
            raise AccountStopped(
                f"account {account.title} is stopped: {reason}; give it other credentials, "
                f"or try these again by `penstock accounts release {account.title}`"
            )
        if account.stopped_at is not None:
            accounts.go_on(account)

    def _stop(self, api: Api, account: Account, version: int, reason: str) -> None:
        self._held.pop((account.api, account.name), None)
        if account.version == version:
            accounts.stop(account, self._fingerprint(api, account), reason)

    def _fingerprint(self, api: Api, account: Account) -> str:
        return fingerprint(account.salt, *(self._secret(name) for name in api.secrets))

    def _hold(self, key: tuple[str, str], credential: Credential, good_until: float) -> Credential:
        with self._mutex:
            self._held[key] = _Held(credential, good_until, self._clock())
            while len(self._held) > _MOST_HELD:
                self._held.popitem(last=False)
        return credential


@lru_cache(maxsize=4)
def _keeper_of(pid: int) -> Keeper:
    del pid  # locks and tokens are not shared with a forked child
    return Keeper(get_settings())


def keeper() -> Keeper:
    """The keeper of this process."""
    return _keeper_of(os.getpid())


def missing(api: Api, settings: Settings) -> list[str]:
    """What is wrong with the secrets that an Api takes, a sentence for each."""
    found = []
    for name in dict.fromkeys(api.secrets):
        try:
            settings.secret(name)
        except PenstockError as error:
            found.append(f"{api.name}: {error}")
    if isinstance(api.auth, TokenAuth) and api.auth.keeps and not settings.token_keys:
        found.append(_no_key(api.name))
    return found


def _no_key(title: str) -> str:
    return (
        f"{title}: PENSTOCK_TOKEN_KEY is missing, the key for refresh tokens in the database; "
        "`penstock accounts new-key` makes one"
    )


def _used_s(grant: Grant) -> float:
    return grant.expires_s - min(_MARGIN_S, grant.expires_s * _MARGIN)


def _opened(seal: Seal, account: Account, *, needed: bool) -> Tokens | None:
    """The stored tokens; None where no key opens them and others can be had without them."""
    try:
        return seal.open(account.title, account.token or "")
    except ConfigurationError:
        if needed:
            raise
        return None


def _goes_back_to(account: Account, first: str) -> bool:
    return bool(account.begun) and fingerprint(account.salt, first) in account.begun


def _token_server(api: Api, url: str) -> Api:
    """The host of the tokens, as the client takes it: nothing of the Api's own goes there."""
    own = copy(api)
    parts = urlsplit(url)
    own.base_url, own.host = f"{parts.scheme}://{parts.netloc}", None
    own.auth, own.timeout_s = None, None
    own.secret_headers = MappingProxyType({})
    return own
