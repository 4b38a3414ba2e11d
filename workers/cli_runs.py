"""The commands about runs: make one, look at them, end one."""

import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from workers.command import (
    EXIT,
    Sentence,
    database_ready,
    echo_json,
    instant,
    json_option,
    listed,
    server_away,
    symbols_option,
    tell,
    the_app,
)

if TYPE_CHECKING:
    from resilience.errors import ServerAwayError
    from tasks.collectors.spec import Endpoint
    from tasks.reads import RunView
    from tasks.runs import Order
    from tasks.settings import Settings

INTERRUPTED = 130
detach_option = click.option("--detach", is_flag=True, help="Store the run, say its number and return.")


@click.command(epilog=EXIT)
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
    database_ready()
    _make(orders, detach=detach, as_json=as_json)


@click.command(epilog=EXIT)
@click.argument("name")
@click.option("--start", required=True, callback=instant, metavar="DATE", help="First moment, UTC.")
@click.option("--end", required=True, callback=instant, metavar="DATE", help="First moment after it, UTC.")
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
    from tasks.settings import get_settings

    found = find(collectors(), name)
    if len(found) != 1:
        raise click.UsageError(f"{name} has several endpoints; name one: {listed(found)}")
    order = tasks_backfill.order(found[0], start, end, symbols)
    _secrets_ready(found[0], get_settings())
    database_ready()
    _make([order], detach=detach, as_json=as_json)


@click.command("runs")
@click.option("--limit", type=click.IntRange(1, 10000), default=20, show_default=True)
@json_option
def list_runs(limit: int, *, as_json: bool) -> None:
    """Show the newest runs."""
    from tasks import reads

    database_ready()
    found = reads.latest_runs(limit)
    if as_json:
        return echo_json([each.to_dict() for each in found])
    if not found:
        return click.echo("There is no run yet: `penstock run NAME` makes one.")
    from workers.tables import console, runs_table

    return console().print(runs_table(found))


@click.command()
@click.argument("number", type=int, metavar="RUN")
@json_option
def show(number: int, *, as_json: bool) -> None:
    """Show one run: units by outcome, errors, calls, waits."""
    from tasks import reads
    from tasks.outcomes import ERRORS_KEPT

    database_ready()
    found = reads.detail(number, failures=ERRORS_KEPT if as_json else reads.ERRORS_SHOWN)
    if found is None:
        raise Sentence(f"there is no run {number}; `penstock runs` lists them")
    if as_json:
        return echo_json(found.to_dict())
    from workers.tables import console, run_page

    return console().print(run_page(found))


@click.command()
@click.argument("number", type=int, metavar="RUN")
def cancel(number: int) -> None:
    """End a run: units that wait are skipped, those that run finish."""
    from tasks import reads, runs, store

    database_ready()
    found = reads.look_at([number])
    if not found:
        raise Sentence(f"there is no run {number}; `penstock runs` lists them")
    if found[0].is_done:
        raise Sentence(f"run {number} has ended already ({found[0].outcome})")
    with store.writing() as connection:
        runs.cancel(connection, number, "cancelled by hand")
    runs.close(number)
    click.echo(f"run {number} is cancelled; units that are running finish")


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
    for endpoints in by_collector.values():
        _secrets_ready(next(iter(endpoints.values())), settings)
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


def _secrets_ready(endpoint: "Endpoint", settings: "Settings") -> None:
    """Raise ConfigurationError, a sentence for each secret that its calls need and that is not there."""
    from resilience.errors import ConfigurationError
    from tasks.tokens import missing

    if sentences := missing(endpoint.api, settings):
        raise ConfigurationError("\n".join(sentences))


def _make(orders: "Sequence[Order]", *, detach: bool, as_json: bool) -> None:
    """Store the runs, have them started, and wait for them unless told otherwise.

    A server that is away only delays them; one that will not do is said before anything is stored.
    """
    from tasks import runs
    from tasks.settings import get_settings

    away = server_away(get_settings())
    numbers = [runs.request(order) for order in orders]
    away = away or _start(numbers)
    for order, number in zip(orders, numbers, strict=True):
        tell(f"run {number}: {', '.join(order.endpoints)}{_of_symbols(order)}")
    _tell_obstacles(numbers, away)
    if not detach:
        _await(numbers, as_json=as_json)
    elif as_json:
        echo_json(_in_full(numbers))


def _start(numbers: Sequence[int]) -> "tuple[str, ServerAwayError] | None":
    """Have stored runs planned; or say what is away, and they are planned when it is back."""
    from resilience.errors import ServerAwayError
    from tasks import runs

    the_app()
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

    stored = f"run {listed(numbers)} is" if len(numbers) == 1 else f"runs {listed(numbers)} are"
    starts = "starts" if len(numbers) == 1 else "start"
    if away is not None:
        server, why = away
        return tell(f"{stored} stored and {starts} when {server} is back: {why}")
    alive = reads.workers_alive(get_settings().gone_after_s)
    if not alive.get("ctl"):
        tell(
            f"{stored} stored and {starts} when a ctl worker runs: none is alive; "
            "start `penstock up`, or `penstock worker --ctl`"
        )
    elif not alive.get("units"):
        tell("no worker is alive that collects: start `penstock worker`")
    return None


def _await(numbers: Sequence[int], *, as_json: bool) -> None:
    """Wait for runs by looking at SQL, show their results, and end with what they came to."""
    from workers.progress import watch

    try:
        done = watch(numbers, quiet=as_json)
    except KeyboardInterrupt:
        shown = " · ".join(f"penstock show {number}" for number in numbers)
        tell(f"\nit goes on without you; look at it with {shown} (or end it with penstock cancel RUN)")
        sys.exit(INTERRUPTED)
    if as_json:
        echo_json(_in_full(numbers))
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
