"""Google Calendar: the events of calendars. Symbols are their ids: "primary", or an address.

Documented (developers.google.com/workspace/calendar/api: quotas, errors, events.list; read 2026-11): 600
requests per minute for a user, 10,000 for the project; over them 403 or 429 with a reason in the body, and
no Retry-After. A page may hold no event and still not be the last. All events are read once, those that were
cancelled too, and then what has changed; 410 means that the token for that is no longer known.
"""

from typing import Any

from tasks.collectors import Api, GoogleUser, Limit, Rule, Sync, Token, Unit, day, iso
from tasks.collectors.rules import GOOGLE_QUOTAS
from tasks.data import calendar_events

calendar = Api(
    "calendar",
    "https://www.googleapis.com/calendar/v3",
    auth=GoogleUser("GOOGLE_USER_TOKEN"),
    limits=[Limit("600/1m", per="account", reserve=0.3), Limit("10000/1m", per="api", reserve=0.3)],
    rules=[
        *GOOGLE_QUOTAS,
        Rule("resync", status=410),
    ],
)


@calendar.endpoint(
    "/calendars/{symbol}/events",
    symbols=[],
    symbol_pattern=r"[^\s/?#]{1,200}",
    params={"showDeleted": "true"},
    page=Token(param="pageToken", at="nextPageToken", size_param="maxResults", size=2500),
    rows="items",
    sync=Sync(param="syncToken", at="nextSyncToken"),
    table=calendar_events,
    key=("calendar", "id"),
    every="5m",
)
def events(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn an event into ours, and keep the original beside it; one that was cancelled may be an id alone."""
    start, end = row.get("start", {}), row.get("end", {})
    return {
        "calendar": unit.symbol,
        "id": row["id"],
        "status": row["status"],
        "summary": row.get("summary"),
        "organizer": row.get("organizer", {}).get("email"),
        "start_at": iso(start["dateTime"]) if "dateTime" in start else None,
        "end_at": iso(end["dateTime"]) if "dateTime" in end else None,
        "start_on": day(start.get("date")),
        "end_on": day(end.get("date")),
        "updated_at": iso(row["updated"]) if "updated" in row else None,
        "data": row,
    }
