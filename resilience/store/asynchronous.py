"""The shared state as asyncio programs ask it: what is asked around every call, as coroutines."""

from collections.abc import Sequence
from typing import Protocol

from resilience.store import Answer, CircuitSpec, Grant, Reading, Report, Request, RetrySpec, Settled, Store


class AsyncStore(Protocol):
    """`Store` for asyncio: the same decisions. Everything may raise `StoreUnavailableError`."""

    async def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""

    async def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""

    async def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""

    async def release(self, grant: Grant) -> None:
        """See `Store.release`."""

    async def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""

    async def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`."""

    async def close(self) -> None:
        """Let go of what belongs to the running loop."""


class AsyncMemoryStore:
    """A `MemoryStore`, which never waits, as asyncio programs ask it."""

    def __init__(self, store: Store) -> None:
        self.store = store

    async def admit(self, request: Request) -> Answer:
        """See `Store.admit`."""
        return self.store.admit(request)

    async def settle(self, report: Report) -> Settled:
        """See `Store.settle`."""
        return self.store.settle(report)

    async def settle_and_admit(self, report: Report, request: Request) -> tuple[Settled, Answer]:
        """See `Store.settle_and_admit`."""
        return self.store.settle_and_admit(report, request)

    async def release(self, grant: Grant) -> None:
        """See `Store.release`."""
        self.store.release(grant)

    async def retry(self, spec: RetrySpec, earned_us: int) -> bool:
        """See `Store.retry`."""
        return self.store.retry(spec, earned_us)

    async def circuits(self, specs: Sequence[CircuitSpec]) -> list[Reading]:
        """See `Store.circuits`."""
        return self.store.circuits(specs)

    async def close(self) -> None:
        """Nothing to let go of."""
