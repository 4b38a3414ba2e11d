"""`penstock new`: what it writes works as it is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tasks.collectors.registry import load
from tasks.models import records
from workers.cli import main

from .conftest import connect

DATABASES = ("sqlite",)
ROOT = Path(__file__).parents[2]
FILES = ["shop.py", "test_shop.py", "upstream_shop.py"]
FORMS = pytest.mark.parametrize("form", [[], ["--class"]], ids=["declaration", "class"])


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Call it in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield lambda *arguments: CliRunner().invoke(main, ["new", *arguments])
    sys.modules.pop("shop", None)


def tool(*command, cwd):
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False
    )


@FORMS
def test_its_own_test_passes(write, tmp_path, form):
    """As plain pytest runs it; linters have nothing to say, either."""
    done = write("shop", *form)
    assert done.exit_code == 0, done.output
    assert done.output.startswith("shop.py, test_shop.py, upstream_shop.py are written. Next:\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    ran = tool("pytest", "-q", "-p", "no:cacheprovider", "-W", "error", "test_shop.py", cwd=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "3 passed" in ran.stdout
    for command in (
        (
            "check",
            "--isolated",
            "--select",
            "E,F,I,B,UP,SIM,ANN,D1",
            "--ignore",
            "D102,D103,D105,D107,ANN401",
            "--line-length",
            "110",
        ),
        ("format", "--isolated", "--check", "--line-length", "88"),
    ):
        linted = tool("ruff", *command, ".", cwd=tmp_path)
        assert linted.returncode == 0, linted.stdout + linted.stderr


def test_types(write, tmp_path):
    """With those of Penstock."""
    write("shop")
    write("stall", "--class")
    files = [f"{kind}{name}.py" for kind in ("", "test_", "upstream_") for name in ("shop", "stall")]
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--cache-dir", "cache", *files],
        cwd=tmp_path, env={"MYPYPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


@FORMS
def test_it_collects_from_its_stand_in(write, tmp_path, form, fleet, inbox):
    """All 250 items in three pages, and `penstock collectors` knows it."""
    write("shop", *form)
    server = subprocess.Popen(
        [sys.executable, "upstream_shop.py", "0"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    try:
        url = server.stdout.readline().split()[-1]
        fleet.configure({"shop": {"base_url": url}}, PENSTOCK_COLLECTORS="shop:shop", SHOP_TOKEN="any")
        connect(inbox.app)
        listed = json.loads(CliRunner().invoke(main, ["collectors", "--json"]).output)
        endpoint = listed[0]["endpoint"]
        assert endpoint == ("shop.collect" if form else "shop.items")
        fleet.run(endpoint, None)
        assert inbox.drain("collect.shop") == [("SUCCESS", {"unit": 0, "outcome": "stored", "records": 250})]
        assert len(fleet.installation.rows(records)) == 250
    finally:
        server.kill()
        server.wait()
        server.stdout.close()


def test_nothing_is_overwritten(write, tmp_path):
    """Not even one of the three; the others are not written either."""
    (tmp_path / "test_shop.py").write_text("mine")
    done = write("shop")
    assert done.exit_code == 2
    assert "test_shop.py is there already" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["test_shop.py"]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Shop", "small letters"),
        ("../shop", "small letters"),
        ("class", "a word of Python"),
        ("binance", "there is a collector 'binance' already"),
        ("json", "would hide a module"),
        ("requests", "would hide a module"),
        ("colorsys", "would hide a module"),
    ],
)
def test_names_that_will_not_do(write, tmp_path, name, said):
    """One sentence, and nothing is written."""
    done = write(name)
    assert done.exit_code == 2
    assert said in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_takes_no_files(write, tmp_path):
    """One sentence, too."""
    (tmp_path / "upstream_shop.py").symlink_to(tmp_path / "away" / "nowhere.py")
    done = write("shop")
    assert done.exit_code == 2
    assert "upstream_shop.py" in done.output


def test_longer_names(write):
    """The class is called after it."""
    write("my_shop", "--class")
    api = load(["my_shop:my_shop"], {})["my_shop"]
    assert api.auth.secret == "MY_SHOP_TOKEN"
    assert type(sys.modules["my_shop"].my_shop).__name__ == "MyShopCollector"
    sys.modules.pop("my_shop")
