"""GreenLake: pages by offset, quantities as texts, and a wait in the body."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from resilience.errors import RateLimitError
from tasks.collectors import Answer, Unit
from tasks.collectors.greenlake import greenlake
from tasks.data import greenlake_devices, greenlake_subscriptions

DEVICES, SUBSCRIPTIONS = greenlake.endpoints["devices"], greenlake.endpoints["subscriptions"]
BODIES = Path(__file__).parents[3] / "shared/bodies/hpe"
T0 = datetime(2026, 1, 1, tzinfo=UTC)


def unit(endpoint) -> Unit:
    return Unit(1, 1, "greenlake", endpoint.name, "", None, None, None)


def read(endpoint, body, status=200, checkpoint=None):
    asked = unit(endpoint)
    return endpoint.read(
        asked, checkpoint or endpoint.first(asked), Answer(status, {}, json.dumps(body).encode(), 0.1)
    )


def device(**changed) -> dict:
    return {
        "id": "d-1",
        "serialNumber": "SN1",
        "deviceType": "SWITCH",
        "model": "6300M",
        "createdAt": "2026-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:00.000Z",
    } | changed


def subscription(**changed) -> dict:
    return {
        "id": "s-1",
        "key": "KEY1",
        "sku": "Q9Y74AAE",
        "quantity": "10",
        "availableQuantity": "4",
        "startTime": "2026-01-01T00:00:00.000Z",
        "endTime": "2027-01-01T00:00:00.000Z",
        "updatedAt": "2026-01-01T00:00:00.000Z",
    } | changed


def test_the_first_request():
    """As many as the API gives, sorted by what does not change."""
    assert DEVICES.request(unit(DEVICES), {"offset": 0}).params == {
        "sort": "id",
        "offset": "0",
        "limit": "2000",
    }
    assert SUBSCRIPTIONS.request(unit(SUBSCRIPTIONS), {"offset": 50}).params["limit"] == "50"


def test_a_device_becomes_a_row():
    """Ours beside the original."""
    (row,) = read(DEVICES, {"items": [device()], "count": 1, "offset": 0, "total": 1}).rows
    assert row.keys() == {column.name for column in greenlake_devices.columns}
    assert (row["serial"], row["type"], row["model"], row["updated_at"]) == ("SN1", "SWITCH", "6300M", T0)


def test_quantities():
    """Texts in this version, numbers in the one before."""
    for quantity in ("10", 10):
        (row,) = read(SUBSCRIPTIONS, {"items": [subscription(quantity=quantity)], "total": 1}).rows
        assert row["quantity"] == 10
    assert row.keys() == {column.name for column in greenlake_subscriptions.columns}


def test_pages_go_on_to_the_total():
    """A page may be short and not the last."""
    body = {"items": [device(), device(id="d-2")], "count": 2, "offset": 0, "total": 3}
    assert read(DEVICES, body).next["offset"] == 2
    assert read(DEVICES, body, checkpoint={"offset": 2}).next is None


def test_an_older_body():
    """That of the version before has no `updatedAt`: such rows are not taken for ours."""
    path = BODIES / "subscriptions_v1alpha1_doc_example.json"
    if not path.exists():
        pytest.skip(f"no example bodies in {path.parent}")
    row = json.loads(path.read_text())["body"]["items"][0]
    with pytest.raises(KeyError):
        SUBSCRIPTIONS.parse(row, unit(SUBSCRIPTIONS))


def test_too_much():
    """Told by status; the code in the body says the same."""
    body = {
        "httpStatusCode": 429,
        "errorCode": "HPE_GL_ERROR_TOO_MANY_REQUESTS",
        "message": "Too many requests",
        "debugId": "1",
    }
    with pytest.raises(RateLimitError):
        read(DEVICES, body, 429)
