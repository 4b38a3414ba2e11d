"""HPE GreenLake: the devices and subscriptions of a workspace.

Documented (developer.greenlake.hpe.com: device management and subscription APIs, read 2026-11): 160 requests
per minute and workspace for devices, 60 for subscriptions; 429 says in its body how long to wait. Up to 2,000
devices or 50 subscriptions come at once. Rows come sorted by id: by offset, others would move under the
reader's eyes.
"""

from typing import Any

from tasks.collectors import Api, Limit, OAuth2, Offset, Unit, iso
from tasks.data import greenlake_devices, greenlake_subscriptions

greenlake = Api(
    "greenlake",
    "https://global.api.greenlake.hpe.com",
    auth=OAuth2(
        "https://global.api.greenlake.hpe.com/authorization/v2/oauth2/{GREENLAKE_WORKSPACE}/token",
        client_id="GREENLAKE_CLIENT_ID",
        client_secret="GREENLAKE_CLIENT_SECRET",
    ),
)


@greenlake.endpoint(
    "/devices/v1/devices",
    params={"sort": "id"},
    page=Offset(param="offset", size=2000, size_param="limit", total="total"),
    rows="items",
    limits=[Limit("160/1m", per="account", reserve=0.3)],
    table=greenlake_devices,
    key="id",
    every="1h",
)
def devices(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a device as GreenLake gives it into ours, and keep the original beside it."""
    del unit
    return {
        "id": row["id"],
        "serial": row["serialNumber"],
        "type": row["deviceType"],
        "model": row.get("model"),
        "created_at": iso(row["createdAt"]),
        "updated_at": iso(row["updatedAt"]),
        "data": row,
    }


@greenlake.endpoint(
    "/subscriptions/v1/subscriptions",
    params={"sort": "id"},
    page=Offset(param="offset", size=50, size_param="limit", total="total"),
    rows="items",
    limits=[Limit("60/1m", per="account", reserve=0.3)],
    table=greenlake_subscriptions,
    key="id",
    every="1h",
)
def subscriptions(row: Any, unit: Unit) -> dict[str, Any]:
    """Turn a subscription into ours; quantities are texts, and were numbers in an earlier version."""
    del unit
    return {
        "id": row["id"],
        "key": row["key"],
        "sku": row.get("sku"),
        "quantity": int(row["quantity"]),
        "available": int(row["availableQuantity"]) if "availableQuantity" in row else None,
        "starts_at": iso(row["startTime"]) if row.get("startTime") else None,
        "ends_at": iso(row["endTime"]) if row.get("endTime") else None,
        "updated_at": iso(row["updatedAt"]),
        "data": row,
    }
