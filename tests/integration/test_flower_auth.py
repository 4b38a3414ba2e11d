"""Flower's password: made once, for its owner only, and told by its place."""

import subprocess
import sys
from pathlib import Path

import pytest

from resilience.errors import ConfigurationError
from tasks.settings import Settings
from workers.flower_auth import flower_auth

ROOT = Path(__file__).parents[2]
MAKE = """
import sys
from tasks.settings import Settings
from workers.flower_auth import flower_auth
sys.stdin.read()
print(flower_auth(Settings()).password)
"""


def test_given_credentials_are_taken(tmp_path):
    """And nothing is written."""
    auth = flower_auth(Settings(state_dir=tmp_path, flower_auth="me:one:two"))
    assert (auth.user, auth.password) == ("me", "one:two")
    assert auth.told == "user me, password in PENSTOCK_FLOWER_AUTH"
    assert list(tmp_path.iterdir()) == []


def test_credentials_are_made_once(tmp_path):
    """Nobody but the owner may read them, wherever they come up."""
    state = tmp_path / "new"
    auth = flower_auth(Settings(state_dir=state))
    (path,) = state.iterdir()
    assert path.read_text() == f"{auth.user}:{auth.password}\n"
    assert len(auth.password) >= 24
    assert path.stat().st_mode & 0o777 == 0o600
    assert state.stat().st_mode & 0o777 == 0o700
    assert auth.told == f"user penstock, password in {path}"
    assert auth.password not in f"{auth!r} {auth.told}"
    assert flower_auth(Settings(state_dir=state)) == auth
    assert flower_auth(Settings(state_dir=tmp_path / "other")).password != auth.password


def test_two_at_once_agree(tmp_path):
    """The second takes what the first has made."""
    env = {"PENSTOCK_STATE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", MAKE], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for maker in makers:
        maker.stdin.close()
    made = {maker.stdout.read().strip() for maker in makers}
    for maker in makers:
        maker.stdout.close()
        assert maker.wait(30) == 0
    assert len(made) == 1
    assert made == {flower_auth(Settings(state_dir=tmp_path)).password}
    assert [path.name for path in tmp_path.iterdir()] == ["flower.auth"]


@pytest.mark.parametrize("text", ["", "password", "penstock:", "a:b\nc:d"])
def test_broken_file_is_told(tmp_path, text):
    """Without showing what it holds."""
    path = tmp_path / "flower.auth"
    path.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        flower_auth(Settings(state_dir=tmp_path))
    assert str(caught.value) == f"{path} holds no user:password; remove it, and a new one is made"


def test_impossible_directory_is_told(tmp_path):
    """In one sentence."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigurationError, match=r"flower.auth cannot hold .* password: Not a directory"):
        flower_auth(Settings(state_dir=tmp_path / "file" / "state"))
