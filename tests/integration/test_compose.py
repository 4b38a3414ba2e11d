"""docker-compose.yml and Dockerfile, as far as they can be tried without a container engine."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis
import yaml
from packaging.requirements import Requirement

from resilience.errors import ConfigurationError
from tasks.settings import Settings
from workers import embedded
from workers.children import kill, spawn, stop
from workers.embedded import check_redis, find_binary

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if service["image"] == "penstock")
DOCKERFILE = (ROOT / "Dockerfile").read_text()
SECRETS = {"REDIS_PASSWORD": "one", "POSTGRES_PASSWORD": "two", "PENSTOCK_FLOWER_AUTH": "me:three"}
PATIENT_S = 90.0  # how long is waited for what takes seconds on a machine that is not busy


def interpolated(text, **given):
    """What Compose makes of ${NAME:-default} and ${NAME:?message}."""

    def value(match):
        if given.get(match["name"]):
            return given[match["name"]]
        assert match["sign"] == ":-", f"{match['name']} is required"
        return match["rest"]

    return re.sub(r"\$\{(?P<name>\w+)(?P<sign>:[-?])(?P<rest>[^}]*)\}", value, text)


def seconds(text):
    return float(text.removesuffix("s"))


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
def test_environment_is_understood(name, monkeypatch):
    """Every variable is a setting that exists, an empty one counts for nothing; without passwords nothing starts."""
    unset = Settings()
    for variable, text in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, interpolated(text, **SECRETS))
    settings = Settings()
    assert settings.redis == "redis://:one@redis:6379/0"
    assert settings.database == "postgresql+psycopg://penstock:two@postgres:5432/penstock"
    assert settings.ip_name == "compose"
    given = settings.flower_auth
    assert (given and given.get_secret_value()) == ("me:three" if name == "flower" else None)
    changed = {field for field in Settings.model_fields if getattr(settings, field) != getattr(unset, field)}
    assert changed - {"flower_auth"} == {"redis_url", "database_url", "state_dir", "ip_name"}
    for missing in SECRETS if name == "flower" else ["REDIS_PASSWORD", "POSTGRES_PASSWORD"]:
        with pytest.raises(AssertionError, match=f"{missing} is required"):
            [interpolated(t, **SECRETS | {missing: ""}) for t in SERVICES[name]["environment"].values()]


def test_example_has_what_compose_reads():
    """Its copy needs nothing but the required ones filled in; what is commented out says the true default."""
    example = (ROOT / ".env.example").read_text()
    offered = {
        name: (sign, value) for sign, name, value in re.findall(r"^(#?)(\w+)=(.*)$", example, re.MULTILINE)
    }
    written = re.findall(r"\$\{(\w+):([-?])([^}]*)\}", (ROOT / "docker-compose.yml").read_text())
    assert {name for name, _, _ in written} <= offered.keys()
    assert {name for name, sign, _ in written if sign == "?"} == {
        name for name, (sign, _) in offered.items() if not sign
    }
    ports = {name: value for name, _, value in written if name.endswith("_PORT")}
    assert {name: offered[name] for name in ports} == {name: ("#", value) for name, value in ports.items()}
    assert len(ports) == 2


@pytest.mark.parametrize("name", OURS)
def test_what_the_example_offers_reaches_the_containers(name):
    """Each setting and secret that can be filled in does, but those that Compose decides."""
    example = (ROOT / ".env.example").read_text()
    offered = set(re.findall(r"^#?((?:PENSTOCK|ASANA)_\w+)=", example, re.MULTILINE))
    environment = SERVICES[name]["environment"]
    passed = {
        variable
        for variable, text in environment.items()
        if interpolated(text, **SECRETS | {variable: "given"}) == "given"
    }
    decided = {"PENSTOCK_REDIS_URL", "PENSTOCK_DATABASE_URL", "PENSTOCK_STATE_DIR"}
    assert environment.keys() - passed == decided
    assert offered - passed == decided | (set() if name == "flower" else {"PENSTOCK_FLOWER_AUTH"})


def test_stop_leaves_time():
    """A worker that was told to stop may finish its slice."""
    for name in OURS:
        assert seconds(SERVICES[name]["stop_grace_period"]) > Settings().slice_s


@pytest.mark.parametrize("name", ["worker", "ctl", "beat", "flower"])
def test_health_is_progress(name):
    """Asked for by our own command, of the same part as the service runs; a look has the time it takes."""
    health = SERVICES[name]["healthcheck"]
    assert health["test"] == ["CMD", "penstock", "health", f"--{name}"]
    assert seconds(health["timeout"]) >= 20
    assert seconds(health["start_period"]) >= Settings().late_after_s


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


@pytest.fixture
def composed_redis(tmp_path, missing_server):
    """Redis by its very command, on a port and in a directory of this test's own; its URL."""
    try:
        binary = find_binary()
    except ConfigurationError as error:
        missing_server("redis", str(error))
    program, *words = (interpolated(word, **SECRETS) for word in SERVICES["redis"]["command"])
    assert program == "redis-server"
    port = str(embedded._free_port())
    data = tmp_path / "redis"
    data.mkdir()
    own = ("--bind", "127.0.0.1", "--port", port, "--dir", str(data))
    with (tmp_path / "redis.log").open("wb") as output:
        server = spawn((str(binary), *words, *own), output=output)
    try:
        url = f"redis://:one@127.0.0.1:{port}/0"
        await_redis(url, tmp_path / "redis.log")
        yield url
    finally:
        stop(server, 5)
    assert list(data.rglob("*.aof")), "it keeps what it is told"


def await_redis(url, log):
    deadline = time.monotonic() + PATIENT_S
    while True:
        try:
            return check_redis(url)
        except ConfigurationError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


def test_redis_as_configured_is_accepted(composed_redis):
    """Its very command, started: persistent, with a password, never evicting, and patient with Flower."""
    with pytest.raises(ConfigurationError):
        check_redis(composed_redis.replace(":one@", ""))
    with redis.Redis.from_url(composed_redis, decode_responses=True) as client:
        said = client.config_get("client-output-buffer-limit")["client-output-buffer-limit"]
    assert f"pubsub {128 << 20} {64 << 20} 60" in said


def port_of(log):
    """Where Flower says that it listens; before it does, a port on which nobody answers."""
    found = re.search(r"^Flower: http://127\.0\.0\.1:(\d+)", log.read_text(), re.MULTILINE)
    return found[1] if found else "1"


class Container:
    """A service as a process: command, variables and health check from the file, its addresses this test's own."""

    def __init__(self, name, folder, private, *words):
        service = SERVICES[name]
        self.name, self.log, self.process = name, folder / f"{name}.log", None
        self.command, self.check = [*service["command"], *words], service.get("healthcheck", {}).get("test")
        self.grace_s = seconds(service["stop_grace_period"])
        self.folder = folder / "config"
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
            **{variable: interpolated(text, **SECRETS) for variable, text in service["environment"].items()},
            **private,
        }

    def start(self):
        with self.log.open("wb") as output:
            self.process = spawn(("env", "-C", str(self.folder), *self.command), env=self.env, output=output)

    def run(self, command):
        """A command inside it, to its end: status and words."""
        done = subprocess.run(
            command,
            check=False,
            cwd=self.folder,
            env=self.env,
            capture_output=True,
            text=True,
            timeout=PATIENT_S,
        )
        return done.returncode, done.stdout + done.stderr

    def health(self):
        """What its check says, run as it is written; Flower's is told the port."""
        kind, *command = self.check
        assert kind == "CMD"
        return self.run([*command, *(("--port", port_of(self.log)) if self.name == "flower" else ())])

    def end(self):
        """Its exit status, once it was told to stop."""
        try:
            return self.process.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            return None


def await_health(containers):
    """Until the check of each finds it well; none may end meanwhile."""
    deadline = time.monotonic() + PATIENT_S
    for container in containers:
        while (found := container.health())[0]:
            assert all(each.process.poll() is None for each in containers), logs(containers)
            assert time.monotonic() < deadline, f"{container.name}: {found[1]}{logs(containers)}"
            time.sleep(0.5)


def logs(containers):
    return "".join(f"\n--- {each.name}\n{each.log.read_text()[-2000:]}" for each in containers)


def test_services_run_get_well_and_end(tmp_path, composed_redis, postgres_url):
    """Each by its command; its health check, which has found nothing before, finds it well; SIGTERM ends it with 0."""
    (tmp_path / "config").mkdir()
    private = {
        "PENSTOCK_REDIS_URL": composed_redis,
        "PENSTOCK_DATABASE_URL": postgres_url,
        "PENSTOCK_STATE_DIR": str(tmp_path / "state"),
    }
    migrate = Container("migrate", tmp_path, private)
    status, said = migrate.run(migrate.command)
    assert status == 0, said
    assert "has schema" in said
    address = {"flower": ("--address", "127.0.0.1", "--port", "0")}
    containers = [
        Container(name, tmp_path, private, *address.get(name, ())) for name in OURS if name != "migrate"
    ]
    for container in containers:
        container.log.touch()
        assert container.health()[0] == 1
    try:
        for container in containers:
            container.start()
        await_health(containers)
        for container in containers:
            container.process.terminate()
        ended = {container.name: container.end() for container in containers}
    finally:
        for container in containers:
            if container.process:
                kill(container.process)
    assert ended == dict.fromkeys(ended, 0), logs(containers)
    assert set(ended) == {"worker", "ctl", "beat", "flower"}
    assert not list((tmp_path / "config").iterdir()), "it is read-only"


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
