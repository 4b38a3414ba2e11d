"""The fake APIs, one in each module."""

from tests.upstream.apis.asana import Asana
from tests.upstream.apis.base import Api
from tests.upstream.apis.binance import Binance
from tests.upstream.apis.coinbase import Coinbase
from tests.upstream.apis.glassnode import Glassnode
from tests.upstream.apis.google import Calendar, Gmail
from tests.upstream.apis.greenlake import GreenLake
from tests.upstream.apis.kraken import Kraken
from tests.upstream.apis.lunarcrush import Lunarcrush
from tests.upstream.apis.moralis import Moralis
from tests.upstream.apis.reddit import Reddit
from tests.upstream.apis.x import X
from tests.upstream.apis.xero import Xero
from tests.upstream.apis.zoho import Zoho

ALL: tuple[type[Api], ...] = (
    Asana,
    Binance,
    Calendar,
    Coinbase,
    Glassnode,
    Gmail,
    GreenLake,
    Kraken,
    Lunarcrush,
    Moralis,
    Reddit,
    X,
    Xero,
    Zoho,
)

# What the base URL of a collector has besides the host.
PATHS = {
    "asana": "/api/1.0",
    "calendar": "/calendar/v3",
    "gmail": "/gmail/v1",
    "kraken": "/0",
    "lunarcrush": "/api4",
    "moralis": "/api/v2.2",
    "x": "/2",
    "xero": "/api.xro/2.0",
    "zoho": "/crm/v8",
}
