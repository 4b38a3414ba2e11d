"""What the database holds of secrets: tokens that only `PENSTOCK_TOKEN_KEY` opens, and fingerprints."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from resilience.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of an account."""

    access: str = field(repr=False)
    refresh: str | None = field(default=None, repr=False)


class Seal:
    """Encrypts with the first of several keys, and opens what any of them has encrypted."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._fernet = MultiFernet([Fernet(key) for key in keys])

    def close(self, account: str, tokens: Tokens) -> str:
        """The tokens as text that says nothing, bound to their account."""
        plain = json.dumps({"account": account, "access": tokens.access, "refresh": tokens.refresh})
        return self._fernet.encrypt(plain.encode()).decode()

    def open(self, account: str, text: str) -> Tokens:
        """The tokens of an account. Raises ConfigurationError where no key opens them."""
        try:
            plain = json.loads(self._fernet.decrypt(text.encode()))
        except (InvalidToken, ValueError):
            plain = {}
        if plain.get("account") != account:
            raise ConfigurationError(
                f"{account}: no key in PENSTOCK_TOKEN_KEY opens its tokens; "
                "add the key that they were encrypted with behind the new one, after a comma, "
                "or begin with a new refresh token"
            ) from None
        return Tokens(plain["access"], plain["refresh"])


def new_key() -> str:
    """A key for `PENSTOCK_TOKEN_KEY`."""
    return Fernet.generate_key().decode()


@lru_cache(maxsize=1024)
def fingerprint(salt: str, *values: str) -> str:
    """What tells that secrets are the same ones, and nothing else about them.

    Slow on purpose, for a password can be guessed: about a twentieth of a second, once for each process.
    """
    text = json.dumps(values).encode()
    return hashlib.scrypt(text, salt=salt.encode(), n=2**14, r=8, p=1, dklen=16).hex()
