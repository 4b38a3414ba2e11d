"""Circuits by command: kept in SQL, told to Redis, and told again when it has forgotten."""

import json
from datetime import UTC, datetime, timedelta

import pytest
import redis
from click.testing import CliRunner

from resilience.errors import ConfigurationError, StoreUnavailableError
from resilience.guard import Ask, CircuitState, Go, Refuse
from tasks import circuits
from tasks.circuits import force, forced, lift
from tasks.collectors.registry import endpoint_of
from tasks.events import catch_up
from tasks.limits import circuit_of, guard
from tasks.models import events, overrides
from workers import cli

NAME = "binance.klines"
WORDS = {"by": "ada", "why": "the provider has maintenance"}
AWAY = "redis://127.0.0.1:1/0"


def penstock(*words):
    return CliRunner().invoke(cli.main, list(words))


def breaker():
    return circuit_of(endpoint_of(NAME))


def admitted():
    return guard().admit(Ask("binance", (breaker(),), ()))


def find(name):
    return circuit_of(endpoint_of(name))


@pytest.fixture
def client(installation, redis_url):
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def test_a_lost_redis_forgets_no_forced_circuit(client):
    """The first call after FLUSHALL is refused, and the circuit says again who forced it and why."""
    force(breaker(), CircuitState.FORCED_OPEN, **WORDS)
    assert isinstance(admitted(), Refuse)
    client.flushall()
    assert admitted().reason == "forced_open"
    told = breaker().get_status()["forced"]
    assert (told["by"], told["why"], told["until_at"]) == ("ada", "the provider has maintenance", None)


def test_a_lost_redis_shows_forced_circuits(client):
    """Also who only looks sees it; waves are planned by that."""
    force(breaker(), CircuitState.DISABLED, **WORDS)
    client.flushall()
    assert breaker().current_state == "disabled"


def test_what_was_lifted_stays_lifted(client):
    """However often Redis is lost."""
    force(breaker(), CircuitState.FORCED_OPEN, **WORDS)
    assert lift(breaker(), by="bob", why="it is over")
    assert not lift(breaker(), by="bob", why="it is over")
    client.flushall()
    assert isinstance(admitted(), Go)
    assert forced() == {}


def test_an_override_ends_by_itself(installation):
    """In Redis at its time, and what is over is not recalled."""
    force(breaker(), CircuitState.FORCED_OPEN, **WORDS, until=datetime.now(UTC) + timedelta(days=1))
    assert admitted().retry_at > datetime.now(UTC) + timedelta(hours=23)
    installation.change(overrides, until_at=datetime.now(UTC) - timedelta(seconds=1))
    assert forced() == {}
    assert circuits.recall("binance", NAME) is None


def test_forced_while_redis_is_away(installation, redis_url):
    """It is kept, and the reconciler tells Redis when it is back; lifting waits for Redis."""
    assert isinstance(admitted(), Go)
    installation.configure(PENSTOCK_REDIS_URL=AWAY)
    with pytest.raises(StoreUnavailableError):
        force(breaker(), CircuitState.FORCED_OPEN, **WORDS)
    with pytest.raises(StoreUnavailableError):
        lift(breaker(), by="bob", why="it is over")
    installation.configure(PENSTOCK_REDIS_URL=redis_url)
    # Redis has lost nothing: it knows the circuit, and knows nothing of the command.
    assert isinstance(admitted(), Go)
    assert circuits.enforce(find) == 1
    assert circuits.enforce(find) == 0
    assert isinstance(admitted(), Refuse)


def test_lifted_while_it_is_forced_again(installation, monkeypatch):
    """The reconciler had read the row before somebody lifted it: the circuit ends closed."""
    force(breaker(), CircuitState.FORCED_OPEN, **WORDS)
    breaker().half_open()
    rows = forced()
    lift(breaker(), by="bob", why="it is over")
    read = iter([rows, {}])
    monkeypatch.setattr(circuits, "forced", lambda: next(read))
    assert circuits.enforce(find) == 0
    assert breaker().current_state == "closed"


def test_transitions_say_who_and_why(installation):
    """In the events table, once each, also after the reconciler has read the stream that has them too."""
    force(breaker(), CircuitState.FORCED_OPEN, **WORDS)
    lift(breaker(), by="bob", why="it is over")
    assert catch_up(guard().store, ["binance"]) == 0
    told = [row["detail"] for row in installation.rows(events) if row["kind"] == "circuit"]
    assert told == [
        {"old": "closed", "new": "forced_open", "actor": "ada", "reason": "the provider has maintenance"},
        {"old": "forced_open", "new": "closed", "actor": "bob", "reason": "it is over"},
    ]


def test_nothing_is_kept_of_a_refused_command(installation):
    """An empty reason, for one."""
    with pytest.raises(ConfigurationError):
        force(breaker(), CircuitState.FORCED_OPEN, by="ada", why="")
    assert forced() == {}


def test_circuits_by_command(installation):
    """Opened, seen, reset; as a table and as JSON."""
    done = penstock(
        "circuits", "open", NAME, "--by", "ada", "--why", "an audit", "--until", "2999-01-31T12:00"
    )
    assert (done.exit_code, done.stdout) == (
        0,
        "circuit binance.klines is forced open until 2999-01-31 12:00 UTC\n",
    )
    facts = {each["circuit"]: each for each in json.loads(penstock("circuits", "--json").stdout)}
    assert set(facts) == {"binance.klines", "coinbase.candles", "asana.tasks", "asana.projects"}
    assert facts[NAME]["state"] == "forced_open"
    assert facts[NAME]["retry_at"] == "2999-01-31T12:00:00Z"
    assert facts[NAME]["forced"]["why"] == "an audit"
    table = penstock("circuits").stdout
    assert "ada: an audit" in table
    assert "2999-01-31 12:00:00" in table
    done = penstock("circuits", "disable", NAME, "--why", "it errs")
    assert done.stdout == "circuit binance.klines is disabled until it is reset\n"
    done = penstock("circuits", "reset", NAME, "--why", "it is over")
    assert done.stdout == "circuit binance.klines is closed and no longer forced\n"
    assert (
        penstock("circuits", "reset", NAME, "--why", "again").stdout == "circuit binance.klines is closed\n"
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["open", "binance.kline", "--why", "x"], "did you mean klines?"),
        (["open", NAME], "Missing option '--why'"),
        (["open", NAME, "--why", "x", "--until", "2020-01-01"], "'2020-01-01' is over"),
        (["disable", NAME, "--why", " "], "why= takes 1 … 200 letters"),
    ],
)
def test_commands_that_cannot_be(installation, words, sentence):
    """One sentence, status 2, and nothing is kept."""
    result = penstock("circuits", *words)
    assert result.exit_code == 2
    assert sentence in result.stderr
    assert forced() == {}


def test_collectors_are_shown_without_a_database(installation, tmp_path):
    """What is forced cannot be known then, and none is made by looking."""
    installation.configure(PENSTOCK_DATABASE_URL=f"sqlite:///{tmp_path / 'none.db'}")
    result = penstock("collectors", "--json")
    assert result.exit_code == 0
    assert {each["circuit"] for each in json.loads(result.stdout)} == {None}
    assert not (tmp_path / "none.db").exists()


def test_a_command_while_redis_is_away(installation):
    """It says when it takes effect."""
    installation.configure(PENSTOCK_REDIS_URL=AWAY)
    result = penstock("circuits", "open", NAME, "--why", "an audit")
    assert result.exit_code == 0
    assert "it is kept, and a ctl worker tells Redis when it is back" in result.stderr
    assert penstock("circuits", "reset", NAME, "--why", "over").exit_code == 2
    assert list(forced()) == [NAME]
