"""Asana: projects and tasks, in pages by token."""

import base64
import json
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from tests.upstream.apis.base import Api, RejectedError, Request, encode
from tests.upstream.data import PROJECTS, WORKSPACE, project, tasks


def expected_projects() -> list[dict[str, Any]]:
    """What has to be stored of the workspace's projects; the original apart."""
    return [
        {
            "gid": row["gid"],
            "workspace": WORKSPACE,
            "name": row["name"],
            "archived": row["archived"],
            "owner": row["owner"] and row["owner"]["gid"],
            "created_at": datetime.fromisoformat(row["created_at"]),
            "modified_at": datetime.fromisoformat(row["modified_at"]),
            "due_on": row["due_on"] and date.fromisoformat(row["due_on"]),
        }
        for row in (project(gid, WORKSPACE) for gid in PROJECTS)
    ]


def expected_task(of: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be stored of a task of a project; the original apart."""
    return {
        "gid": row["gid"],
        "project": of,
        "name": row["name"],
        "completed": row["completed"],
        "assignee": row["assignee"] and row["assignee"]["gid"],
        "created_at": datetime.fromisoformat(row["created_at"]),
        "modified_at": datetime.fromisoformat(row["modified_at"]),
        "due_on": row["due_on"] and date.fromisoformat(row["due_on"]),
    }


class Asana(Api):
    """150 a minute and 50 at once per token; pages by offset tokens over a snapshot taken at the first page."""

    name, prefix = "asana", "api/1.0/"
    documented = {"amount": 150, "window_s": 60, "at_once": 50}

    def key(self, request: Request) -> str:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token or token.startswith("BAD"):
            raise RejectedError(401, self._errors("Not Authorized"))
        return token

    @staticmethod
    def _errors(message: str) -> dict[str, Any]:
        return {"errors": [{"message": message}]}

    def trouble(self, status: int) -> bytes:
        if status == 429:
            return encode(self._errors("You have made too many requests recently. Please wait."))
        return encode({"errors": [{"message": "Server Error", "phrase": "6 calm herons wade upstream"}]})

    def answer(self, request: Request, bad: frozenset[str], now: float) -> bytes:
        query = request.query
        if request.path == "projects":
            workspace = query.get("workspace", WORKSPACE)
            return self._cut([project(gid, workspace) for gid in PROJECTS], "/projects", query, now)
        if request.path != "tasks":
            raise RejectedError(404, self._errors("No matching route for request"))
        gid = query.get("project", "")
        if not gid:
            raise RejectedError(400, self._errors("You must name a project, section, tag or assignee"))
        if not re.fullmatch("[0-9]+", gid) or gid in bad:
            raise RejectedError(404, self._errors(f"project: Unknown object: {gid}"))
        as_of = self._offset(query, f"/tasks?project={gid}", now)[1]
        rows = tasks(gid, as_of)
        if since := query.get("modified_since"):
            oldest = self._moment(since)
            rows = [row for row in rows if datetime.fromisoformat(row["modified_at"]) >= oldest]
        return self._cut(rows, f"/tasks?project={gid}", query, now)

    def _moment(self, text: str) -> datetime:
        try:
            at = datetime.fromisoformat(text)
        except ValueError:
            raise RejectedError(400, self._errors(f"modified_since: Not a valid time: {text}")) from None
        return at if at.tzinfo else at.replace(tzinfo=UTC)

    def _offset(self, query: Mapping[str, str], scope: str, now: float) -> tuple[int, float]:
        """Where a page begins and of which moment it is a page."""
        if "offset" not in query:
            return 0, now
        try:
            generation, start, as_of, issued_for = json.loads(base64.urlsafe_b64decode(query["offset"]))
        except (ValueError, TypeError):
            raise RejectedError(400, self._errors("offset: Your pagination token is invalid.")) from None
        if generation != self.generation or issued_for != scope:
            raise RejectedError(400, self._errors("offset: Your pagination token has expired."))
        return start, as_of

    def _cut(self, rows: list[dict[str, Any]], scope: str, query: Mapping[str, str], now: float) -> bytes:
        start, as_of = self._offset(query, scope, now)
        limit = query.get("limit", str(len(rows) or 1))  # without a limit everything comes at once
        if not limit.isdigit() or not 1 <= int(limit) <= (100 if "limit" in query else len(rows) or 1):
            raise RejectedError(400, self._errors("limit: Must be an integer between 1 and 100"))
        end = start + int(limit)
        following = None
        if end < len(rows):
            token = base64.urlsafe_b64encode(encode([self.generation, end, as_of, scope])).decode()
            path = f"{scope}{'&' if '?' in scope else '?'}limit={limit}&offset={token}"
            following = {"offset": token, "path": path, "uri": f"https://app.asana.com/api/1.0{path}"}
        wanted = query.get("opt_fields", "name,resource_type,resource_subtype").split(",")
        return encode({"data": [pick(row, wanted) for row in rows[start:end]], "next_page": following})


def pick(row: dict[str, Any], wanted: list[str]) -> dict[str, Any]:
    """The fields asked for, dotted ones inside their object; the gid always comes along."""
    chosen: dict[str, Any] = {"gid": row["gid"]}
    inner: dict[str, list[str]] = {}
    for name in wanted:
        head, _, rest = name.strip().partition(".")
        if head in row:
            inner.setdefault(head, []).extend([rest] if rest else [])
    for head, rests in inner.items():
        value = row[head]
        if isinstance(value, dict):
            value = pick(value, rests or ["resource_type"])
        elif isinstance(value, list):
            value = [pick(item, rests or ["resource_type"]) for item in value]
        chosen[head] = value
    return chosen
