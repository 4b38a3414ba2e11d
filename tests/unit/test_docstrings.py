"""What a reader of `help()` finds."""

import importlib
import pkgutil

import pytest

import resilience

MODULES = sorted(each.name for each in pkgutil.walk_packages(resilience.__path__, "resilience."))


def public_classes(module):
    """The classes that a module makes."""
    return {
        name: each
        for name, each in vars(module).items()
        if isinstance(each, type) and each.__module__ == module.__name__ and not name.startswith("_")
    }


@pytest.mark.parametrize("name", MODULES)
def test_public_classes_say_what_they_are(name):
    """In a sentence of their own: neither one inherited nor the signature that a dataclass gets."""
    classes = public_classes(importlib.import_module(name)).items()
    silent = [each for each, made in classes if not said_by(made)]
    assert not silent


def said_by(made):
    """A class's own docstring; a dataclass or NamedTuple without one has its signature there."""
    said = vars(made).get("__doc__") or ""
    return said if not said.startswith(f"{made.__name__}(") else ""


def test_all_modules_are_looked_at():
    """Packages inside of it, too."""
    assert {"resilience.breaker", "resilience.store.redis", "resilience.tiers"} <= set(MODULES)
