"""The commands about data: what came of it, and what did not."""

from typing import Any

import click

from workers.command import database_ready, echo_json, json_option


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


def _with_times(value: Any) -> Any:
    """Times as every JSON of ours has them."""
    from datetime import datetime

    from tasks.reads import iso

    if isinstance(value, dict):
        return {name: _with_times(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_with_times(each) for each in value]
    return iso(value) if isinstance(value, datetime) else value
