"""Zoho's accounts by the SDK alone, as it gives them."""

from tasks.collectors import Api, RetryPolicy
from tasks.collectors.zoho import zoho as shipped
from tasks.collectors.zoho_sdk import by_sdk

zoho = Api(
    "zoho",
    shipped.base_url,
    auth=shipped.auth,
    limits=shipped.limits,
    rules=shipped.rules,
    retry=RetryPolicy(attempts=2, base_s=0.01),
)


@zoho.endpoint(fetch=by_sdk, key="id")
def alone(row, unit):
    return row
