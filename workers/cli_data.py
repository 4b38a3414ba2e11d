"""The commands about data: what came of it, and what did not."""

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
