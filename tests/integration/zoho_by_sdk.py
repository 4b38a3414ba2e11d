"""Zoho's accounts by the SDK alone, and with REST behind it."""

from tasks.collectors import Api, RetryPolicy, Tier, Token
from tasks.collectors.zoho import FIELDS
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


@zoho.endpoint(
    "/Accounts",
    tiers=[Tier("sdk", by_sdk, needs="zohocrmsdk"), Tier("rest")],
    params={"fields": FIELDS, "sort_by": "id", "sort_order": "asc"},
    page=Token(param="page_token", at="info.next_page_token", size_param="per_page", size=200),
    rows="data",
    key="id",
)
def tiered(row, unit):
    return row
