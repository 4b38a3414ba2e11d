"""The commands about accounts: whose tokens are kept, and whose credentials were refused."""

import getpass

import click

from workers.command import Sentence, database_ready, echo_json, json_option


@click.group(invoke_without_command=True)
@json_option
@click.pass_context
def accounts(context: click.Context, *, as_json: bool) -> None:
    """Show the accounts of APIs: how long a token is still used, and which are stopped and why."""
    if context.invoked_subcommand is not None:
        return None
    from tasks import accounts
    from tasks.reads import iso

    database_ready()
    rows = [
        {
            "account": each.title,
            "stopped_at": iso(each.stopped_at),
            "reason": each.reason,
            "token_left_s": round(each.left_s) if each.token is not None else None,
            "tokens_stored": each.version,
        }
        for each in accounts.listed()
    ]
    if as_json:
        return echo_json(rows)
    if not rows:
        return click.echo("No account has a token here, and none was refused.")
    from workers.tables import accounts_table, console

    return console().print(accounts_table(rows))


@accounts.command("release")
@click.argument("name", metavar="ACCOUNT")
def release(name: str) -> None:
    """Have an account tried again with the credentials that were refused."""
    from tasks import accounts
    from tasks.collectors.oauth import ACCOUNT

    database_ready()
    api, _, own = name.partition("/")
    if not accounts.release(api, own or ACCOUNT, getpass.getuser()):
        raise Sentence(f"there is no account {name}; `penstock accounts` lists them")
    click.echo(f"{name} is tried again by the next unit")


@accounts.command("new-key")
def new_key() -> None:
    """Print a new key for PENSTOCK_TOKEN_KEY; put it before the old one, and a comma between."""
    from tasks.seal import new_key

    click.echo(new_key())
