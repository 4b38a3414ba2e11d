"""Which collectors there are: the shipped ones, installed ones, and the user's own by `module:attribute`."""

import functools
import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any

from resilience.errors import ConfigurationError
from tasks.collectors.spec import Api, Endpoint
from tasks.overrides import closest
from tasks.settings import get_settings

GROUP = "penstock.collectors"
# Known without their entry points too, so that a source checkout works before it is installed.
_NAMES = (
    "binance",
    "coinbase",
    "asana",
    "calendar",
    "glassnode",
    "gmail",
    "greenlake",
    "kraken",
    "lunarcrush",
    "moralis",
    "reddit",
    "x",
    "xero",
    "zoho",
)
SHIPPED = {name: f"tasks.collectors.{name}:{name}" for name in _NAMES}
_API_SETTINGS = ("base_url", "token_url", "limits", "breaker", "retry")


def load(names: Sequence[str] | None, overrides: Mapping[str, Any]) -> dict[str, Api]:
    """The collectors of these names with the installation's settings laid over them; None or none: all
    installed.

    A name is that of an entry point in the group `penstock.collectors`, `module:attribute`, or
    `ccxt:exchange`. Raises ConfigurationError for an unknown name, for a declaration that is wrong, and for
    settings of nothing.
    """
    there = known()
    found: dict[str, Api] = {}
    for name in names or there:
        api = _import(name, there)
        if found.setdefault(api.name, api) is not api:
            raise ConfigurationError(
                f"two collectors are called {api.name!r}; one of them needs another name"
            )
    # A setting for a collector that is installed but not asked for is no mistake.
    for name in overrides.keys() - found.keys() - there.keys():
        raise ConfigurationError(
            f"there are settings for collector {name!r}; {closest(name, [*found, *there])}"
        )
    return {name: _overridden(api, overrides.get(name, {})) for name, api in found.items()}


def known() -> Mapping[str, str]:
    """The installed collectors by name: where each is, as `module:attribute`."""
    return SHIPPED | {each.name: each.value for each in entry_points(group=GROUP)}


def configured(api: Api) -> Api:
    """A collector with this installation's settings laid over it."""
    return _overridden(api, get_settings().overrides.get(api.name, {}))


def find(collectors: Mapping[str, Api], name: str) -> list[Endpoint]:
    """The endpoint "binance.klines", or those of "binance". Raises ConfigurationError naming what there is.

    Of a whole collector those count that have something to collect: who wants Asana's tasks need not name
    workspaces. Where none has, all are given, so that each can say what it lacks.
    """
    collector, _, endpoint = name.partition(".")
    if collector not in collectors:
        raise ConfigurationError(f"there is no collector {collector!r}; {closest(collector, collectors)}")
    endpoints = collectors[collector].endpoints
    if not endpoint and "." not in name:
        return [each for each in endpoints.values() if each.has_symbols] or list(endpoints.values())
    if endpoint not in endpoints:
        raise ConfigurationError(f"{collector} has no endpoint {endpoint!r}; {closest(endpoint, endpoints)}")
    return [endpoints[endpoint]]


@functools.cache
def collectors() -> Mapping[str, Api]:
    """The collectors of this installation, loaded once per process."""
    settings = get_settings()
    return load(settings.collectors, settings.overrides)


@functools.cache
def endpoint_of(full_name: str) -> Endpoint:
    """The endpoint of this installation with this full name. Raises ConfigurationError if there is none."""
    found = find(collectors(), full_name)
    if len(found) != 1 or found[0].full_name != full_name:
        raise ConfigurationError(f"{full_name!r} is a collector; name one of its endpoints")
    return found[0]


def scheduled() -> frozenset[str]:
    """The full names of the endpoints that the setting `schedules` asks for.

    Raises ConfigurationError for a name that is not there, and for one without an interval to run at.
    """
    found, names = collectors(), get_settings().schedules
    try:
        asked = {name: find(found, name) for name in names if name != "*"}
    except ConfigurationError as error:
        raise ConfigurationError(f"PENSTOCK_SCHEDULES: {error}") from None
    for name, endpoints in asked.items():
        if not any(each.every for each in endpoints):
            raise ConfigurationError(
                f"PENSTOCK_SCHEDULES: {name} has no interval; give it one, as in every = '5m'"
            )
    if "*" in names:
        asked = {
            name: [each for each in api.endpoints.values() if each.has_symbols] for name, api in found.items()
        }
    return frozenset(each.full_name for endpoints in asked.values() for each in endpoints if each.every)


def _import(name: str, known: Mapping[str, str]) -> Api:
    target = name if ":" in name else known.get(name)
    if name.startswith("ccxt:"):
        target = f"tasks.collectors.ccxt_exchange:{name.removeprefix('ccxt:')}"
    if target is None:
        raise ConfigurationError(f"there is no collector {name!r}; {closest(name, known)}")
    module, _, attribute = target.partition(":")
    try:
        api = functools.reduce(getattr, attribute.split("."), _module(module))
    except ConfigurationError as error:
        if (place := _line_of(module, error)) is None:
            raise
        raise ConfigurationError(f"{place}: {error}") from error
    except Exception as error:
        source = "" if name == target else f" from {target}"
        raise ConfigurationError(
            f"collector {name!r} cannot be loaded{source}: {type(error).__name__}: {error}"
        ) from error
    if isinstance(api, type):
        raise ConfigurationError(
            f"{target} is a class: make a collector of it, as in ticker = {api.__name__}(collector_name=…), "
            "and name that"
        )
    api = getattr(api, "api", api)  # an instance of a class form
    if not isinstance(api, Api):
        raise ConfigurationError(f"{target} is a {type(api).__name__}, and no Api")
    return api


def _line_of(module: str, error: ConfigurationError) -> str | None:
    """File and line of a module that an error came through; None where it came from elsewhere."""
    spec = importlib.util.find_spec(module)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if spec is not None and frame.filename == spec.origin]
    return f"{spec.origin}:{lines[-1]}" if spec is not None and lines else None


def _module(name: str) -> Any:
    if os.getcwd() not in sys.path:  # noqa: PTH109 - sys.path holds texts
        sys.path.append(os.getcwd())  # noqa: PTH109 - a console script does not look beside the caller's files
    return importlib.import_module(name)


def _overridden(api: Api, table: Mapping[str, Any]) -> Api:
    endpoints = {name: value for name, value in table.items() if name not in _API_SETTINGS}
    return api.with_overrides(
        **{name: table[name] for name in _API_SETTINGS if name in table},
        endpoints=endpoints,
    )
