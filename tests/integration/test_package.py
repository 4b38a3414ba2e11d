"""The wheel: what is in it, and that it works where there is no checkout."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "resilience", "tasks", "workers", "migrations", "tests")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that what an earlier build left behind cannot slip in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def names(wheel):
    return set(zipfile.ZipFile(wheel).namelist())


def in_tree(package, *endings):
    return {
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*")
        if path.suffix in endings and "__pycache__" not in path.parts
    }


@pytest.mark.parametrize("package", ["resilience", "tasks", "workers", "migrations"])
def test_every_module_is_there(names, package):
    """With the Lua scripts and the migrations, which are read as files."""
    expected = in_tree(package, ".py", ".lua", ".mako", ".typed", ".txt")
    assert expected
    assert expected <= names


def test_files_that_are_read_at_run_time(names):
    """By name, since a rule that matches nothing is silent."""
    assert {"resilience/store/lua/admit.lua", "migrations/versions/0001_initial.py"} <= names
    assert {f"{package}/py.typed" for package in ("resilience", "tasks", "workers")} <= names


def test_nothing_else_is_there(names):
    """No tests, no caches, nothing of the developer's."""
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {
        "resilience",
        "tasks",
        "workers",
        "migrations",
    }
    assert not [name for name in names if "/test_" in name or "tests/" in name or "__pycache__" in name]


def test_metadata(wheel):
    """The command, the collectors, the licence."""
    (found,) = importlib.metadata.distributions(path=[str(wheel)])
    points = {(point.group, point.name): point.value for point in found.entry_points}
    assert points["console_scripts", "penstock"] == "workers.cli:main"
    for name in ("binance", "coinbase", "asana"):
        assert points["penstock.collectors", name] == f"tasks.collectors.{name}:{name}"
    assert found.metadata["License-Expression"] == "Apache-2.0"
    assert "Apache License" in found.read_text("licenses/LICENSE")
    assert found.metadata["Requires-Python"] == ">=3.11"


def test_installed_wheel_works_alone(wheel, tmp_path):
    """From an empty directory, with the checkout out of sight."""
    target, here = tmp_path / "target", tmp_path / "here"
    here.mkdir()
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(wheel)], check=True, timeout=120)
    env = {**os.environ, "PYTHONPATH": str(target), "PENSTOCK_STATE_DIR": str(here / "state")}

    def say(*words):
        done = subprocess.run(
            words, cwd=here, env=env, capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    penstock = str(target / "bin" / "penstock")
    origin = say(sys.executable, "-c", "import tasks, migrations; print(tasks.__file__, migrations.__file__)")
    assert origin.split() == [str(target / "tasks/__init__.py"), str(target / "migrations/__init__.py")]
    assert "Usage: penstock" in say(penstock, "--help")
    assert "0002" in say(penstock, "db", "upgrade")
    assert (here / "state" / "penstock.db").exists()
    assert "binance.klines" in say(penstock, "collectors", "--json")
