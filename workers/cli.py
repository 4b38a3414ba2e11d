"""The `penstock` command.

Imports stand inside the commands, so that `penstock --help` needs no Celery, SQL or Redis client.
"""

import json
import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from celery import Celery

    from resilience.errors import ServerAwayError
    from resilience.guard import CircuitView
    from tasks.collectors.spec import Endpoint
    from tasks.reads import RunView
    from tasks.runs import Order
    from tasks.settings import Settings

EXIT = "Exit status: 0 all went well, 1 a run ended partial, failed or skipped, 2 usage or configuration."
INTERRUPTED = 130
CTL_SLOTS = 2


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


def _names(_ctx: click.Context, _option: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names:
        raise click.BadParameter("names no symbol")
    return names


def _instant(_ctx: click.Context, _option: click.Parameter, text: str) -> datetime:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no date; write 2026-01-31 or 2026-01-31T12:00 (UTC)") from None
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON instead of tables.")
detach_option = click.option("--detach", is_flag=True, help="Store the run, say its number and return.")
symbols_option = click.option(
    "--symbols", callback=_names, metavar="A,B", help="Only these symbols, in place of the declared ones."
)
loglevel_option = click.option(
    "--loglevel",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    help="Default: PENSTOCK_LOG_LEVEL, or INFO.",
)


@click.group(cls=Plain, epilog=EXIT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock", prog_name="penstock")
def main() -> None:
    """Collect data from rate-limited APIs with a fleet of Celery workers."""


@main.command()
@click.option("--flower/--no-flower", "with_flower", default=True, show_default=True, help="Flower, too.")
def up(*, with_flower: bool) -> None:
    """Run everything here: Redis if none is given, worker, ctl worker, beat and Flower."""
    from tasks.collectors.registry import scheduled
    from tasks.settings import get_settings
    from workers.up import up as run_up

    settings = get_settings()
    scheduled()
    if settings.broker_url:
        from workers.queues import check_broker

        check_broker(settings.broker)
    sys.exit(run_up(settings, with_flower=with_flower))


@main.command()
@click.option("--ctl", is_flag=True, help="Plan, advance and close runs instead of collecting.")
@click.option("--alone", is_flag=True, hidden=True)
@click.option("--only-ctl", is_flag=True, hidden=True)
@click.option("--concurrency", type=click.IntRange(1), help="Units at once. Default: PENSTOCK_CONCURRENCY.")
@click.option("--pool", type=click.Choice(["prefork", "threads"]), help="Default: PENSTOCK_POOL.")
@loglevel_option
def worker(
    *,
    ctl: bool,
    alone: bool,
    only_ctl: bool,
    concurrency: int | None,
    pool: str | None,
    loglevel: str | None,
) -> None:
    """Run a worker: one for units, or with --ctl the one that steers.

    Each deployment needs at least one of both, and one `penstock beat`. Beside a --ctl worker runs a small
    process for suspects: units that ended their worker, which are tried once more by themselves.
    """
    from tasks.units import ALONE
    from workers.queues import CTL

    if ctl:
        if concurrency or pool:
            raise click.UsageError("--ctl goes with neither --concurrency nor --pool")
        _supervise_ctl(loglevel)
    settings = _ready()
    if alone:
        _work("alone", [ALONE], "prefork", 1, loglevel)
    elif only_ctl:
        _work("ctl", [CTL], "prefork", CTL_SLOTS, loglevel)
    else:
        _work("units", None, pool or settings.pool, concurrency or settings.concurrency, loglevel)


def _supervise_ctl(loglevel: str | None) -> None:
    """Run the ctl worker and the one for suspects, and end with them."""
    from tasks.collectors.registry import scheduled
    from workers.up import Process, supervise

    scheduled()
    settings = _ready()
    options = ("--loglevel", loglevel) if loglevel else ()
    command = (sys.executable, "-m", "workers.cli", "worker")
    processes = [Process(kind, (*command, f"--{kind}", *options)) for kind in ("only-ctl", "alone")]
    sys.exit(supervise(processes, settings))


def _work(kind: str, queues: Sequence[str] | None, pool: str, concurrency: int, loglevel: str | None) -> None:
    """Become a Celery worker; returns when it was told to stop."""
    from celery.utils.nodenames import default_nodename, host_format

    from tasks.collectors.registry import collectors
    from tasks.settings import get_settings
    from workers.lifecycle import KIND_VARIABLE
    from workers.queues import unit_queues

    os.environ[KIND_VARIABLE] = kind
    app = _app()
    names = queues or [queue.name for queue in unit_queues(collectors())]
    made = app.Worker(
        # The pid lets several workers share a host: Celery takes two of one name for one.
        hostname=host_format(default_nodename(f"{kind}-{os.getpid()}@%h")),
        queues=list(names),
        pool_cls=pool,
        concurrency=concurrency,
        loglevel=(loglevel or get_settings().log_level).upper(),
        # Workers need not know each other: SQL knows who lives, and a start waits for nobody.
        without_gossip=True,
        without_mingle=True,
        quiet=True,
    )
    made.start()
    sys.exit(made.exitcode)


@main.command()
@loglevel_option
def beat(loglevel: str | None) -> None:
    """Run the clock that starts scheduled runs and the reconciler; two of them do no harm."""
    from tasks.collectors.registry import scheduled
    from tasks.settings import get_settings

    scheduled()
    _servers_ready(get_settings())
    level = (loglevel or get_settings().log_level).upper()
    _app().Beat(loglevel=level, quiet=True).run()


@main.command()
@click.option("--address", default="127.0.0.1", show_default=True, help="Listen here.")
@click.option("--port", type=click.IntRange(0, 65535), default=5555, show_default=True, help="0: any.")
@loglevel_option
def flower(address: str, port: int, loglevel: str | None) -> None:
    """Show workers and tasks in the browser, by Flower.

    It asks for the user and password in PENSTOCK_FLOWER_AUTH. Without these, a password is made and kept in
    the state directory. What it shows begins when it starts; `penstock runs` has the history.
    """
    from tasks.settings import get_settings
    from workers.flower_auth import flower_auth

    settings = get_settings()
    auth = flower_auth(settings)
    _servers_ready(settings)
    # Nobody is to change anything without a password, whatever was exported here for another Flower.
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    app = _app()
    app.log.setup_logging_subsystem(loglevel=(loglevel or settings.log_level).upper())
    from workers.flower import serve

    serve(app, auth, address, port, _tell)


@main.command(epilog="Exit status: 0 it gets on, 1 it does not, or that cannot be seen, 2 usage.")
@click.option("--worker", "part", flag_value="worker", help="Workers take their units. The default.")
@click.option("--ctl", "part", flag_value="ctl", help="The reconciler runs, here or elsewhere.")
@click.option("--beat", "part", flag_value="beat", help="The same, which beat sends.")
@click.option("--flower", "part", flag_value="flower", help="Flower answers.")
@click.option("--port", type=click.IntRange(1, 65535), help="Where Flower listens. Default: 5555.")
def health(part: str | None, port: int | None) -> None:
    """Say whether the processes of one kind on this host get on; made for health checks."""
    from resilience.errors import PenstockError
    from tasks.settings import get_settings
    from workers.health import Part, look

    wanted = Part(part or "worker")
    if port is not None and wanted != Part.FLOWER:
        raise click.UsageError("--port goes with --flower")
    try:
        if wanted != Part.FLOWER:
            _database_ready()
        click.echo(look(wanted, get_settings(), port=port))
    except (PenstockError, Sentence) as error:
        raise Unhealthy(str(error)) from error


@main.group("db")
def database() -> None:
    """Prepare the database."""


@database.command()
@click.option("--revision", default="head", show_default=True, help="Migrate up to this one.")
def upgrade(revision: str) -> None:
    """Bring the tables up to date; harmless when they are, and when two do it at once."""
    from tasks import schema
    from tasks.settings import get_settings, masked

    url = get_settings().database
    schema.upgrade(url, revision)
    click.echo(f"{masked(url)} has schema {schema.current(url)}")


@main.command(epilog=EXIT)
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@symbols_option
@detach_option
@json_option
def run(names: Sequence[str], symbols: tuple[str, ...] | None, *, detach: bool, as_json: bool) -> None:
    """Collect now. NAME is a collector (binance) or an endpoint (binance.klines).

    Several collectors make one run and one result each. Units behind an open circuit wait until it closes.
    Without --detach this waits; Ctrl-C ends the waiting, not the run.
    """
    from tasks.settings import get_settings

    orders = _orders(names, symbols, get_settings())
    _database_ready()
    _make(orders, detach=detach, as_json=as_json)


@main.command(epilog=EXIT)
@click.argument("name")
@click.option("--start", required=True, callback=_instant, metavar="DATE", help="First moment, UTC.")
@click.option("--end", required=True, callback=_instant, metavar="DATE", help="First moment after it, UTC.")
@symbols_option
@detach_option
@json_option
def backfill(
    name: str,
    start: datetime,
    end: datetime,
    symbols: tuple[str, ...] | None,
    *,
    detach: bool,
    as_json: bool,
) -> None:
    """Collect the past: from --start up to, but without, --end.

    A backfill takes what live runs leave of the limits. Doing it twice stores nothing twice.
    """
    from tasks import backfill as tasks_backfill
    from tasks.collectors.registry import collectors, find

    found = find(collectors(), name)
    if len(found) != 1:
        raise click.UsageError(f"{name} has several endpoints; name one: {_listed(found)}")
    order = tasks_backfill.order(found[0], start, end, symbols)
    _database_ready()
    _make([order], detach=detach, as_json=as_json)


@main.command("runs")
@click.option("--limit", type=click.IntRange(1, 10000), default=20, show_default=True)
@json_option
def list_runs(limit: int, *, as_json: bool) -> None:
    """Show the newest runs."""
    from tasks import reads

    _database_ready()
    found = reads.latest_runs(limit)
    if as_json:
        return _echo_json([each.to_dict() for each in found])
    if not found:
        return click.echo("There is no run yet: `penstock run NAME` makes one.")
    from workers.tables import console, runs_table

    return console().print(runs_table(found))


@main.command()
@click.argument("number", type=int, metavar="RUN")
@json_option
def show(number: int, *, as_json: bool) -> None:
    """Show one run: units by outcome, errors, calls, waits."""
    from tasks import reads
    from tasks.outcomes import ERRORS_KEPT

    _database_ready()
    found = reads.detail(number, failures=ERRORS_KEPT if as_json else reads.ERRORS_SHOWN)
    if found is None:
        raise Sentence(f"there is no run {number}; `penstock runs` lists them")
    if as_json:
        return _echo_json(found.to_dict())
    from workers.tables import console, run_page

    return console().print(run_page(found))


@main.command()
@click.argument("number", type=int, metavar="RUN")
def cancel(number: int) -> None:
    """End a run: units that wait are skipped, those that run finish."""
    from tasks import reads, runs, store

    _database_ready()
    found = reads.look_at([number])
    if not found:
        raise Sentence(f"there is no run {number}; `penstock runs` lists them")
    if found[0].is_done:
        raise Sentence(f"run {number} has ended already ({found[0].outcome})")
    with store.writing() as connection:
        runs.cancel(connection, number, "cancelled by hand")
    runs.close(number)
    click.echo(f"run {number} is cancelled; units that are running finish")


@main.group("quarantine", invoke_without_command=True)
@json_option
@click.pass_context
def quarantined(context: click.Context, *, as_json: bool) -> None:
    """Show the symbols that fail in run after run, and which of them are skipped until when."""
    if context.invoked_subcommand is not None:
        return None
    from tasks import quarantine

    _database_ready()
    rows = quarantine.listed()
    if as_json:
        return _echo_json(rows)
    if not rows:
        return click.echo("No symbol has failed in its last run.")
    from workers.tables import console, quarantine_table

    return console().print(quarantine_table(rows))


@quarantined.command("release")
@click.argument("symbol")
@click.option("--endpoint", metavar="NAME", help="Only for this endpoint, as in binance.klines.")
def release_symbol(symbol: str, endpoint: str | None) -> None:
    """Have a symbol tried again in the next run."""
    from tasks import quarantine

    _database_ready()
    released = quarantine.release(symbol, endpoint)
    if not released:
        where = f" in {endpoint}" if endpoint else ""
        raise Sentence(f"{symbol} has not failed{where}; `penstock quarantine` lists those that have")
    click.echo(f"{symbol} is tried again by {', '.join(released)}")


@main.group("circuits", invoke_without_command=True)
@json_option
@click.pass_context
def list_circuits(ctx: click.Context, *, as_json: bool) -> None:
    """Show how the circuits stand; open, disable or reset one.

    What is forced here is kept in the database: a Redis that was lost is told again before it admits a call.
    """
    if ctx.invoked_subcommand:
        return None
    from tasks.limits import registry

    _database_ready()
    found = list(registry().statuses().values())
    if as_json:
        return _echo_json(found)
    from workers.tables import circuits_table, console

    return console().print(circuits_table(found))


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _later(ctx: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
    if text is None:
        return None
    at = _instant(ctx, option, text)
    if at <= datetime.now(UTC):
        raise click.BadParameter(f"{text!r} is over; it is {datetime.now(UTC):%Y-%m-%dT%H:%M} UTC")
    return at


by_option = click.option("--by", default=_user, metavar="NAME", help="Who does it. Default: the user.")
why_option = click.option("--why", required=True, metavar="TEXT", help="Shown wherever the circuit is.")
until_option = click.option("--until", callback=_later, metavar="DATE", help="UTC. Default: until reset.")


@list_circuits.command("open")
@click.argument("name", metavar="CIRCUIT")
@by_option
@why_option
@until_option
def open_circuit(name: str, *, by: str, why: str, until: datetime | None) -> None:
    """Let no call through, whatever they would say."""
    _force(name, "forced_open", by, why, until)


@list_circuits.command("disable")
@click.argument("name", metavar="CIRCUIT")
@by_option
@why_option
@until_option
def disable_circuit(name: str, *, by: str, why: str, until: datetime | None) -> None:
    """Let every call through; failures are counted, but open nothing."""
    _force(name, "disabled", by, why, until)


@list_circuits.command("reset")
@click.argument("name", metavar="CIRCUIT")
@by_option
@why_option
def reset_circuit(name: str, *, by: str, why: str) -> None:
    """Close a circuit, forced or not, and forget its failures."""
    from tasks import circuits
    from tasks.limits import circuit_named

    _database_ready()
    was_forced = circuits.lift(circuit_named(name), by=by, why=why)
    click.echo(f"circuit {name} is closed" + (" and no longer forced" if was_forced else ""))


def _force(name: str, state: str, by: str, why: str, until: datetime | None) -> None:
    from resilience.errors import StoreUnavailableError
    from resilience.guard import CircuitState
    from tasks import circuits
    from tasks.limits import circuit_named

    _database_ready()
    breaker = circuit_named(name)
    try:
        circuits.force(breaker, CircuitState(state), by=by, why=why, until=until)
    except StoreUnavailableError as error:
        return _tell(f"it is kept, and a ctl worker tells Redis when it is back: {error}")
    end = "it is reset" if until is None else f"{until:%Y-%m-%d %H:%M} UTC"
    return click.echo(f"circuit {name} is {state.replace('_', ' ')} until {end}")


@main.command("collectors")
@json_option
def list_collectors(*, as_json: bool) -> None:
    """Show what can be collected, on which schedule, within which limits, and the circuits."""
    from tasks.collectors.registry import collectors

    endpoints = [endpoint for api in collectors().values() for endpoint in api.endpoints.values()]
    rows = [_described(endpoint, view) for endpoint, view in zip(endpoints, _views(endpoints), strict=True)]
    if as_json:
        return _echo_json(rows)
    from workers.tables import collectors_table, console

    return console().print(collectors_table(rows))


def _described(endpoint: "Endpoint", view: "CircuitView | None") -> dict[str, Any]:
    """What `penstock collectors` says about an endpoint."""
    from tasks.collectors.registry import scheduled
    from tasks.reads import iso
    from tasks.settings import get_settings

    symbols, secret = endpoint.symbols, get_settings().secret
    return {
        "endpoint": endpoint.full_name,
        "collector": endpoint.api.name,
        "base_url": endpoint.api.base_url,
        "symbols": None if callable(symbols) or symbols is None else len(symbols),
        "symbols_from": "function" if callable(symbols) else "none" if symbols is None else "list",
        "every_s": None if endpoint.every is None else int(endpoint.every.total_seconds()),
        "scheduled": endpoint.full_name in scheduled(),
        "limits": [
            f"{limit.spec} per {_per(limit.per)}" for limit in (*endpoint.api.limits, *endpoint.limits)
        ],
        "circuit": None if view is None else str(view.state),
        "circuit_until_at": None if view is None else iso(view.retry_at),
        "table": endpoint.table.name,
        "tiers": [{"tier": each.name, "missing": each.missing(secret)} for each in endpoint.tiers],
    }


@main.command("limits")
@json_option
def list_limits(*, as_json: bool) -> None:
    """Show every limit: its rate now, what is left, who waits, gates and bans, budgets spent."""
    from tasks.collectors.registry import collectors
    from tasks.limits import limits
    from tasks.reads import limit_row

    endpoints = [endpoint for api in collectors().values() for endpoint in api.endpoints.values()]
    rows = [limit_row(limiter, reading) for limiter, reading in limits(endpoints).items()]
    if as_json:
        return _echo_json(rows)
    from workers.tables import console, limits_table

    return console().print(limits_table(rows))


def _per(per: Any) -> str:
    return per if isinstance(per, str) else "function"


def _views(endpoints: "Sequence[Endpoint]") -> "list[CircuitView | None]":
    """The circuits, or None for each where Redis does not answer, or no database says what was forced."""
    from resilience.errors import ConfigurationError, DatabaseError, StoreUnavailableError
    from tasks.limits import circuits

    try:
        _database_ready()
        found = circuits(endpoints)
    except (Sentence, ConfigurationError, DatabaseError, StoreUnavailableError):
        return [None] * len(endpoints)
    return [found.get(endpoint.full_name) for endpoint in endpoints]


def _app() -> "Celery":
    """The Celery app, made this process's own."""
    from workers.celery import app

    return app


def _ready() -> "Settings":
    """The settings, once everything that a worker needs is there. Raises ConfigurationError."""
    from tasks.collectors.registry import collectors
    from tasks.settings import get_settings

    settings = get_settings()
    collectors()
    _database_ready()
    _servers_ready(settings)
    return settings


def _servers_ready(settings: "Settings") -> None:
    """Raise ConfigurationError unless Redis and the broker are there and will do."""
    if away := _server_away(settings):
        raise away[1]


def _server_away(settings: "Settings") -> "tuple[str, ServerAwayError] | None":
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


def _database_ready() -> None:
    """Raise ConfigurationError unless the database is there and migrated; makes none by looking."""
    from pathlib import Path

    from tasks import schema
    from tasks.settings import get_settings

    url = get_settings().database
    if url.startswith("sqlite:///") and not Path(url.removeprefix("sqlite:///")).exists():
        raise Sentence(f"there is no database {url}: run `penstock db upgrade`, or start `penstock up`")
    schema.check(url)


def _orders(names: Sequence[str], symbols: tuple[str, ...] | None, settings: "Settings") -> "list[Order]":
    """One order for each collector. Raises ConfigurationError for names and symbols that are not there."""
    from tasks.collectors.registry import collectors, find
    from tasks.outcomes import RunKind
    from tasks.runs import Order

    by_collector: dict[str, dict[str, Endpoint]] = {}
    for name in names:
        for endpoint in find(collectors(), name):
            by_collector.setdefault(endpoint.api.name, {})[endpoint.full_name] = endpoint
    for endpoints in by_collector.values():
        for endpoint in endpoints.values():
            endpoint.check_symbols(symbols)
    return [
        Order(
            collector=collector,
            endpoints=tuple(endpoints),
            kind=RunKind.ADHOC,
            symbols=symbols and tuple(dict.fromkeys(symbols)),
            deadline_s=settings.run_deadline_s,
        )
        for collector, endpoints in by_collector.items()
    ]


def _make(orders: "Sequence[Order]", *, detach: bool, as_json: bool) -> None:
    """Store the runs, have them started, and wait for them unless told otherwise.

    A server that is away only delays them; one that will not do is said before anything is stored.
    """
    from tasks import runs
    from tasks.settings import get_settings

    away = _server_away(get_settings())
    numbers = [runs.request(order) for order in orders]
    away = away or _start(numbers)
    for order, number in zip(orders, numbers, strict=True):
        _tell(f"run {number}: {', '.join(order.endpoints)}{_of_symbols(order)}")
    _tell_obstacles(numbers, away)
    if not detach:
        _await(numbers, as_json=as_json)
    elif as_json:
        _echo_json(_in_full(numbers))


def _start(numbers: Sequence[int]) -> "tuple[str, ServerAwayError] | None":
    """Have stored runs planned; or say what is away, and they are planned when it is back."""
    from resilience.errors import ServerAwayError
    from tasks import runs

    _app()
    if all(runs.start(number) for number in numbers):
        return None
    return "the broker", ServerAwayError("it went away just now")


def _of_symbols(order: "Order") -> str:
    if not order.symbols or order.symbols == ("",):
        return ""
    return ", 1 symbol" if len(order.symbols) == 1 else f", {len(order.symbols)} symbols"


def _tell_obstacles(numbers: Sequence[int], away: "tuple[str, ServerAwayError] | None") -> None:
    """Say why stored runs do not start yet, if they do not."""
    from tasks import reads
    from tasks.settings import get_settings

    stored = f"run {_listed(numbers)} is" if len(numbers) == 1 else f"runs {_listed(numbers)} are"
    starts = "starts" if len(numbers) == 1 else "start"
    if away is not None:
        server, why = away
        return _tell(f"{stored} stored and {starts} when {server} is back: {why}")
    alive = reads.workers_alive(get_settings().gone_after_s)
    if not alive.get("ctl"):
        _tell(
            f"{stored} stored and {starts} when a ctl worker runs: none is alive; "
            "start `penstock up`, or `penstock worker --ctl`"
        )
    elif not alive.get("units"):
        _tell("no worker is alive that collects: start `penstock worker`")
    return None


def _await(numbers: Sequence[int], *, as_json: bool) -> None:
    """Wait for runs by looking at SQL, show their results, and end with what they came to."""
    from workers.progress import watch

    try:
        done = watch(numbers, quiet=as_json)
    except KeyboardInterrupt:
        shown = " · ".join(f"penstock show {number}" for number in numbers)
        _tell(f"\nit goes on without you; look at it with {shown} (or end it with penstock cancel RUN)")
        sys.exit(INTERRUPTED)
    if as_json:
        _echo_json(_in_full(numbers))
    else:
        _show_results(done)
    sys.exit(0 if all(each.outcome in {"ok", "empty"} for each in done) else 1)


def _in_full(numbers: Sequence[int]) -> list[dict[str, Any]]:
    from tasks import reads
    from tasks.outcomes import ERRORS_KEPT

    found = (reads.detail(number, failures=ERRORS_KEPT) for number in numbers)
    return [each.to_dict() for each in found if each is not None]


def _show_results(done: "Sequence[RunView]") -> None:
    from tasks import reads
    from workers.tables import console, results_table, served_by

    screen = console()
    screen.print(results_table(done))
    for endpoint, tiers in reads.served([each.id for each in done]).items():
        screen.print(f"{endpoint} was served by {served_by(tiers)}")
    for each in done:
        if each.units.failed:
            screen.print(f"what failed: penstock show {each.id}")


def _tell(line: str) -> None:
    """Say something that is no result."""
    click.echo(line, err=True)


def _listed(items: Sequence[Any]) -> str:
    return ", ".join(str(getattr(item, "full_name", item)) for item in items)


def _echo_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
