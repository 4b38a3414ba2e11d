"""What is sent for a page."""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from tasks.collectors.links import Link, on_host
from tasks.collectors.spans import placeholders
from tasks.collectors.values import Checkpoint, Request, Unit

if TYPE_CHECKING:
    from tasks.collectors.endpoint import Endpoint


def request(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> Request:
    """The call for this page."""
    url = address(endpoint, unit, checkpoint)
    values = _values(endpoint, unit)
    headers = {**endpoint.api.headers, **_filled(endpoint.headers, values)}
    headers |= endpoint.cursor.headers(unit) if endpoint.cursor else {}
    if _is_link(endpoint, checkpoint):
        return Request("GET", url, {}, headers)
    sent = _filled(endpoint.params, values)
    sent |= endpoint.cursor.sent(unit) if endpoint.cursor else {}
    sent |= endpoint.page.params(unit, checkpoint)
    return Request("GET", url, sent, headers)


def address(endpoint: "Endpoint", unit: Unit, checkpoint: Checkpoint) -> str:
    """Where this page is."""
    if _is_link(endpoint, checkpoint):
        return on_host(endpoint.api.base_url, checkpoint["link"])
    quoted = {name: quote(value, safe="") for name, value in _values(endpoint, unit).items()}
    return endpoint.api.base_url + endpoint.path.format_map(quoted)


def _values(endpoint: "Endpoint", unit: Unit) -> dict[str, str]:
    """What fills the placeholders: the symbol, the named groups of its pattern, the interval of bars."""
    pattern = endpoint.symbol_pattern
    match = re.fullmatch(pattern, unit.symbol) if pattern is not None else None
    groups = match.groupdict("") if match else {}
    return {"symbol": unit.symbol, **groups, **placeholders(endpoint.page)}


def _is_link(endpoint: "Endpoint", checkpoint: Checkpoint) -> bool:
    return isinstance(endpoint.page, Link) and "link" in checkpoint


def _filled(templates: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    return {name: text.format_map(values) for name, text in templates.items()}
