"""HPE GreenLake: devices and subscriptions of a workspace, by offset."""

from datetime import UTC, datetime
from typing import Any

from tests.upstream.apis.base import Answer, Charge, Request, encode
from tests.upstream.apis.tokens import TokenApi
from tests.upstream.data import LISTED_AT_S, mix

WORKSPACE = "7600415a-8876-5722-9f3c-b0fd11112283"
COUNTS = {"devices": 4321, "subscriptions": 130}


def _at(bits: int) -> str:
    at = datetime.fromtimestamp(LISTED_AT_S + bits % 50_000_000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def device(number: int) -> dict[str, Any]:
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
        "updatedAt": _at(bits + 86_400),
        "generation": bits % 5,
    }


def subscription(number: int) -> dict[str, Any]:
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
        "updatedAt": _at(bits + 3600),
        "tags": {},
    }


ROWS = {"devices": device, "subscriptions": subscription}


def rows(kind: str) -> list[dict[str, Any]]:
    """All devices or subscriptions, by id."""
    return [ROWS[kind](number) for number in range(COUNTS[kind])]


class GreenLake(TokenApi):
    """160 a minute for devices, 60 for subscriptions; how long to wait stands in the body."""

    name = "greenlake"
    token_path = f"authorization/v2/oauth2/{WORKSPACE}/token"
    unit = "devices"
    documented = {"amount": 160, "window_s": 60}
    further = {"subscriptions": (60, 60)}
    MOST = {"devices": (2000, 2000), "subscriptions": (50, 100)}  # by default, and at most

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
        codes = {401: "HPE_GL_ERROR_UNAUTHORIZED", 429: "HPE_GL_ERROR_TOO_MANY_REQUESTS"}
        return encode(self._error(status, codes.get(status, "HPE_GL_ERROR_INTERNAL_SERVER_ERROR")))

    def found(self, request: Request, bad: frozenset[str], now: float) -> bytes | Answer:
        kind = {"devices/v1/devices": "devices", "subscriptions/v1/subscriptions": "subscriptions"}.get(
            request.path
        )
        if kind is None:
            return Answer(404, encode(self._error(404, "HPE_GL_ERROR_NOT_FOUND")))
        usual, most = self.MOST[kind]
        limit, offset = int(request.query.get("limit", usual)), int(request.query.get("offset", 0))
        if not 1 <= limit <= most:
            return Answer(400, encode(self._error(400, "HPE_GL_ERROR_BAD_REQUEST")))
        numbers = range(offset, min(offset + limit, COUNTS[kind]))
        page = [ROWS[kind](number) for number in numbers]
        return encode({"items": page, "count": len(page), "offset": offset, "total": COUNTS[kind]})
