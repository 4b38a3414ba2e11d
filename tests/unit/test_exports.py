"""The public surface: a name that appears or goes is a decision, not an accident."""

import importlib
import subprocess
import sys

import pytest

SURFACE = {
    "tasks.collectors": {
        "Answer", "Api", "ApiKey", "Bars", "Basic", "Bearer", "BreakerPolicy", "Cursor", "Detail", "Endpoint", "Fetched",
        "FromEndpoint", "FromTable", "GoogleServiceAccount", "GoogleUser", "Limit", "Link", "Number", "OAuth2", "Offset",
        "Page", "Request", "RetryPolicy", "Rule", "Single", "Sync", "Tier", "Token", "Unit", "Window",
        "day", "iso", "ms", "number", "seconds", "whole",
    },
    "resilience.guard": {
        "Ask", "CallResult", "CircuitState", "CircuitView", "Go", "Guard", "Kind", "Lease", "Refuse",
        "Transition", "Verdict", "Wait",
    },
}  # fmt: skip
DEFINED = {
    "resilience.errors": {
        "APIError", "AllTiersFailedError", "ApiConnectionError", "ApiTimeoutError", "AuthenticationError",
        "BadPayloadError", "BannedError", "CircuitBreakerOpenError", "CircuitOpenError", "CollectionError",
        "ConfigurationError", "ConnectionPoolError", "DNSError", "DatabaseError", "IntegrityError",
        "InvalidCredentialsError", "NetworkError", "NoRowsError", "NotFoundError", "PartialCollectionError", "PenstockError",
        "RateLimitError", "Refused", "RetryExhaustedError", "Scope", "ServerAwayError", "ServerError",
        "StoreUnavailableError", "Throttled", "TokenExpiredError", "TokenFetchError", "TooMuchError", "TransactionError",
        "ValidationError",
    },
    "resilience.policy": {"BreakerPolicy", "Lane", "Limit", "RetryPolicy"},
    "resilience.breaker": {"CircuitBreaker", "StateName"},
    "resilience.source": {"Source"},
    "resilience.guard_async": {"AsyncGuard"},
    "resilience.retry": {"Retry", "RetryBudget", "Retrying"},
    "resilience.circuits": {"Circuits"},
    "resilience.limiter": {"Permit", "RateLimiter"},
    "resilience.headers": {"Dialect", "Quota"},
    "resilience.concurrency": {"Broken", "ConcurrentBatcher"},
    "resilience.fallback": set(),
    "resilience.tiers": {"Tiers"},
    "resilience.health": {"CollectorStatus", "Detail", "Health"},
    "resilience.health_monitor": {"HealthMonitor", "Probe"},
    "resilience.quarantine": {"Entries", "MemoryEntries", "Quarantine", "SymbolErrors"},
    "resilience.concurrency_async": {"AsyncConcurrentBatcher"},
    "resilience.error_collector": {"ErrorCollector", "ItemError"},
}  # fmt: skip


@pytest.mark.parametrize("module", SURFACE)
def test_surface(module):
    """What is promised is there, and nothing else."""
    found = importlib.import_module(module)
    assert set(found.__all__) == SURFACE[module]
    assert all(hasattr(found, name) for name in found.__all__)


@pytest.mark.parametrize("module", DEFINED)
def test_classes(module):
    """The classes that a module makes are what it is known for."""
    found = vars(importlib.import_module(module)).items()
    made = {name for name, each in found if isinstance(each, type) and each.__module__ == module}
    assert {name for name in made if not name.startswith("_")} == DEFINED[module]


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("resilience.breaker", {"celery", "kombu", "requests", "sqlalchemy", "tasks", "workers"}),
        ("tasks.collectors", {"celery", "kombu", "requests", "alembic", "psycopg", "workers"}),
        ("workers.cli", {"celery", "kombu", "redis", "requests", "sqlalchemy", "rich", "pydantic"}),
    ],
)
def test_what_an_import_brings_along(module, unwanted):
    """Not what a module imports but what is loaded in the end: this keeps `--help` instant."""
    code = f"import sys, {module}; print(*sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in said.stdout.split()}
    assert module.partition(".")[0] in loaded
    assert not loaded & unwanted
