"""A limit and who shares it."""

import math
from datetime import timedelta

from resilience.errors import ConfigurationError
from resilience.policy import Limit
from resilience.store import RateSpec, SeatSpec

DEFAULT_LEASE = timedelta(seconds=35)


class RateLimiter:
    """A limit of an API (calls per window, or in flight) as one sharer has it: a host, an account, a symbol.

    `key` names the sharer: everyone who asks with the same api, limit and key shares what the limit allows.
    `weight_max` is the largest weight a call may have. `lease` is how long a call in flight holds its seat
    when its process dies; a call that takes longer than that is no longer counted.

    No window of any phase lets more than the limit through, whoever asks and whenever. Where the store was
    lost the bucket starts empty, and calls in flight have one lease to end.
    """

    def __init__(
        self,
        name: str,
        limit: Limit,
        *,
        api: str,
        key: str,
        weight_max: float = 1,
        lease: timedelta = DEFAULT_LEASE,
    ) -> None:
        if weight_max > limit.amount:
            raise ConfigurationError(
                f"limit {limit.spec!r} of {api}: a call of weight {weight_max:g} never fits"
            )
        self.name, self.limit, self.api, self.key = name, limit, api, key
        self.weight_max = weight_max
        self.spec = self._seats(lease) if limit.at_once else self._rate()

    def __repr__(self) -> str:
        return f"RateLimiter({self.name!r}, {self.limit.spec!r}, api={self.api!r}, key={self.key!r})"

    def _seats(self, lease: timedelta) -> SeatSpec:
        return SeatSpec(self.api, self.name, self.key, self.limit.amount, lease // timedelta(microseconds=1))

    def _rate(self) -> RateSpec:
        limit = self.limit
        unit_us = math.ceil(1e6 / limit.rate_for(self.weight_max))
        burst = math.ceil(limit.burst_for(self.weight_max))
        window_us = round(limit.window_s * 1e6)
        # In a window fit window / unit + burst, and with the slack this has to stay below amount + 1.
        slack_us = min(unit_us - 1, max(0, (limit.amount + 1 - burst) * unit_us - window_us - 1))
        return RateSpec(
            self.api,
            self.name,
            self.key,
            unit_us,
            burst * unit_us,
            slack_us,
            1 - limit.reserve,
            window_us,
        )
