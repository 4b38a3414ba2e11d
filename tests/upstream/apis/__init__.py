"""The fake APIs, each in a module."""

from tests.upstream.apis.asana import Asana
from tests.upstream.apis.base import Api
from tests.upstream.apis.binance import Binance
from tests.upstream.apis.coinbase import Coinbase
from tests.upstream.apis.google import Calendar, Gmail
from tests.upstream.apis.greenlake import GreenLake
from tests.upstream.apis.reddit import Reddit
from tests.upstream.apis.xero import Xero
from tests.upstream.apis.zoho import Zoho

ALL: tuple[type[Api], ...] = (Asana, Binance, Calendar, Coinbase, Gmail, GreenLake, Reddit, Xero, Zoho)
