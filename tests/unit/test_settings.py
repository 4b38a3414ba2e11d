"""Settings: what they are without a word, how a wrong one is told, and what never shows."""

import socket
from datetime import timedelta

import pytest

from resilience.errors import ConfigurationError
from resilience.policy import BreakerPolicy, RetryPolicy
from tasks.overrides import override_breaker, override_retry, parse_overrides
from tasks.settings import Settings, credentials, environment, get_settings, masked


def problem(**values):
    with pytest.raises(ConfigurationError) as caught:
        Settings(**values)
    return str(caught.value)


def problem_in(text):
    with pytest.raises(ConfigurationError) as caught:
        parse_overrides(text, "some.toml")
    return str(caught.value)


def test_defaults_agree():
    """Nothing has to be set."""
    settings = Settings()
    assert (settings.pool, settings.concurrency, settings.slice_s) == ("prefork", 4, 45)
    assert settings.state_dir.is_absolute()
    assert settings.database == f"sqlite:///{settings.state_dir}/penstock.db"
    assert settings.ip_name == socket.gethostname()


def test_environment_is_read_once(monkeypatch):
    """A process does not change its mind."""
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "7")
    first = get_settings()
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "8")
    assert first.concurrency == 7
    assert get_settings() is first


def test_lists_are_written_with_commas(monkeypatch):
    """As people write them in a shell, spaces included."""
    monkeypatch.setenv("PENSTOCK_COLLECTORS", "binance, own.module:api,")
    monkeypatch.setenv("PENSTOCK_SCHEDULES", "binance.klines,coinbase,*")
    settings = Settings()
    assert settings.collectors == ("binance", "own.module:api")
    assert settings.schedules == ("binance.klines", "coinbase", "*")


def test_empty_variable_is_unset(monkeypatch):
    """Compose files pass what is not set as an empty text."""
    monkeypatch.setenv("PENSTOCK_REDIS_URL", "")
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "")
    assert Settings().redis_url is None
    assert Settings().concurrency == 4


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("CONCURRENCY", "four", "a whole number of at least 1"),
        ("CONCURRENCY", "0", "a whole number of at least 1"),
        ("CALL_TIMEOUT_S", "-1", "a number of seconds above 0"),
        ("CALL_TIMEOUT_S", "nan", "a number of seconds above 0"),
        ("TICK_S", "inf", "a number of seconds above 0"),
        ("POOL", "gevent", "prefork or threads"),
        ("LOG_LEVEL", "LOUD", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"),
        ("SCHEDULES", "a.b.c", "names like binance or binance.klines"),
        ("COLLECTORS", "a b", "names of collectors or module:attribute"),
    ],
)
def test_wrong_value_names_itself(monkeypatch, name, value, allowed):
    """Which variable, what it says, what it may say; in one line."""
    monkeypatch.setenv(f"PENSTOCK_{name}", value)
    said = problem()
    assert said.startswith(f"PENSTOCK_{name} in the environment is {value!r}, but has to be {allowed}")
    assert "\n" not in said


def test_every_problem_has_its_line(monkeypatch):
    """So that one look is enough."""
    monkeypatch.setenv("PENSTOCK_POOL", "x")
    monkeypatch.setenv("PENSTOCK_CONCURRENCY", "x")
    monkeypatch.setenv("PENSTOCK_CONCURENCY", "3")
    assert len(problem().splitlines()) == 3


def test_unknown_variable_is_an_error(monkeypatch):
    """A typing error would otherwise be silence."""
    monkeypatch.setenv("PENSTOCK_CONCURENCY", "3")
    assert problem() == (
        "PENSTOCK_CONCURENCY in the environment is not a setting; did you mean PENSTOCK_CONCURRENCY?"
    )


def test_test_variables_are_no_settings(monkeypatch):
    """They belong to the tests."""
    monkeypatch.setenv("PENSTOCK_TEST_POSTGRES_URL", "x")
    monkeypatch.setenv("PENSTOCK_REQUIRE_SERVICES", "0")
    assert Settings()


def test_every_field_says_what_is_allowed():
    """A sentence about a wrong value never ends in None."""
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("values", "first"),
    [
        ({"slice_s": 80}, "PENSTOCK_SOFT_TIME_LIMIT_S is 80, but has to be more than PENSTOCK_SLICE_S (80)"),
        ({"soft_time_limit_s": 90}, "PENSTOCK_TIME_LIMIT_S is 90, but has to be more than PENSTOCK_SOFT"),
        (
            {"claim_max_s": 89},
            "PENSTOCK_CLAIM_MAX_S is 89, but has to be at least PENSTOCK_TIME_LIMIT_S (90)",
        ),
        (
            {"visibility_timeout_s": 90},
            "PENSTOCK_VISIBILITY_TIMEOUT_S is 90, but has to be more than PENSTOCK_TIME",
        ),
        (
            {"gone_after_s": 9},
            "PENSTOCK_GONE_AFTER_S is 9, but has to be at least 2 times PENSTOCK_HEARTBEAT_S (10)",
        ),
    ],
)
def test_times_fit_into_each_other(values, first):
    """Each wait outlasts the one inside it."""
    assert problem(**values).startswith(first)


@pytest.mark.parametrize("name", ["REDIS_URL", "BROKER_URL", "DATABASE_URL"])
def test_wrong_url_is_not_shown(monkeypatch, name):
    """It may be a password pasted into the wrong place."""
    monkeypatch.setenv(f"PENSTOCK_{name}", "hunter2")
    said = problem()
    assert said.startswith(f"PENSTOCK_{name} in the environment has to be a URL like")
    assert "hunter2" not in said


@pytest.mark.parametrize("value", ["hunter2", "hunter2:", ":hunter2", "hunter2:ä", "hunter2:\n"])
def test_wrong_credentials_are_not_shown(monkeypatch, value):
    """Half of them may be the password."""
    monkeypatch.setenv("PENSTOCK_FLOWER_AUTH", value)
    assert problem() == "PENSTOCK_FLOWER_AUTH in the environment has to be user:password, in ASCII"


def test_a_password_may_have_colons():
    """A user name may not."""
    assert credentials("me:a:b c") == ("me", "a:b c")


def test_repr_shows_no_secret():
    """Settings end up in logs and tracebacks."""
    settings = Settings(
        redis_url="redis://u:hunter2@h/0",
        database_url="postgresql://u:hunter2@h/d",
        flower_auth="u:hunter2",
    )
    assert "hunter2" not in f"{settings!r} {settings}"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("amqp://u:p@ss:w/rd@h/v", "amqp://u:***@h/v"),
        ("postgresql://u@h/d?password=pw&x=1", "postgresql://u@h/d?password=***&x=1"),
        ("sqlite:////tmp/a.db", "sqlite:////tmp/a.db"),
    ],
)
def test_masked_url(url, shown):
    """Every password goes, the rest stays readable."""
    assert masked(url) == shown


def test_postgres_url_gets_its_driver():
    """The scheme that everybody writes means another driver to SQLAlchemy."""
    for scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        assert Settings(database_url=f"{scheme}://u@h/d").database == "postgresql+psycopg://u@h/d"


def test_tls_is_verified_unless_said_otherwise():
    """Celery refuses a rediss:// URL that says nothing about the certificate."""
    assert Settings(redis_url="rediss://h/0").redis == "rediss://h/0?ssl_cert_reqs=required"
    assert Settings(redis_url="rediss://h/0?ssl_cert_reqs=none").redis == "rediss://h/0?ssl_cert_reqs=none"


def test_broker_is_redis_unless_said_otherwise():
    """One server is enough."""
    assert Settings(redis_url="redis://h/0").broker == "redis://h/0"
    assert Settings(redis_url="redis://h/0", broker_url="amqp://h").broker == "amqp://h"


def test_settings_cannot_be_changed():
    """Whoever has read one may rely on it."""
    with pytest.raises(ValueError, match="frozen"):
        Settings().concurrency = 1


def test_log_level_in_any_case():
    """`info` is what people type."""
    assert Settings(log_level="info").log_level == "INFO"


def test_secret_comes_from_the_environment(monkeypatch):
    """By the name that the declaration gives."""
    monkeypatch.setenv("ASANA_TOKEN", "hunter2")
    assert Settings().secret("ASANA_TOKEN") == "hunter2"


def test_missing_secret_is_named():
    """And both places where it could be."""
    with pytest.raises(
        ConfigurationError, match="ASANA_TOKEN is missing: set ASANA_TOKEN, or ASANA_TOKEN_FILE"
    ):
        Settings().secret("ASANA_TOKEN")


def test_child_environment_is_ours_with_changes(monkeypatch):
    """A child needs PATH as much as its URLs."""
    monkeypatch.setenv("SOME_NAME", "kept")
    changed = environment(PENSTOCK_REDIS_URL="redis://h/0")
    assert (changed["SOME_NAME"], changed["PENSTOCK_REDIS_URL"]) == ("kept", "redis://h/0")


def test_overrides_are_as_written():
    """The registry lays them over what the collectors declare."""
    tables = parse_overrides(
        """
        [binance]
        base_url = "http://127.0.0.1:1"
        limits = ["1200/1m", "5 at once"]
        breaker = { failures = 3, open_for_s = 10 }
        [binance.retry]
        attempts = 5
        [binance.klines]
        symbols = ["BTCUSDT"]
        every = "1m"
        catch_up = "latest"
        overlap = "skip"
        """,
        "some.toml",
    )
    assert tables["binance"]["breaker"] == {"failures": 3, "open_for_s": 10}
    assert tables["binance"]["klines"]["symbols"] == ["BTCUSDT"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1", "some.toml: x stands outside of a table"),
        ("[a]\nbas_url = 'http://h'", "some.toml: [a] bas_url is not known; did you mean base_url?"),
        ("[a]\nbase_url = 'h'", "some.toml: [a] base_url is 'h', but has to be an http:// or https:// URL"),
        (
            "[a]\nlimits = ['5 per minute']",
            "some.toml: [a] limits is ['5 per minute'], but has to be a list of",
        ),
        ("[a]\nbreaker = 3", "some.toml: [a] breaker is 3, but has to be a table"),
        (
            "[a.breaker]\nopen_for = 3",
            "some.toml: [a.breaker] open_for is not known; did you mean open_for_s?",
        ),
        (
            "[a.breaker]\nrate = 1.5",
            "some.toml: [a.breaker] rate is 1.5, but has to be a number above 0 and up to 1",
        ),
        (
            "[a.retry]\nattempts = true",
            "some.toml: [a.retry] attempts is True, but has to be a whole number above 0",
        ),
        ("[a.retry]\ncap_s = inf", "some.toml: [a.retry] cap_s is inf, but has to be a number above 0"),
        (
            "[a.b]\ncatch_up = 'lates'",
            "some.toml: [a.b] catch_up is 'lates', but has to be one of none, latest, all",
        ),
        ("[a.b]\nevery = '1 minute'", "some.toml: [a.b] every is '1 minute', but has to be a period like"),
        ("[a.b]\nsymbols = 'BTC'", "some.toml: [a.b] symbols is 'BTC', but has to be a list of texts"),
        ("[a.b]\nlimits = ['1/1s']", "some.toml: [a.b] limits is not known"),
        ("[a", "some.toml is not a TOML file"),
    ],
)
def test_wrong_override_names_file_and_key(text, said):
    """And what is allowed there."""
    assert problem_in(text).startswith(said)


def test_policies_take_overrides():
    """Seconds in the file are durations in the policy; what the file leaves out stays."""
    breaker = override_breaker(BreakerPolicy(min_calls=7), {"failures": 3, "open_for_s": 10})
    assert (breaker.failures, breaker.open_for, breaker.min_calls) == (3, timedelta(seconds=10), 7)
    assert override_retry(RetryPolicy(cap_s=9), {"attempts": 2}) == RetryPolicy(attempts=2, cap_s=9)


def test_every_policy_field_can_be_overridden():
    """A field added to a policy is not forgotten here."""
    from dataclasses import fields

    from tasks.overrides import _BREAKER, _RETRY

    assert {key.removesuffix("_s") for key in _BREAKER} == {field.name for field in fields(BreakerPolicy)}
    assert set(_RETRY) == {field.name for field in fields(RetryPolicy)}
