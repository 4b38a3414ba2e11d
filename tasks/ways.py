"""The ways of a delivery to its data: one as a rule, the ready tiers of an endpoint that has several."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from resilience.errors import (
    AuthenticationError,
    CircuitOpenError,
    ConfigurationError,
    PenstockError,
    RateLimitError,
    Refused,
)
from resilience.fallback import falls
from resilience.policy import Lane
from tasks.calls import Calls, Snooze
from tasks.collectors.endpoint import Endpoint
from tasks.collectors.tiers import Tier
from tasks.collectors.values import Fetch, Unit
from tasks.limits import ask_for
from tasks.settings import Settings
from tasks.store import Claim
from tasks.tokens import AccountStopped


@dataclass(slots=True)
class Way:
    """One way to the data, and the calls that are made on it."""

    name: str | None
    fetch: Fetch | None
    calls: Calls
    own_host: bool = False
    placeholder: str | None = None

    def gives_way(self, error: PenstockError) -> bool:
        """Whether an error on this way lets the next one be tried.

        A wait for a limit does not where the next way waits for the same one; nor do credentials that are
        wrong where they are the same.
        """
        if isinstance(error, Snooze):
            return self.own_host or error.reason == "half_open"
        if isinstance(error, RateLimitError | AuthenticationError | AccountStopped):
            return self.own_host
        return falls(error)


def ways_of(
    endpoint: Endpoint,
    unit: Unit,
    *,
    lane: Lane,
    claim: Claim,
    settings: Settings,
    stopping: Callable[[], bool],
) -> list[Way]:
    """The ways that a delivery has, the best one first. Raises ConfigurationError where it has none."""
    weight, ticket = endpoint.weigh(unit), claim.row["ticket"]
    if not endpoint.tiers:
        ask = ask_for(endpoint, unit.symbol, lane, weight)
        calls = Calls(
            endpoint.api, ask, claim, settings, ticket=ticket, stopping=stopping, symbol=unit.symbol
        )
        return [Way(None, endpoint.fetch, calls)]
    found = []
    tiers = ready(endpoint, settings.secret)
    for tier in tiers:
        api = tier.api(endpoint.api, settings.secret)
        ask = ask_for(endpoint, unit.symbol, lane, weight, tier)
        patient = tier is tiers[-1]
        calls = Calls(
            api,
            ask,
            claim,
            settings,
            ticket=ticket,
            stopping=stopping,
            symbol=unit.symbol,
            patient=patient,
        )
        found.append(Way(tier.name, tier.fetch, calls, tier.base_url is not None, tier.placeholder))
    return found


def ready(endpoint: Endpoint, resolve: Callable[[str], str]) -> Sequence[Tier]:
    """The tiers that can be used here. Raises ConfigurationError, with every reason, where none can."""
    missing = {tier.name: tier.missing(resolve) for tier in endpoint.tiers}
    found = [tier for tier in endpoint.tiers if missing[tier.name] is None]
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise ConfigurationError(f"{endpoint.full_name} has no tier that can be used here: {reasons}")
    return found


def deciding(errors: Mapping[str, Exception]) -> PenstockError:
    """Of what all tiers failed by, the error that says what becomes of the unit.

    A call that was made and failed counts before one that was refused, one that another try may mend before
    one that none will; of refusals the one that ends first.
    """
    ours = [each for each in errors.values() if isinstance(each, PenstockError)]
    made = [each for each in ours if not isinstance(each, Refused)]
    if made:
        return ([each for each in made if each.recoverable] or made)[-1]
    waits = [each for each in ours if isinstance(each, Snooze)]
    if waits:
        return min(waits, key=lambda each: each.seconds)
    opened = [each for each in ours if isinstance(each, CircuitOpenError)]
    if not opened:
        return ours[0]
    return min(opened, key=lambda each: each.retry_at.timestamp() if each.retry_at else 0.0)
