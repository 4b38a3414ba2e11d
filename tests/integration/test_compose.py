"""docker-compose.yml and Dockerfile, as far as they can be tried without a container engine."""

import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from resilience.errors import ConfigurationError
from tasks.settings import Settings
from workers.children import spawn, stop
from workers.embedded import check_redis, find_binary

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "penstock")
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def interpolated(text, **given):
    """What Compose makes of ${NAME:-default} and ${NAME:?message}."""

    def value(match):
        if given.get(match["name"]):
            return given[match["name"]]
        assert match["sign"] == ":-", f"{match['name']} is required"
        return match["rest"]

    return re.sub(r"\$\{(?P<name>\w+)(?P<sign>:[-?])(?P<rest>[^}]*)\}", value, text)


def penstock(*words):
    command = [sys.executable, "-m", "workers.cli", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


SECRETS = {"REDIS_PASSWORD": "one", "POSTGRES_PASSWORD": "two", "FLOWER_AUTH": "me:three"}


def by_the_specification(path):
    """Look at a file with the schema of the Compose specification, which check-jsonschema brings along."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_file_follows_the_specification(tmp_path):
    """By its own schema, which finds a word that Compose does not know, and a value of the wrong kind."""
    done = by_the_specification(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout
    for name, value in {"healtcheck": {}, "stop_grace_period": 60, "depends_on": {"redis": {}}}.items():
        wrong = COMPOSE | {"services": SERVICES | {"worker": SERVICES["worker"] | {name: value}}}
        (tmp_path / "wrong.yml").write_text(yaml.safe_dump(wrong))
        done = by_the_specification(tmp_path / "wrong.yml")
        assert done.returncode == 1
        assert "services.worker" in done.stdout


def test_services():
    """Two servers, one migration, three kinds of process and Flower; any but what has a port may be there twice."""
    assert set(SERVICES) == {"redis", "postgres", "migrate", "worker", "ctl", "beat", "flower"}
    assert OURS == ["beat", "ctl", "flower", "migrate", "worker"]
    assert not [name for name in OURS if {"container_name", "hostname"} & SERVICES[name].keys()]
    assert [name for name in OURS if "ports" in SERVICES[name]] == ["flower"]
    for service in SERVICES.values():
        assert set(service.get("depends_on", ())) <= set(SERVICES)
        named = (volume.partition(":")[0] for volume in service.get("volumes", ()))
        assert all(volume.startswith("./") or volume in COMPOSE["volumes"] for volume in named)


@pytest.mark.parametrize("name", OURS)
def test_command_exists(name):
    """Each is understood by the real command."""
    program, *words = SERVICES[name]["command"]
    assert program == "penstock"
    done = penstock(*words, "--help")
    assert (done.returncode, done.stdout.split()[0]) == (0, "Usage:"), done.stderr


@pytest.mark.parametrize("name", OURS)
def test_environment_is_understood(name, monkeypatch):
    """Every variable is a setting that exists, with a value that it takes; without passwords nothing starts."""
    for variable, text in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, interpolated(text, **SECRETS))
    settings = Settings()
    assert settings.redis == "redis://:one@redis:6379/0"
    assert settings.database == "postgresql+psycopg://penstock:two@postgres:5432/penstock"
    assert (settings.collectors, settings.concurrency, settings.ip_name) == ((), 4, "compose")
    given = settings.flower_auth
    assert (given and given.get_secret_value()) == ("me:three" if name == "flower" else None)
    for missing in SECRETS if name == "flower" else ["REDIS_PASSWORD", "POSTGRES_PASSWORD"]:
        with pytest.raises(AssertionError, match=f"{missing} is required"):
            [interpolated(t, **SECRETS | {missing: ""}) for t in SERVICES[name]["environment"].values()]


def test_stop_leaves_time():
    """A worker that was told to stop may finish its slice."""
    for name in OURS:
        assert float(SERVICES[name]["stop_grace_period"].removesuffix("s")) > Settings().slice_s


@pytest.mark.parametrize("name", ["worker", "ctl", "beat", "flower"])
def test_health_is_progress(name):
    """Asked for by our own command, of the same part as the service runs; a look has the time it takes."""
    health = SERVICES[name]["healthcheck"]
    assert health["test"] == ["CMD", "penstock", "health", f"--{name}"]
    done = penstock(*health["test"][2:], "--help")
    assert (done.returncode, done.stdout.split()[0]) == (0, "Usage:"), done.stderr
    assert float(health["timeout"].removesuffix("s")) >= 20
    assert float(health["start_period"].removesuffix("s")) >= Settings().late_after_s


def test_what_is_required_is_required_everywhere():
    """A start without a secret names it: Compose itself does so, wherever none of them may be empty."""
    text = (ROOT / "docker-compose.yml").read_text()
    written = re.findall(r"\$\{(\w+)([^}]*)\}", text)
    assert {name for name, rest in written if rest.startswith(":?")} == set(SECRETS)
    assert not [name for name, rest in written if name in SECRETS and not re.match(r":\?\w", rest)]
    assert not re.search(r"\$(?!\{)", text), "nothing is filled in without braces"


def test_nobody_is_root_or_has_more_than_it_needs():
    """The image's user is the one that runs; no service asks for rights of the host."""
    asked = {"privileged", "user", "cap_add", "network_mode", "pid", "devices"}
    assert not [name for name in OURS if asked & SERVICES[name].keys()]
    (user,) = re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)
    assert int(user) > 0


def test_ports_are_on_loopback():
    """Nothing is offered to the network."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert ports
    assert all(str(port).startswith("127.0.0.1:") for port in ports)


def test_redis_as_configured_is_accepted(tmp_path, missing_server):
    """Its very command, started: persistent, with a password, and never evicting."""
    try:
        binary = find_binary()
    except ConfigurationError as error:
        missing_server("redis", str(error))
    program, *words = (interpolated(word, **SECRETS) for word in SERVICES["redis"]["command"])
    assert program == "redis-server"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with (tmp_path / "log").open("wb") as output:
        server = spawn((str(binary), *words, "--port", port, "--dir", str(tmp_path)), output=output)
    try:
        deadline = time.monotonic() + 20
        while True:
            try:
                check_redis(f"redis://:one@127.0.0.1:{port}/0")
                break
            except ConfigurationError:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
        with pytest.raises(ConfigurationError):
            check_redis(f"redis://127.0.0.1:{port}/0")
    finally:
        stop(server, 5)
    assert list(tmp_path.rglob("*.aof")), "it keeps what it is told"


def test_image_has_what_the_wheel_needs():
    """Every file that is copied exists and reaches the engine; the pins are pins."""
    copied = [
        word for line in re.findall(r"^COPY (.*)", DOCKERFILE, re.MULTILINE) for word in line.split()[:-1]
    ]
    allowed = (ROOT / ".dockerignore").read_text().split()
    assert {f"!{name}" for name in copied} == {line for line in allowed if line.startswith("!")}
    assert all((ROOT / name).exists() for name in copied)
    (script,) = re.findall(r"RUN (sed .*?) > ", DOCKERFILE)
    pins = subprocess.run(script, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = [
        Requirement(line) for line in pins.splitlines() if line.strip() and not line.strip().startswith("#")
    ]
    assert len(found) > 30
    assert all(len(each.specifier) == 1 and str(each.specifier).startswith("==") for each in found)
