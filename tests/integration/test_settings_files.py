"""Files that settings come from: secrets, overrides, and what `penstock up` leaves for other commands."""

import os
import re
import stat
import subprocess
from pathlib import Path

import pytest

from resilience.errors import ConfigurationError
from tasks.runtime import Runtime, started
from tasks.settings import Settings


def runtime(pid, since):
    return Runtime(pid, since, "redis://:pw@h/0", "amqp://u:pw@h", "sqlite:////tmp/x.db")


def test_secret_from_a_file(tmp_path, monkeypatch):
    """As Docker and Kubernetes hand them over, with a line end."""
    path = tmp_path / "token"
    path.write_text("hunter2\n")
    monkeypatch.setenv("ASANA_TOKEN_FILE", str(path))
    assert Settings().secret("ASANA_TOKEN") == "hunter2"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe"])
def test_unusable_secret_file_is_named(tmp_path, monkeypatch, content):
    """Not there, empty, or no text."""
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("ASANA_TOKEN_FILE", str(path))
    with pytest.raises(ConfigurationError, match=f"ASANA_TOKEN is missing: {path}"):
        Settings().secret("ASANA_TOKEN")


def test_named_overrides_have_to_exist(tmp_path):
    """Whoever names a file means it."""
    with pytest.raises(ConfigurationError, match=r"penstock\.toml cannot be read: No such file"):
        _ = Settings(config=tmp_path / "penstock.toml").overrides


def test_overrides_of_the_working_directory(tmp_path, monkeypatch):
    """`penstock.toml` is taken when it is there."""
    monkeypatch.chdir(tmp_path)
    assert Settings().overrides == {}
    (tmp_path / "penstock.toml").write_text("[binance.klines]\nevery = '5m'\n")
    assert Settings().overrides == {"binance": {"klines": {"every": "5m"}}}


def test_running_supervisor_is_found(tmp_path):
    """Other commands need no URL."""
    runtime(os.getpid(), started(os.getpid())).write(tmp_path)
    settings = Settings(state_dir=tmp_path)
    assert (settings.redis, settings.broker) == ("redis://:pw@h/0", "amqp://u:pw@h")
    assert settings.database == "sqlite:////tmp/x.db"
    assert Settings(state_dir=tmp_path, redis_url="redis://own/0").redis == "redis://own/0"


def test_runtime_file_is_private(tmp_path):
    """It holds passwords, and is there in one step."""
    runtime(1, 1).write(tmp_path)
    assert stat.S_IMODE(Runtime.path(tmp_path).stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["runtime.json"]
    assert "pw" not in repr(runtime(1, 1))


def test_recycled_pid_is_not_believed(tmp_path):
    """The same number, another process."""
    runtime(os.getpid(), started(os.getpid()) - 1).write(tmp_path)
    with pytest.raises(ConfigurationError, match="no Redis is known: start `penstock up`"):
        _ = Settings(state_dir=tmp_path).redis


def test_dead_supervisor_is_not_believed(tmp_path):
    """Not even as a zombie."""
    process = subprocess.Popen(["sleep", "60"])
    since = started(process.pid)
    runtime(process.pid, since).write(tmp_path)
    assert Runtime.read(tmp_path)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert Runtime.read(tmp_path) is None
    process.wait()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}', '{"pid": "x", "started": 1}'])
def test_broken_runtime_file_is_none(tmp_path, text):
    """A half-written file misleads nobody."""
    Runtime.path(tmp_path).write_text(text)
    assert Runtime.read(tmp_path) is None


def test_example_lists_every_setting():
    """`.env.example` names them all, with their defaults where a default is a plain number or word."""
    text = (Path(__file__).parents[2] / ".env.example").read_text()
    written = dict(re.findall(r"^#?PENSTOCK_(\w+)=(.*)$", text, re.MULTILINE))
    fields = Settings.model_fields
    assert {name.lower() for name in written} == set(fields)
    for name, field in fields.items():
        if isinstance(field.default, int | float):
            assert float(written[name.upper()]) == field.default
