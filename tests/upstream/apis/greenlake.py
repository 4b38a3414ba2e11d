"""HPE GreenLake: devices and subscriptions of a workspace, by offset."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any

from tests.upstream.apis.base import Answer, Charge, Request, encode
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix

WORKSPACE = "7600415a-8876-5722-9f3c-b0fd11112283"
COUNTS = {"devices": 4321, "subscriptions": 130}


def _z(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _at(bits: int) -> str:
    return _z(LISTED_AT_S + bits % 50_000_000)


def device(number: int, touched_at: int | None = None) -> dict[str, Any]:
    bits = mix(77, number)
    return {
        "id": f"d{number:07d}",
        "type": "devices/device",
        "serialNumber": f"SN{bits % 10**9:09d}",
        "partNumber": f"JL{bits % 900 + 100}A",
        "deviceType": ("SWITCH", "AP", "GATEWAY", "STORAGE")[bits % 4],
        "model": None if bits % 9 == 0 else f"63{bits % 90 + 10}M",
        "macAddress": f"{bits % 2**48:012x}",
        "createdAt": _at(bits),
        "updatedAt": _at(bits + 86_400) if touched_at is None else _z(touched_at),
        "generation": bits % 5,
    }


def subscription(number: int, touched_at: int | None = None) -> dict[str, Any]:
    bits = mix(78, number)
    return {
        "id": f"s{number:07d}",
        "type": "subscriptions/subscription",
        "key": f"KEY{bits % 10**8:08d}",
        "sku": f"Q9Y{bits % 90 + 10}AAE",
        "quantity": str(bits % 500 + 1),
        "availableQuantity": str(bits % 500 // 2),
        "startTime": _at(bits),
        "endTime": _at(bits + 31_536_000),
        "createdAt": _at(bits),
        "updatedAt": _at(bits + 3600) if touched_at is None else _z(touched_at),
        "tags": {},
    }


ROWS = {"devices": device, "subscriptions": subscription}


def rows(kind: str, touched: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """All devices or subscriptions, by id; `touched` says which were modified or added, and when."""
    changed = {number: ROWS[kind](number, at) for number, at in (touched or {}).items()}
    found = dict(enumerate(_untouched(kind))) | changed
    return [found[number] for number in sorted(found)]


def expected_devices(touched: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """What has to be stored of the devices, in the order of the ids."""
    return [
        {
            "id": row["id"],
            "serial": row["serialNumber"],
            "type": row["deviceType"],
            "model": row["model"],
            "created_at": datetime.fromisoformat(row["createdAt"]),
            "updated_at": datetime.fromisoformat(row["updatedAt"]),
            "data": row,
        }
        for row in rows("devices", touched)
    ]


def expected_subscriptions(touched: Mapping[int, int] | None = None) -> list[dict[str, Any]]:
    """What has to be stored of the subscriptions, in the order of the ids."""
    return [
        {
            "id": row["id"],
            "key": row["key"],
            "sku": row["sku"],
            "quantity": int(row["quantity"]),
            "available": int(row["availableQuantity"]),
            "starts_at": datetime.fromisoformat(row["startTime"]),
            "ends_at": datetime.fromisoformat(row["endTime"]),
            "updated_at": datetime.fromisoformat(row["updatedAt"]),
            "data": row,
        }
        for row in rows("subscriptions", touched)
    ]


@cache
def _untouched(kind: str) -> list[dict[str, Any]]:
    return [ROWS[kind](number) for number in range(COUNTS[kind])]


class GreenLake(TokenApi):
    """160 a minute for devices, 60 for subscriptions; how long to wait stands in the body.

    What changed last comes first, unless sorted by id: by offset, who does not sort misses rows and sees some twice.
    """

    name = "greenlake"
    token_path = f"authorization/v2/oauth2/{WORKSPACE}/token"
    unit = "devices"
    documented = {"amount": 160, "window_s": 60}
    further = {"subscriptions": (60, 60)}
    lifetime_s = 7200.0
    MOST = {"devices": (2000, 2000), "subscriptions": (50, 100)}  # by default, and at most

    def reset(self) -> None:
        super().reset()
        self.touched: dict[str, dict[int, int]] = {kind: {} for kind in COUNTS}

    def control(self, name: str, value: Any) -> None:
        match name:
            case "touch":
                for touched in self.touched.values():
                    touched.update(dict.fromkeys(range(int(value["count"])), int(value["at"])))
            case "add":
                for kind, touched in self.touched.items():
                    first = max(COUNTS[kind], max(touched, default=0) + 1)
                    touched.update(dict.fromkeys(range(first, first + int(value["count"])), int(value["at"])))
            case _:
                super().control(name, value)

    def charges(self, request: Request, key: str) -> list[Charge]:
        if self.asks_token(request):
            return []
        kind = "subscriptions" if request.path.startswith("subscriptions") else "devices"
        return [(self.meters[kind], key, 1)]

    def too_many(self, wait_s: float, limit: str) -> Answer:
        details = [{"type": "hpe.greenlake.retry", "retryAfterSeconds": max(1, int(wait_s) + 1)}]
        return Answer(
            429, encode(self._error(429, "HPE_GL_ERROR_TOO_MANY_REQUESTS") | {"serverErrorDetails": details})
        )

    @staticmethod
    def _error(status: int, code: str) -> dict[str, Any]:
        return {"httpStatusCode": status, "errorCode": code, "message": code.lower(), "debugId": "4711"}

    def trouble(self, status: int) -> bytes:
        codes = {
            400: "HPE_GL_ERROR_BAD_REQUEST",
            401: "HPE_GL_ERROR_UNAUTHORIZED",
            429: "HPE_GL_ERROR_TOO_MANY_REQUESTS",
        }
        return encode(self._error(status, codes.get(status, "HPE_GL_ERROR_INTERNAL_SERVER_ERROR")))

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        kind = {"devices/v1/devices": "devices", "subscriptions/v1/subscriptions": "subscriptions"}.get(
            request.path
        )
        if kind is None:
            return Answer(404, encode(self._error(404, "HPE_GL_ERROR_NOT_FOUND")))
        query, (usual, most) = request.query, self.MOST[kind]
        limit, offset = self.whole(query, "limit", usual), self.whole(query, "offset", 0, low=0)
        if limit > most:
            raise self.wrong("limit")
        found = self._filtered(rows(kind, self.touched[kind]), query)
        page = found[offset : offset + limit]
        return encode({"items": page, "count": len(page), "offset": offset, "total": len(found)})

    def _filtered(self, found: list[dict[str, Any]], query: Mapping[str, str]) -> list[dict[str, Any]]:
        if "filter" in query:
            since = re.fullmatch(r"updatedAt (ge|gt) '(\d{4}-\d\d-\d\dT[\d:.]+Z)'", query["filter"])
            if since is None:
                raise self.wrong("filter")
            try:
                at = datetime.fromisoformat(since[2])
            except ValueError:
                raise self.wrong("filter") from None
            kept = {"ge": datetime.__ge__, "gt": datetime.__gt__}[since[1]]
            found = [row for row in found if kept(datetime.fromisoformat(row["updatedAt"]), at)]
        if "sort" not in query:
            return sorted(found, key=lambda row: row["updatedAt"], reverse=True)
        if query["sort"] not in {"id", "id asc"}:
            raise self.wrong("sort")
        return found
