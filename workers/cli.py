"""The `penstock` command.

Imports stand inside the commands, so that `penstock --help` needs no Celery, SQL or Redis client.
"""

import os
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from workers import cli_accounts, cli_data, cli_new, cli_runs
from workers.command import (
    EXIT,
    Plain,
    Sentence,
    Unhealthy,
    database_ready,
    echo_json,
    instant,
    json_option,
    loglevel_option,
    servers_ready,
    tell,
    the_app,
)

if TYPE_CHECKING:
    from resilience.guard import CircuitView
    from tasks.collectors.spec import Endpoint
    from tasks.settings import Settings

CTL_SLOTS = 2


@click.group(cls=Plain, epilog=EXIT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock", prog_name="penstock")
def main() -> None:
    """Collect data from rate-limited APIs with a fleet of Celery workers."""


for each in (
    cli_accounts.accounts,
    cli_runs.run,
    cli_runs.backfill,
    cli_runs.list_runs,
    cli_runs.show,
    cli_runs.cancel,
    cli_data.bad_rows,
    cli_data.symbols,
    cli_data.export,
    cli_data.drift,
    cli_new.new,
):
    main.add_command(each)


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
    app = the_app()
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
    servers_ready(get_settings())
    level = (loglevel or get_settings().log_level).upper()
    the_app().Beat(loglevel=level, quiet=True).run()


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
    servers_ready(settings)
    # Nobody is to change anything without a password, whatever was exported here for another Flower.
    os.environ.pop("FLOWER_UNAUTHENTICATED_API", None)
    app = the_app()
    app.log.setup_logging_subsystem(loglevel=(loglevel or settings.log_level).upper())
    from workers.flower import serve

    serve(app, auth, address, port, tell)


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
            database_ready()
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


@main.group("quarantine", invoke_without_command=True)
@json_option
@click.pass_context
def quarantined(context: click.Context, *, as_json: bool) -> None:
    """Show the symbols that fail in run after run, and which of them are skipped until when."""
    if context.invoked_subcommand is not None:
        return None
    from tasks import quarantine

    database_ready()
    rows = quarantine.listed()
    if as_json:
        return echo_json(rows)
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

    database_ready()
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

    database_ready()
    found = list(registry().statuses().values())
    if as_json:
        return echo_json(found)
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
    at = instant(ctx, option, text)
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

    database_ready()
    was_forced = circuits.lift(circuit_named(name), by=by, why=why)
    click.echo(f"circuit {name} is closed" + (" and no longer forced" if was_forced else ""))


def _force(name: str, state: str, by: str, why: str, until: datetime | None) -> None:
    from resilience.errors import StoreUnavailableError
    from resilience.guard import CircuitState
    from tasks import circuits
    from tasks.limits import circuit_named

    database_ready()
    breaker = circuit_named(name)
    try:
        circuits.force(breaker, CircuitState(state), by=by, why=why, until=until)
    except StoreUnavailableError as error:
        return tell(f"it is kept, and a ctl worker tells Redis when it is back: {error}")
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
        return echo_json(rows)
    from workers.tables import collectors_table, console

    console().print(collectors_table(rows))
    for sentence in dict.fromkeys(each for row in rows for each in row["missing"]):
        click.echo(sentence)
    return None


def _described(endpoint: "Endpoint", view: "CircuitView | None") -> dict[str, Any]:
    """What `penstock collectors` says about an endpoint."""
    from tasks.collectors.registry import scheduled
    from tasks.reads import iso
    from tasks.settings import get_settings
    from tasks.tokens import missing

    symbols, settings = endpoint.symbols, get_settings()
    return {
        "endpoint": endpoint.full_name,
        "collector": endpoint.api.name,
        "base_url": endpoint.api.base_url,
        "symbols": len(symbols) if isinstance(symbols, tuple) else None,
        "symbols_from": endpoint.symbols_from,
        "every_s": None if endpoint.every is None else int(endpoint.every.total_seconds()),
        "scheduled": endpoint.full_name in scheduled(),
        "limits": [
            f"{limit.spec} per {_per(limit.per)}" for limit in (*endpoint.api.limits, *endpoint.limits)
        ],
        "circuit": None if view is None else str(view.state),
        "circuit_until_at": None if view is None else iso(view.retry_at),
        "table": endpoint.table.name,
        "tiers": [{"tier": each.name, "missing": each.missing(settings.secret)} for each in endpoint.tiers],
        "missing": missing(endpoint.api, settings),
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
        return echo_json(rows)
    from workers.tables import console, limits_table

    return console().print(limits_table(rows))


def _per(per: Any) -> str:
    return per if isinstance(per, str) else "function"


def _views(endpoints: "Sequence[Endpoint]") -> "list[CircuitView | None]":
    """The circuits, or None for each where Redis does not answer, or no database says what was forced."""
    from resilience.errors import ConfigurationError, DatabaseError, StoreUnavailableError
    from tasks.limits import circuits

    try:
        database_ready()
        found = circuits(endpoints)
    except (Sentence, ConfigurationError, DatabaseError, StoreUnavailableError):
        return [None] * len(endpoints)
    return [found.get(endpoint.full_name) for endpoint in endpoints]


def _ready() -> "Settings":
    """The settings, once everything that a worker needs is there. Raises ConfigurationError."""
    from tasks.collectors.registry import collectors
    from tasks.settings import get_settings

    settings = get_settings()
    collectors()
    database_ready()
    servers_ready(settings)
    return settings


if __name__ == "__main__":
    main()
