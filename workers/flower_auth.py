"""Who may see Flower: the credentials from the settings, or ones that are made and kept."""

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from resilience.errors import ConfigurationError
from tasks.settings import Settings, credentials

_USER = "penstock"


@dataclass(frozen=True, slots=True)
class FlowerAuth:
    """User and password, and where the password stands for whoever has to type it."""

    user: str
    password: str = field(repr=False)
    place: str

    @property
    def told(self) -> str:
        """What may be shown: everything but the password."""
        return f"user {self.user}, password in {self.place}"


def flower_auth(settings: Settings) -> FlowerAuth:
    """The credentials to ask for: PENSTOCK_FLOWER_AUTH, else those in `<state_dir>/flower.auth`.

    That file is made, for its owner only, when it is not there. Raises ConfigurationError when it can neither
    be made nor read.
    """
    if settings.flower_auth is not None:
        user, password = credentials(settings.flower_auth.get_secret_value())
        return FlowerAuth(user, password, "PENSTOCK_FLOWER_AUTH")
    path = settings.state_dir / "flower.auth"
    try:
        _make(path)
        text = path.read_text()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot hold Flower's password: {error.strerror}") from None
    try:
        user, password = credentials(text.strip())
    except ValueError:
        raise ConfigurationError(f"{path} holds no user:password; remove it, and a new one is made") from None
    return FlowerAuth(user, password, str(path))


def _make(path: Path) -> None:
    """Put new credentials there, whole and in one step, unless there are some already."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".flower-")  # for the owner only
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{_USER}:{secrets.token_urlsafe(18)}\n")
        with contextlib.suppress(FileExistsError):
            os.link(name, path)  # unlike a rename, leaves what another process has just put there
    finally:
        Path(name).unlink()
