"""The accounts that calls are made for, as SQL has them: their tokens, who refreshes them, who was stopped.

An API without access tokens has a row here only once its credentials were refused.
"""

import logging
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, RowMapping, and_, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from tasks.collectors.oauth import ACCOUNT, TokenAuth
from tasks.collectors.spec import Api
from tasks.models import accounts, events
from tasks.store import db_now, reading, writing

logger = logging.getLogger(__name__)

STOPPED = "account_stopped"
_KEPT = 5  # fingerprints of secrets, the newest ones


@dataclass(frozen=True, slots=True)
class Account:
    """An account as SQL has it. Seconds count from now, by the database's clock."""

    api: str
    name: str
    token: str | None = field(default=None, repr=False)  # encrypted
    version: int = 0  # how often tokens were stored
    fence: int = 0  # how often somebody set out to refresh
    left_s: float = 0.0  # how long the access token is used
    leased_s: float = 0.0  # how long whoever refreshes has for it
    salt: str = ""
    begun: tuple[str, ...] = ()  # first refresh tokens, the newest last
    refused: tuple[str, ...] = ()  # secrets
    stopped_at: datetime | None = None
    reason: str | None = None

    @property
    def title(self) -> str:
        """What people call it."""
        return titled(self.api, self.name)


def titled(api: str, name: str) -> str:
    """The Api's name, and that of the account where it has several."""
    return api if name == ACCOUNT else f"{api}/{name}"


def name_of(api: Api, symbol: str) -> str:
    """The account that a unit of this symbol speaks for."""
    own = api.auth.account(symbol) if isinstance(api.auth, TokenAuth) else ACCOUNT
    if api.account is None:
        return own
    return api.account if own == ACCOUNT else f"{api.account}/{own}"[:200]


def read(api: str, name: str) -> Account:
    """The account; one that is not there reads like one of which nothing is known."""
    with reading() as connection:
        return _read(connection, api, name)


def ready(api: str, name: str) -> Account:
    """The account, which there is from now on."""
    with writing() as connection:
        _make(connection, api, name)
        return _read(connection, api, name)


def lock(account: Account, seconds: float) -> Account | None:
    """Set out to refresh: nobody else will for so long. None when somebody does, or has done so meanwhile."""
    with writing() as connection:
        _make(connection, account.api, account.name)
        taken = connection.execute(
            update(accounts)
            .where(
                _is(account.api, account.name),
                accounts.c.version == account.version,
                or_(accounts.c.leased_until.is_(None), accounts.c.leased_until <= db_now()),
            )
            .values(fence=accounts.c.fence + 1, leased_until=db_now(seconds), updated_at=db_now())
        ).rowcount
        return _read(connection, account.api, account.name) if taken else None


def unlock(account: Account) -> None:
    """Let somebody else try, unless somebody else does already."""
    with writing() as connection:
        connection.execute(
            update(accounts)
            .where(_is(account.api, account.name), accounts.c.fence == account.fence)
            .values(leased_until=None, updated_at=db_now())
        )


def keep(account: Account, token: str, left_s: float, begun: str | None, refused: Sequence[str] = ()) -> bool:
    """Store new tokens, and let the account go on if it was stopped; `refused` are secrets that stay so.

    False when others were stored that are newer. Whoever holds the newest fence token asked last, so its
    tokens win; who was slow may still store what it got as long as nobody else has.
    """
    prints = _with(account.begun, begun) if begun else account.begun
    with writing() as connection:
        return bool(
            connection.execute(
                update(accounts)
                .where(
                    _is(account.api, account.name),
                    or_(accounts.c.fence == account.fence, accounts.c.version == account.version),
                )
                .values(
                    token=token,
                    expires_at=db_now(left_s),
                    version=accounts.c.version + 1,
                    leased_until=None,
                    begun=list(prints),
                    refused=list(refused),
                    stopped_at=None,
                    reason=None,
                    updated_at=db_now(),
                )
            ).rowcount
        )


def stop(account: Account, secret: str, reason: str) -> bool:
    """Have nobody call for the account with these secrets any more; told once, in events and log.

    `secret` is their fingerprint. False when they were refused before, or tokens came that are newer.
    """
    with writing() as connection:
        _make(connection, account.api, account.name)
        now = _read(connection, account.api, account.name, lock=True)
        if now.version != account.version or secret in now.refused:
            return False
        connection.execute(
            update(accounts)
            .where(_is(account.api, account.name))
            .values(
                refused=list(_with(now.refused, secret)),
                stopped_at=db_now(),
                reason=reason[:1000],
                leased_until=None,
                updated_at=db_now(),
            )
        )
        _tell(connection, STOPPED, account, {"reason": reason[:1000]})
    logger.error("account %s is stopped: %s", account.title, reason)
    return True


def go_on(account: Account) -> None:
    """Its secrets are others than those that were refused."""
    with writing() as connection:
        changed = connection.execute(
            update(accounts)
            .where(_is(account.api, account.name), accounts.c.stopped_at.is_not(None))
            .values(stopped_at=None, reason=None, updated_at=db_now())
        ).rowcount
        if changed:
            _tell(connection, "account_released", account, {"reason": "its secrets have changed"})


def release(api: str, name: str, actor: str) -> bool:
    """Have an account tried again with the secrets that were refused; False when there is none."""
    with writing() as connection:
        account = _read(connection, api, name, lock=True)
        changed = connection.execute(
            update(accounts)
            .where(_is(api, name))
            .values(refused=[], stopped_at=None, reason=None, leased_until=None, updated_at=db_now())
        ).rowcount
        if changed:
            _tell(connection, "account_released", account, {"actor": actor})
    return bool(changed)


def listed() -> list[Account]:
    """All of which something is known."""
    with reading() as connection:
        order = (accounts.c.api, accounts.c.name)
        return [_account(row) for row in connection.execute(_SELECT.order_by(*order)).mappings()]


_SELECT = select(accounts, db_now().label("now"))


def _read(connection: Connection, api: str, name: str, *, lock: bool = False) -> Account:
    query = _SELECT.where(_is(api, name))
    rows = connection.execute(query.with_for_update() if lock else query).mappings()
    return next((_account(row) for row in rows), Account(api, name))


def _account(row: RowMapping) -> Account:
    def left_s(at: datetime | None) -> float:
        return 0.0 if at is None else max(0.0, (at - row["now"]).total_seconds())

    return Account(
        api=row["api"],
        name=row["name"],
        token=row["token"],
        version=row["version"],
        fence=row["fence"],
        left_s=left_s(row["expires_at"]),
        leased_s=left_s(row["leased_until"]),
        salt=row["salt"],
        begun=tuple(row["begun"]),
        refused=tuple(row["refused"]),
        stopped_at=row["stopped_at"],
        reason=row["reason"],
    )


def _make(connection: Connection, api: str, name: str) -> None:
    """See to it that there is a row; what is there stays."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    connection.execute(
        dialect.insert(accounts)
        .values(api=api, name=name, salt=secrets.token_hex(16), begun=[], refused=[], updated_at=db_now())
        .on_conflict_do_nothing(index_elements=[*accounts.primary_key])
    )


def _is(api: str, name: str) -> ColumnElement[bool]:
    return and_(accounts.c.api == api, accounts.c.name == name)


def _with(prints: Sequence[str], new: str) -> tuple[str, ...]:
    return (*(each for each in prints if each != new), new)[-_KEPT:]


def _tell(connection: Connection, kind: str, account: Account, detail: Mapping[str, Any]) -> None:
    connection.execute(
        insert(events).values(at=db_now(), kind=kind, subject=account.title[:200], detail=dict(detail))
    )
