"""The fake APIs, one in each module."""

from tests.upstream.apis.asana import Asana
from tests.upstream.apis.base import Api
from tests.upstream.apis.binance import Binance
from tests.upstream.apis.coinbase import Coinbase

ALL: tuple[type[Api], ...] = (Asana, Binance, Coinbase)
