"""The commands about data: what came of it, and what did not."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from typing import Any, BinaryIO

import click

from workers.command import database_ready, echo_json, instant, json_option, symbol_names, tell

TOLD_EVERY_S = 5.0


def _moment(ctx: click.Context, option: click.Parameter, text: str | None) -> datetime | None:
    return None if text is None else instant(ctx, option, text)


@click.command("bad-rows")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--limit", type=click.IntRange(1, 100_000), default=20, show_default=True)
@json_option
def bad_rows(names: tuple[str, ...], limit: int, *, as_json: bool) -> None:
    """Show the rows that came and could not be stored, each with the reason, the newest first.

    NAME is a collector (binance) or an endpoint (binance.klines); without one it is all of them.
    """
    from tasks import bad_rows
    from tasks.collectors.registry import collectors, find
    from tasks.reads import iso

    found = [each for name in names or collectors() for each in find(collectors(), name)]
    database_ready()
    rows = [
        {**row, "seen_at": iso(row["seen_at"])}
        for row in bad_rows.listed([each.full_name for each in found], limit)
    ]
    if as_json:
        return echo_json(rows)
    if not rows:
        return click.echo("Every row that came could be stored.")
    from workers.tables import bad_rows_table, console

    return console().print(bad_rows_table(rows))


@click.command()
@click.argument("name", metavar="ENDPOINT")
@click.option("--limit", type=click.IntRange(1, 1_000_000), default=50, show_default=True)
@json_option
def symbols(name: str, limit: int, *, as_json: bool) -> None:
    """Show the symbols of an endpoint, the newest first, and those that were removed.

    What comes from a function, a table or another endpoint is looked up when a run is planned, not here.
    """
    from tasks import symbols
    from tasks.collectors.registry import collectors, endpoint_of, find

    find(collectors(), name)
    endpoint = endpoint_of(name)
    database_ready()
    found = symbols.report(endpoint, limit)
    if as_json:
        return echo_json(_with_times(found))
    from workers.tables import console, symbols_page

    return console().print(symbols_page(found))


@click.command()
@click.argument("name", metavar="ENDPOINT")
@click.option(
    "--format",
    "form",
    type=click.Choice(["csv", "jsonl", "parquet"]),
    help="Default: what the name of the file says, else csv.",
)
@click.option("--out", default="-", show_default=True, metavar="FILE", help="Where to; - is the output.")
@click.option("--symbols", "chosen", callback=symbol_names, metavar="A,B", help="Only rows of these symbols.")
@click.option("--since", callback=_moment, metavar="DATE", help="Only rows from this moment on, UTC.")
@click.option("--until", callback=_moment, metavar="DATE", help="Only rows before this moment, UTC.")
def export(
    name: str,
    *,
    form: str | None,
    out: str,
    chosen: tuple[str, ...] | None,
    since: datetime | None,
    until: datetime | None,
) -> None:
    """Write the rows of an endpoint to a file, in the order of their key, with all their digits.

    A file stands under its name once it is complete. Parquet needs `pip install 'penstock[parquet]'`.
    """
    from pathlib import Path

    from tasks import export
    from tasks.collectors.registry import collectors, endpoint_of, find

    find(collectors(), name)
    endpoint = endpoint_of(name)
    form = form or export.SUFFIXES.get(Path(out).suffix.lower(), "csv")
    stdout = sys.stdout.buffer
    if out == "-" and form == "parquet" and stdout.isatty():
        raise click.UsageError("Parquet is nothing for a terminal: name a file with --out")
    database_ready()
    selection = export.select_rows(endpoint, symbols=chosen, since=since, until=until)
    progress = Progress(lambda count: tell(f"{count:,} rows so far"))
    target: AbstractContextManager[BinaryIO] = nullcontext(stdout) if out == "-" else export.whole(Path(out))
    with target as stream:
        count = export.export(selection, form, stream, progress)
    tell(f"{count:,} rows of {name} as {form}" + ("" if out == "-" else f" in {out}"))


class Progress:
    """Tells how far something is, every few seconds."""

    def __init__(self, told: Callable[[int], None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._told = told
        self._clock = clock
        self._next = clock() + TOLD_EVERY_S

    def __call__(self, count: int) -> None:
        """It is so far."""
        if self._clock() >= self._next:
            self._next = self._clock() + TOLD_EVERY_S
            self._told(count)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--accept", metavar="ENDPOINT", help="Take the present of this endpoint as its new normal.")
@json_option
def drift(names: tuple[str, ...], accept: str | None, *, as_json: bool) -> None:
    """Show which fields of rows are new, missing, or of another type than before.

    NAME is a collector (binance) or an endpoint (binance.klines); without one it is all of them.
    """
    from tasks import drift
    from tasks.collectors.registry import collectors, endpoint_of, find

    if accept is not None:
        if names or as_json:
            raise click.UsageError("--accept goes alone")
        find(collectors(), accept)
        name = endpoint_of(accept).full_name
        database_ready()
        return click.echo(f"{name}: {drift.accept(name)} fields that differed are normal now")
    endpoints = [each for name in names or collectors() for each in find(collectors(), name)]
    database_ready()
    rows = drift.report([each.full_name for each in endpoints])
    if as_json:
        return echo_json(_with_times(rows))
    if not rows:
        return click.echo("Rows look as they always did.")
    from workers.tables import console, drift_table

    return console().print(drift_table(rows))


def _with_times(value: Any) -> Any:
    """Times as every JSON of ours has them."""
    from tasks.reads import iso

    if isinstance(value, dict):
        return {name: _with_times(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_times(each) for each in value]
    return iso(value) if isinstance(value, datetime) else value
