"""What is sent for a page."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from tasks.collectors.links import Link, on_host
from tasks.collectors.spans import placeholders
from tasks.collectors.sync import CHANGES, START
from tasks.collectors.values import Checkpoint, Known, Request, Unit

if TYPE_CHECKING:
    from tasks.collectors.endpoint import Endpoint


def request(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> Request:
    """The call for this page."""
    url = address(endpoint, unit, checkpoint)
    values = _values(endpoint, unit, checkpoint)
    headers = {**endpoint.api.headers, **_filled(endpoint.headers, values)}
    if "ids" in checkpoint:
        assert endpoint.detail is not None
        return Request("GET", url, _filled(endpoint.detail.params, values), headers)
    if checkpoint.get("mode") == START:
        return Request("GET", url, {}, headers)
    headers |= endpoint.cursor.headers(unit) if endpoint.cursor else {}
    if _is_link(endpoint, checkpoint):
        return Request("GET", url, {}, headers)
    sent = _filled(_params(endpoint, checkpoint), values)
    sent |= endpoint.cursor.sent(unit) if endpoint.cursor else {}
    if endpoint.sync is not None and checkpoint.get("mode") == CHANGES and unit.cursor is not None:
        sent[endpoint.sync.param] = unit.cursor
    sent |= endpoint.page.params(unit, checkpoint)
    found = Request("GET", url, sent, headers)
    if "known" in checkpoint and checkpoint["known"]["asked"] == digest(found):
        headers |= Known(**checkpoint["known"]).headers
    return found


def digest(request: Request) -> str:
    """What tells a request from others: validators are those of what was asked for."""
    return hashlib.sha256(json.dumps([request.url, sorted(request.params.items())]).encode()).hexdigest()


def address(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> str:
    """Where this page is."""
    if "ids" not in checkpoint and _is_link(endpoint, checkpoint):
        return on_host(endpoint.api.base_url, checkpoint["link"])
    values = _values(endpoint, unit, checkpoint)
    quoted = {name: quote(value, safe="") for name, value in values.items()}
    return endpoint.api.base_url + _path(endpoint, checkpoint).format_map(quoted)


def _path(endpoint: "Endpoint", checkpoint: Checkpoint) -> str:
    if "ids" in checkpoint and endpoint.detail is not None:
        return endpoint.detail.path
    mode, sync = checkpoint.get("mode"), endpoint.sync
    if sync is not None and mode == START and sync.start is not None:
        return sync.start[0]
    if sync is not None and mode == CHANGES and sync.path is not None:
        return sync.path
    return endpoint.path


def _params(endpoint: "Endpoint", checkpoint: Checkpoint) -> Mapping[str, str]:
    sync = endpoint.sync
    if sync is None or checkpoint.get("mode") != CHANGES:
        return endpoint.params
    if sync.path is not None:
        return sync.params
    return {name: text for name, text in endpoint.params.items() if name not in sync.without}


def _values(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> dict[str, str]:
    """What fills the placeholders: the symbol, the named groups of its pattern, the interval of bars."""
    pattern = endpoint.symbol_pattern
    match = re.fullmatch(pattern, unit.symbol) if pattern is not None else None
    groups = match.groupdict("") if match else {}
    item = {"id": checkpoint["ids"][0]} if "ids" in checkpoint else {}
    return {"symbol": unit.symbol, **groups, **placeholders(endpoint.page), **item}


def _is_link(endpoint: "Endpoint", checkpoint: Checkpoint) -> bool:
    return isinstance(endpoint.page, Link) and "link" in checkpoint


def _filled(templates: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    return {name: text.format_map(values) for name, text in templates.items()}
