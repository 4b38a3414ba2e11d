"""Environment and file → one frozen `Settings`; the only reader of `os.environ`."""

import base64
import functools
import os
import re
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from resilience.errors import ConfigurationError, ServerAwayError
from tasks.overrides import closest, read_overrides
from tasks.runtime import Runtime

_PREFIX = "PENSTOCK_"
_NOT_OURS = ("PENSTOCK_TEST_", "PENSTOCK_REQUIRE_SERVICES")


def masked(url: str) -> str:
    """The URL with every password in it replaced, fit to be shown."""
    url = re.sub(r"(://[^:@/?#]*):.*@", r"\1:***@", url)
    return re.sub(r"([?&][^=&]*(?:password|secret|token)[^=&]*=)[^&#]*", r"\1***", url, flags=re.IGNORECASE)


def _split(value: Any) -> Any:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
    )


def _starts_with(*schemes: str) -> AfterValidator:
    def check(url: SecretStr | None) -> SecretStr | None:
        if url and not url.get_secret_value().startswith(schemes):
            raise ValueError
        return url

    return AfterValidator(check)


def credentials(text: str) -> tuple[str, str]:
    """User and password out of user:password. Raises ValueError when that is not what it is."""
    user, colon, password = text.partition(":")
    # Flower compares texts only as long as they are ASCII.
    if not (user and colon and password and text.isascii() and text.isprintable()):
        raise ValueError
    return user, password


def _check_credentials(text: SecretStr | None) -> SecretStr | None:
    if text:
        credentials(text.get_secret_value())
    return text


def _keys(text: SecretStr | None) -> tuple[str, ...]:
    return tuple(_split(text.get_secret_value())) if text else ()


def _check_keys(text: SecretStr | None) -> SecretStr | None:
    for key in _keys(text):
        if len(base64.urlsafe_b64decode(key)) != 32:
            raise ValueError
    return text


def _each_like(pattern: str) -> AfterValidator:
    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(pattern, name) for name in names):
            raise ValueError
        return names

    return AfterValidator(check)


def _absolute(path: Path | None) -> Path | None:
    # Processes that we start elsewhere have to mean the same place.
    return path and path.expanduser().absolute()


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


# A description says what is allowed; the sentence about a wrong value ends in it.
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False, description="a number of seconds above 0")]
Count = Annotated[int, Field(ge=1, description="a whole number of at least 1")]
RedisUrl = Annotated[
    SecretStr | None,
    _starts_with("redis://", "rediss://"),
    Field(description="a URL like redis://host:6379/0 or rediss://user:password@host:6379/0"),
]
BrokerUrl = Annotated[
    SecretStr | None,
    _starts_with("redis://", "rediss://", "amqp://", "amqps://"),
    Field(description="a URL like redis://host:6379/0 or amqp://user:password@host:5672/vhost"),
]
DatabaseUrl = Annotated[
    SecretStr | None,
    _starts_with("sqlite:///", "postgresql://", "postgres://", "postgresql+psycopg://"),
    Field(
        description="a URL like postgresql://user:password@host/penstock or sqlite:////path/to/penstock.db"
    ),
]
Credentials = Annotated[
    SecretStr | None,
    AfterValidator(_check_credentials),
    Field(description="user:password, in ASCII"),
]
Collectors = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split),
    _each_like(r"[\w-]+|[\w.]+:[\w.]+"),
    Field(description="names of collectors or module:attribute, separated by commas"),
]
Schedules = Annotated[
    tuple[str, ...],
    NoDecode,
    BeforeValidator(_split),
    _each_like(r"\*|[\w-]+(\.[\w-]+)?"),
    Field(description="names like binance or binance.klines, separated by commas, or * for all"),
]
LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"],
    BeforeValidator(_upper),
    Field(description="one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
]


TokenKey = Annotated[
    SecretStr | None,
    AfterValidator(_check_keys),
    Field(description="a key as `penstock accounts new-key` makes it, or several, separated by commas"),
]


class Settings(BaseSettings):
    """Everything an installation can set. Each field is read from `PENSTOCK_<NAME>`.

    Raises ConfigurationError with one sentence per problem. Secrets stand in neither message nor `repr`.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_ignore_empty=True, frozen=True, extra="forbid")

    redis_url: RedisUrl = None
    broker_url: BrokerUrl = None
    database_url: DatabaseUrl = None
    state_dir: Annotated[Path, AfterValidator(_absolute), Field(description="a directory")] = Field(
        default=Path(".penstock"), validate_default=True
    )
    config: Annotated[Path | None, AfterValidator(_absolute), Field(description="a TOML file")] = None
    collectors: Collectors = ()
    schedules: Schedules = ()
    flower_auth: Credentials = None
    token_key: TokenKey = None

    pool: Literal["prefork", "threads"] = Field("prefork", description="prefork or threads")
    concurrency: Count = 4

    connect_timeout_s: Seconds = 5
    call_timeout_s: Seconds = 30
    slice_s: Seconds = 45
    soft_time_limit_s: Seconds = 80
    time_limit_s: Seconds = 90
    heartbeat_s: Seconds = 5
    gone_after_s: Seconds = 15
    claim_max_s: Seconds = 90
    tick_s: Seconds = 5
    reconcile_s: Seconds = 5
    visibility_timeout_s: Seconds = 300
    late_after_s: Seconds = 60
    wave_s: Seconds = 10
    wave_max: Count = 1000
    inline_wait_s: Seconds = 2
    countdown_max_s: Seconds = 10
    deliveries_max: Count = 3
    throttles_max: Count = 10
    run_deadline_s: Seconds = 3600
    backfill_deadline_s: Seconds = 86400
    max_body_mib: Count = 32

    log_level: LogLevel = "INFO"
    ip_name: str = Field(
        default_factory=socket.gethostname, description="a name for the address we call from"
    )

    def __init__(self, **values: Any) -> None:
        unknown = _unknown_variables(os.environ)
        try:
            super().__init__(**values)
        except ValidationError as error:
            # The error's own text would show the value, and that may be a password.
            raise ConfigurationError("\n".join([*unknown, *_wrong_values(error, values)])) from None
        if problems := [*unknown, *_contradictions(self)]:
            raise ConfigurationError("\n".join(problems))

    @property
    def redis(self) -> str:
        """The URL of the shared state and the results; that of a running `penstock up` when none is set."""
        if self.redis_url:
            return _with_verified_tls(self.redis_url.get_secret_value())
        if runtime := Runtime.read(self.state_dir):
            return runtime.redis_url
        raise ServerAwayError(
            f"no Redis is known: start `penstock up` (none runs in {self.state_dir}) "
            "or set PENSTOCK_REDIS_URL"
        )

    @property
    def broker(self) -> str:
        """The URL that messages go through: its own, or else that of Redis."""
        if self.broker_url:
            return _with_verified_tls(self.broker_url.get_secret_value())
        if not self.redis_url and (runtime := Runtime.read(self.state_dir)):
            return runtime.broker_url
        return self.redis

    @property
    def database(self) -> str:
        """The SQLAlchemy URL: its own, that of a running `penstock up`, or SQLite in the state directory."""
        if self.database_url:
            # SQLAlchemy would take the bare scheme for psycopg2, which we do not install.
            return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", self.database_url.get_secret_value())
        if not self.redis_url and (runtime := Runtime.read(self.state_dir)):
            return runtime.database_url
        return f"sqlite:///{self.state_dir / 'penstock.db'}"

    @property
    def token_keys(self) -> tuple[str, ...]:
        """What tokens are encrypted with: the first; what they may have been encrypted with: all."""
        return _keys(self.token_key)

    @functools.cached_property
    def overrides(self) -> Mapping[str, Any]:
        """The tables of the TOML file as written there; empty when there is no file. See `tasks.overrides`.

        A file that `PENSTOCK_CONFIG` names has to exist; `penstock.toml` in the working directory need not.
        """
        path = self.config or Path("penstock.toml")
        if self.config is None and not path.exists():
            return MappingProxyType({})
        return MappingProxyType(read_overrides(path))

    def secret(self, name: str) -> str:
        """The value of the environment variable `name`, or what the file named by `name`_FILE holds.

        Raises ConfigurationError, which names the variable and never the value.
        """
        if value := os.environ.get(name):
            return value
        path = os.environ.get(f"{name}_FILE")
        if not path:
            raise ConfigurationError(
                f"the secret {name} is missing: set {name}, or {name}_FILE to a file that holds it"
            )
        try:
            value = Path(path).read_text().strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(
                f"the secret {name} is missing: {path} cannot be read ({reason})"
            ) from None
        if not value:
            raise ConfigurationError(f"the secret {name} is missing: {path} is empty")
        return value


@functools.cache
def get_settings() -> Settings:
    """The settings of this process, read once. Raises ConfigurationError."""
    return Settings()


def environment(**changes: str) -> dict[str, str]:
    """Our environment with these variables changed, for a child process."""
    return {**os.environ, **changes}


def _variable(field: str) -> str:
    return f"{_PREFIX}{field.upper()}"


def _unknown_variables(environ: Iterable[str]) -> list[str]:
    known = {_variable(field) for field in Settings.model_fields}
    ours = [name for name in environ if name.upper().startswith(_PREFIX) and not name.startswith(_NOT_OURS)]
    return [
        f"{name} in the environment is not a setting; {closest(name.upper(), known)}"
        for name in sorted(ours)
        if name.upper() not in known
    ]


def _wrong_values(error: ValidationError, given: Mapping[str, Any]) -> list[str]:
    wrong = {str(each["loc"][0]): each["input"] for each in error.errors(include_url=False)}
    return [_wrong_value(name, value, given) for name, value in wrong.items()]


def _wrong_value(name: str, value: Any, given: Mapping[str, Any]) -> str:
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{name} is not a setting; {closest(name, Settings.model_fields)}"
    source = name if name in given else f"{_variable(name)} in the environment"
    is_secret = name.endswith(("_url", "_auth", "_key"))
    return f"{source} {'' if is_secret else f'is {value!r}, but '}has to be {field.description}"


def _contradictions(settings: Settings) -> list[str]:
    """What no single value shows: a longer wait has to outlast the shorter one inside it."""
    rules = [
        ("call_timeout_s", "<=", "slice_s", 1, "a call fits into a slice"),
        ("slice_s", "<", "soft_time_limit_s", 1, "a slice ends before Celery interrupts it"),
        ("soft_time_limit_s", "<", "time_limit_s", 1, "a unit is interrupted before its process is killed"),
        ("time_limit_s", "<=", "claim_max_s", 1, "no unit is taken from a process that may still run it"),
        ("time_limit_s", "<", "visibility_timeout_s", 1, "no running unit is delivered again"),
        ("heartbeat_s", "<=", "gone_after_s", 2, "one late heartbeat loses no worker"),
    ]
    problems = []
    for low, sign, high, factor, reason in rules:
        least, value = factor * getattr(settings, low), getattr(settings, high)
        if value < least or (sign == "<" and value == least):
            relation = "more than" if sign == "<" else "at least"
            times = "" if factor == 1 else f"{factor} times "
            problems.append(
                f"{_variable(high)} is {value:g}, but has to be {relation} {times}{_variable(low)} "
                f"({least:g}), so that {reason}"
            )
    return problems


def _with_verified_tls(url: str) -> str:
    """Celery refuses a rediss:// URL that does not say how the certificate is checked; we check it."""
    if not url.startswith("rediss://") or "ssl_cert_reqs=" in url:
        return url
    return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"
