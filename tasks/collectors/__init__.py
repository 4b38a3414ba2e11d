"""Everything that a collector's declaration needs, from one place."""

from resilience.policy import BreakerPolicy, Limit, RetryPolicy
from tasks.collectors.auth import ApiKey, Basic, Bearer
from tasks.collectors.details import Detail
from tasks.collectors.fields import day, iso, ms, number, seconds, whole
from tasks.collectors.links import Link
from tasks.collectors.oauth import GoogleServiceAccount, GoogleUser, OAuth2
from tasks.collectors.paging import Number, Offset, Single, Token
from tasks.collectors.rules import Rule
from tasks.collectors.sources import FromEndpoint, FromTable
from tasks.collectors.spans import Bars, Window
from tasks.collectors.spec import Api, Endpoint
from tasks.collectors.sync import Sync
from tasks.collectors.tiers import Tier
from tasks.collectors.times import Cursor
from tasks.collectors.values import Answer, Fetched, Page, Request, Unit

__all__ = [
    "Answer",
    "Api",
    "ApiKey",
    "Bars",
    "Basic",
    "Bearer",
    "BreakerPolicy",
    "Cursor",
    "Detail",
    "Endpoint",
    "Fetched",
    "FromEndpoint",
    "FromTable",
    "GoogleServiceAccount",
    "GoogleUser",
    "Limit",
    "Link",
    "Number",
    "OAuth2",
    "Offset",
    "Page",
    "Request",
    "RetryPolicy",
    "Rule",
    "Single",
    "Sync",
    "Tier",
    "Token",
    "Unit",
    "Window",
    "day",
    "iso",
    "ms",
    "number",
    "seconds",
    "whole",
]
