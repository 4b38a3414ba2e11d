"""The names of everything kept in the store. The API is the hash tag, so that one script touches one slot."""

from resilience.store.layout import LAYOUT as _LAYOUT

_PREFIX = "penstock"


def circuit(api: str, name: str) -> str:
    """Packed (layout.py): the state of a circuit."""
    return f"{_PREFIX}:{{{api}}}:circuit:{name}"


def permits(api: str, name: str) -> str:
    """Sorted set: who probes a half-open circuit, by the end of the permit."""
    return f"{_PREFIX}:{{{api}}}:permits:{name}"


def override(api: str, name: str) -> str:
    """Hash: who forced a circuit, and why."""
    return f"{_PREFIX}:{{{api}}}:override:{name}"


def events(api: str) -> str:
    """Stream: the transitions of an API's circuits."""
    return f"{_PREFIX}:{{{api}}}:events"


def bucket(api: str, name: str, sharer: str) -> str:
    """Packed: a rate limit as the times to which it is used up."""
    return f"{_PREFIX}:{{{api}}}:bucket:{name}:{sharer}"


def seats(api: str, name: str, sharer: str) -> str:
    """Sorted set: the calls in flight, by the end of their lease."""
    return f"{_PREFIX}:{{{api}}}:seats:{name}:{sharer}"


def window(api: str, name: str, sharer: str) -> str:
    """Packed: what is used of a window or a budget, and of which."""
    return f"{_PREFIX}:{{{api}}}:window:{name}:{sharer}"


def gate(api: str, sharer: str) -> str:
    """Packed: until when the server wants to hear nothing from this sharer."""
    return f"{_PREFIX}:{{{api}}}:gate:{sharer}"


def ticket(api: str, id_: str) -> str:
    """Hash: the slots reserved for one waiting call."""
    return f"{_PREFIX}:{{{api}}}:ticket:{id_}"


def retries(api: str, name: str) -> str:
    """String: until when a budget of retries is used up."""
    return f"{_PREFIX}:{{{api}}}:retries:{name}"


def since(api: str) -> str:
    """String: since when this store knows about every call to the API, in the layout of today."""
    return f"{_PREFIX}:{{{api}}}:since:{_LAYOUT}"


def restored(api: str) -> str:
    """String: this store was told what outlives it, in the layout of today."""
    return f"{_PREFIX}:{{{api}}}:restored:{_LAYOUT}"
