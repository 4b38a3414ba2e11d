"""What the commands share: options, errors as sentences, and what has to be there before they start."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from celery import Celery

    from resilience.errors import ServerAwayError
    from tasks.settings import Settings

EXIT = "Exit status: 0 all went well, 1 a run ended partial, failed or skipped, 2 usage or configuration."


class Sentence(click.ClickException):
    """What is wrong and what to do, without a traceback."""

    exit_code = 2

    def show(self, file: IO[Any] | None = None) -> None:
        """One line for each problem."""
        for line in self.message.splitlines():
            click.echo(f"penstock: {line}", file=file or sys.stderr)


class Unhealthy(Sentence):
    """What does not get on; container engines keep status 2 for themselves."""

    exit_code = 1


class Plain(click.Group):
    """Turns our own errors into sentences; only those, for any other is a mistake of ours to be seen."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except Exception as error:
            from resilience.errors import PenstockError

            if isinstance(error, PenstockError):
                raise Sentence(str(error)) from error
            raise


def symbol_names(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise click.BadParameter("names no symbol")
    return names


def instant(_ctx: click.Context, _option: click.Parameter, text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no date; write 2026-01-31 or 2026-01-31T12:00 (UTC)") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON instead of tables.")
symbols_option = click.option(
    "--symbols",
    callback=symbol_names,
    metavar="A,B",
    help="Only these symbols, in place of the declared ones.",
)
loglevel_option = click.option(
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    help="Default: PENSTOCK_LOG_LEVEL, or INFO.",
)


def the_app() -> "Celery":
    """The Celery app, made this process's own."""
    from workers.celery import app

    return app


def servers_ready(settings: "Settings") -> None:
    """Raise ConfigurationError unless Redis and the broker are there and will do."""
    if away := server_away(settings):
        raise away[1]


def server_away(settings: "Settings") -> "tuple[str, ServerAwayError] | None":
    """The server that does not answer: what it is called, and the sentence about it; None when all do.

    Raises ConfigurationError for one that will not do, also while the other one is away.
    """
    from resilience.errors import ServerAwayError

    away = None
    for name, check in (("Redis", _check_redis), ("the broker", _check_broker)):
        try:
            check(settings)
        except ServerAwayError as error:
            away = away or (name, error)
    return away


def _check_redis(settings: "Settings") -> None:
    from workers.embedded import check_redis

    check_redis(settings.redis)


def _check_broker(settings: "Settings") -> None:
    """A broker of its own; where Redis is the broker too, that check is enough."""
    from workers.queues import check_broker

    if settings.broker.startswith("amqp") or settings.broker != settings.redis:
        check_broker(settings.broker)


def database_ready() -> None:
    """Raise ConfigurationError unless the database is there and migrated; makes none by looking."""
    from pathlib import Path

    from tasks import schema
    from tasks.settings import get_settings

    url = get_settings().database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise Sentence(f"there is no database {url}: run `penstock db upgrade`, or start `penstock up`")
    schema.check(url)


def tell(line: str) -> None:
    """Say something that is no result."""
    click.echo(line, err=True)


def listed(items: Sequence[Any]) -> str:
    return ", ".join(str(getattr(item, "full_name", item)) for item in items)


def echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))
