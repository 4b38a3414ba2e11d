"""A token server: client credentials, and refresh tokens that may serve only once."""

import base64
import json
import time
from typing import Any

from tests.upstream.apis.base import Answer, Api, Charge, RejectedError, Request, encode

CLIENT = ("the-client-of-a-test", "the-secret-of-a-client")
REFRESH = "the-refresh-token-of-a-test"


class Tokens:
    """The accounts of one client. A refresh token that was rotated away is refused for ever, but for `grace_s`."""

    def __init__(self, name: str, *, rotates: bool, refreshes: bool, lifetime_s: float):
        self.name, self.rotates, self.refreshes = name, rotates, refreshes
        self.lifetime_s, self.grace_s = lifetime_s, 0.0
        self.granted = self.refused = 0
        self.revoked = False
        self.access: dict[str, tuple[str, float]] = {}  # token → whose, and until when on the monotonic clock
        self.current = REFRESH
        self.replaced: dict[str, float] = {}  # refresh token → since when it no longer serves

    def expire(self) -> None:
        """Have every access token expire at once."""
        self.access.clear()

    def whose(self, token: str) -> str | None:
        """Whom the token lets in now."""
        account, until = self.access.get(token, ("", 0.0))
        return account if until > time.monotonic() else None

    def answer(self, request: Request, now: float) -> Answer:
        """A token, or why there is none."""
        form = request.form
        if request.method != "POST" or _client(request, form) != CLIENT:
            return self.refuse(401, "invalid_client")
        kind = form.get("grant_type")
        if kind != ("refresh_token" if self.refreshes else "client_credentials"):
            return self.refuse(400, "unsupported_grant_type")
        if self.revoked or (self.refreshes and not self._serves(form.get("refresh_token", ""))):
            return self.refuse(400, "invalid_grant")
        found = self.grant("account")
        if self.rotates:
            self.replaced[self.current] = time.monotonic()
            self.current = f"refresh-of-{self.name}-{self.granted}-and-of-nobody-else"
            found["refresh_token"] = self.current
        return Answer(200, encode(found))

    def _serves(self, refresh: str) -> bool:
        since = self.replaced.get(refresh)
        return refresh == self.current or (since is not None and time.monotonic() - since < self.grace_s)

    def grant(self, account: str) -> dict[str, Any]:
        """An access token of an account."""
        self.granted += 1
        token = f"access-of-{self.name}-{self.granted}-and-of-nobody-else"
        self.access[token] = account, time.monotonic() + self.lifetime_s
        return {"access_token": token, "token_type": "Bearer", "expires_in": int(self.lifetime_s)}

    def refuse(self, status: int, error: str) -> Answer:
        self.refused += 1
        return Answer(status, encode({"error": error}))


def _client(request: Request, form: dict[str, str]) -> tuple[str, str]:
    kind, _, pair = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            user, _, password = base64.b64decode(pair).decode().partition(":")
        except ValueError:
            return "", ""
        return user, password
    return form.get("client_id", ""), form.get("client_secret", "")


class TokenApi(Api):
    """An API that wants an access token, which its token server gives at `token_path`."""

    token_path = "token"
    scheme = "bearer"
    rotates = refreshes = False
    lifetime_s = 3600.0

    def reset(self) -> None:
        super().reset()
        self.tokens = self.token_server()

    def token_server(self) -> Tokens:
        return Tokens(self.name, rotates=self.rotates, refreshes=self.refreshes, lifetime_s=self.lifetime_s)

    def control(self, name: str, value: Any) -> None:
        match name:
            case "token_lifetime_s":
                self.tokens.lifetime_s = float(value)
            case "token_grace_s":
                self.tokens.grace_s = float(value)
            case "expire_tokens":
                self.tokens.expire()
            case "revoke":
                self.tokens.revoked = bool(value)
            case _:
                super().control(name, value)

    def report(self) -> dict[str, Any]:
        return {"tokens": {"granted": self.tokens.granted, "refused": self.tokens.refused}}

    def key(self, request: Request) -> str:
        if self.asks_token(request):
            return "token"
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        account = self.tokens.whose(token) if kind.lower() == self.scheme else None
        if account is None:
            raise RejectedError(401, json.loads(self.trouble(401)))
        return account

    def asks_token(self, request: Request) -> bool:
        """Whether this is a request to the token server."""
        return request.path == self.token_path

    def charges(self, request: Request, key: str) -> list[Charge]:
        return [] if self.asks_token(request) else super().charges(request, key)

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        return self.tokens.answer(request, now) if self.asks_token(request) else self.found(request, bad, now)

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        """What the API itself answers."""
        raise NotImplementedError
