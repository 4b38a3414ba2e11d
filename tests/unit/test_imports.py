"""Who may import whom; see the package directions in docs/concepts.md."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("resilience", "tasks", "workers", "migrations")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# Which of our packages, or parts of them, each may import beside itself.
ALLOWED = {
    "resilience": (),
    "tasks": ("resilience",),
    "workers": ("tasks", "resilience"),
    "migrations": ("tasks.data", "tasks.models", "tasks.settings", "tasks.store"),
}
# The schema's own keeper: `penstock db upgrade` has to know where the scripts are.
EXCEPTIONS = {"tasks/schema.py": {"migrations"}}

HEAVY = {"celery", "kombu", "billiard", "requests", "urllib3", "sqlalchemy", "alembic", "flower"}

# Each reads or hands on the environment for a reason of its own; all others ask tasks/settings.py.
ENVIRON = {
    "tasks/settings.py": "the one reader",
    "workers/cli.py": "tells Celery's children what kind of worker they belong to, and Flower nothing",
    "workers/lifecycle.py": "reads that kind",
}


def name_of(path):
    """The dotted name of a module's file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree, module, *, is_package):
    """Every module that a tree imports, wherever in it; `from a import b` counts as a and as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if is_package and node.level == 1 else -node.level]
            base = ".".join([*(above if node.level else []), *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{each.name}" for each in node.names)


def imports_of(path):
    return set(imported(ast.parse(path.read_text()), name_of(path), is_package=path.stem == "__init__"))


def within(name, prefixes):
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def shown(path):
    return str(path.relative_to(ROOT))


def test_there_is_something_to_look_at():
    """An empty list would pass every test below."""
    assert len(FILES) > 40
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(PACKAGES)


def test_relative_imports_count():
    """Nothing slips through as `from ..tasks import x`."""
    tree = ast.parse("from ..tasks import runs\nfrom . import keys\nimport os.path")
    found = set(imported(tree, "workers.sub.module", is_package=False))
    assert found == {"workers.tasks", "workers.tasks.runs", "workers.sub", "workers.sub.keys", "os.path"}


@pytest.mark.parametrize("path", FILES, ids=shown)
def test_directions(path):
    """Workers know tasks, tasks know resilience, and nobody the other way round."""
    package = path.relative_to(ROOT).parts[0]
    also = EXCEPTIONS.get(shown(path), ())
    ours = {name for name in imports_of(path) if within(name, PACKAGES)}
    whole = {"tasks"} if package == "migrations" else set()  # the `tasks` of `from tasks.models import …`
    assert {name for name in ours if not within(name, (package, *ALLOWED[package], *also))} <= whole


@pytest.mark.parametrize("path", [p for p in FILES if within(name_of(p), ["resilience"])], ids=shown)
def test_resilience_stands_alone(path):
    """No Celery, no HTTP client, no SQL: it can be used without."""
    assert not {name for name in imports_of(path) if within(name, HEAVY)}


@pytest.mark.parametrize("path", [p for p in FILES if within(name_of(p), ["tasks.collectors"])], ids=shown)
def test_collectors_know_tables_and_no_engine(path):
    """A declaration can be imported, read and tested without a queue and without a database."""
    forbidden = {
        "celery",
        "kombu",
        "requests",
        "alembic",
        "psycopg",
        "sqlite3",
        "tasks.store",
        "tasks.schema",
    }
    found = imports_of(path)
    assert not {name for name in found if within(name, forbidden)}
    sql = {name for name in found if within(name, ["sqlalchemy"])}
    assert not sql & {"sqlalchemy.create_engine", "sqlalchemy.Engine", "sqlalchemy.Connection"}
    assert not {
        name for name in sql if within(name, ["sqlalchemy.engine", "sqlalchemy.orm", "sqlalchemy.pool"])
    }


def test_one_module_calls():
    """Whoever wants to call an API goes through the guarded session; a health check asks our own Flower."""
    clients = ["requests", "urllib3", "httpx", "aiohttp", "http.client", "urllib.request"]
    assert {shown(p) for p in FILES if any(within(n, clients) for n in imports_of(p))} == {
        "tasks/http.py",
        "tasks/session.py",  # whose requests tasks/http.py makes
        "workers/health.py",
    }


def test_one_module_reads_the_environment():
    """Every setting has one place where it is checked."""
    found = {
        shown(path)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Attribute) and node.attr in {"environ", "environb", "getenv", "putenv"})
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and {"environ", "getenv"} & {a.name for a in node.names})
    }  # fmt: skip
    assert found == set(ENVIRON)
