"""`penstock new`: a collector to start from, its test, and a stand-in for its API."""

import sys
from importlib.resources import files
from importlib.util import find_spec
from keyword import iskeyword
from pathlib import Path
from string import Template

import click

from workers.command import Sentence

# What is written, and from which template.
DECLARATION = {
    "$name.py": "declaration",
    "test_$name.py": "declaration_test",
    "upstream_$name.py": "upstream",
}
CLASS = DECLARATION | {"$name.py": "class", "test_$name.py": "class_test"}


@click.command()
@click.argument("name")
@click.option("--class", "as_class", is_flag=True, help="A class in place of a declaration.")
def new(name: str, *, as_class: bool) -> None:
    """Write a collector to start from: NAME.py, test_NAME.py and upstream_NAME.py, a small fake API.

    They go into the current directory, and nothing is overwritten. As written, the test passes and the
    collector collects from the fake API.
    """
    _check(name)
    words = {"name": name, "class": _class_of(name), "secret": name.upper()}
    texts = {
        Path(Template(path).substitute(words)): Template(_template(template)).substitute(words)
        for path, template in (CLASS if as_class else DECLARATION).items()
    }
    if there := [str(path) for path in texts if path.exists()]:
        raise Sentence(f"{', '.join(there)} is there already; take another name, or move it away")
    try:
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
    except OSError as error:
        raise Sentence(f"{error.filename} cannot be written: {error.strerror}") from error
    click.echo(f"""{", ".join(map(str, texts))} are written. Next:

  pytest test_{name}.py
  python upstream_{name}.py &
  export PENSTOCK_COLLECTORS={name}:{name} {name.upper()}_TOKEN=any
  penstock up &
  penstock run {name}""")


def _check(name: str) -> None:
    """A name of a collector that is one of a module, too, and of none that is there."""
    from resilience.errors import ConfigurationError
    from tasks.collectors import checks
    from tasks.collectors.registry import known

    try:
        checks.name(name, "a collector")
    except ConfigurationError as error:
        raise Sentence(str(error)) from error
    if iskeyword(name):
        raise Sentence(f"{name!r} is a word of Python; take another name")
    if name in known():
        raise Sentence(f"there is a collector {name!r} already; take another name")
    here = Path(f"{name}.py").resolve()
    found = None if name in sys.modules else find_spec(name)
    if name in sys.modules or (
        found is not None and (not found.origin or Path(found.origin).resolve() != here)
    ):
        raise Sentence(f"{name!r} would hide a module of that name; take another name")


def _class_of(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_")) + "Collector"


def _template(name: str) -> str:
    return (files("workers") / "templates" / f"{name}.txt").read_text(encoding="utf-8")
