"""Asana: the projects of workspaces; their tasks, as far as they were modified. Symbols are gids.

Documented (developers.asana.com/docs/rate-limits and its pages on pagination and tasks, read 2026-11): 150
requests per minute and token on free plans, 1,500 on paid ones (say so in the settings), 50 reads at once;
429 carries Retry-After. A page's token expires with a 400. Fields beyond the name have to be asked for.
"""

from typing import Any

from tasks.collectors import Api, Bearer, Cursor, FromEndpoint, Limit, Rule, Token, Unit, day, iso
from tasks.data import asana_projects, asana_tasks

asana = Api(
    "asana",
    "https://app.asana.com/api/1.0",
    auth=Bearer("ASANA_TOKEN"),
    limits=[Limit("150/1m", per="account", reserve=0.3), Limit("50 at once", per="account")],
    rules=[Rule("restart", status=400, body=r"(?i)pagination token|offset")],
)


@asana.endpoint(
    "/projects",
    symbols=[],
    symbol_pattern=r"\d{1,30}",
    params={
        "workspace": "{symbol}",
        "opt_fields": "name,archived,owner,created_at,modified_at,due_on,notes,permalink_url",
    },
    page=Token(param="offset", at="next_page.offset", size_param="limit", size=100),
    rows="data",
    table=asana_projects,
    key="gid",
    every="1h",
)
def projects(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a project as Asana gives it into ours, and keep the original beside it."""
    return {
        "gid": row["gid"],
        "workspace": unit.symbol,
        "name": row["name"],
        "archived": row["archived"],
        "owner": row["owner"]["gid"] if row["owner"] else None,
        "created_at": iso(row["created_at"]),
        "modified_at": iso(row["modified_at"]),
        "due_on": day(row["due_on"]),
        "data": row,
    }


@asana.endpoint(
    "/tasks",
    symbols=FromEndpoint("projects", field="gid"),
    symbol_pattern=r"\d{1,30}",
    params={
        "project": "{symbol}",
        "opt_fields": "name,completed,assignee,created_at,modified_at,due_on,notes,permalink_url",
    },
    page=Token(param="offset", at="next_page.offset", size_param="limit", size=100),
    rows="data",
    cursor=Cursor("modified_at", lag="2m", param="modified_since"),
    table=asana_tasks,
    key=("project", "gid"),
    every="5m",
)
def tasks(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a task as Asana gives it into ours, and keep the original beside it."""
    return {
        "gid": row["gid"],
        "project": unit.symbol,
        "name": row["name"],
        "completed": row["completed"],
        "assignee": row["assignee"]["gid"] if row["assignee"] else None,
        "created_at": iso(row["created_at"]),
        "modified_at": iso(row["modified_at"]),
        "due_on": day(row["due_on"]),
        "data": row,
    }
