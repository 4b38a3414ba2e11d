"""The Celery settings on which everything else relies, each because something broke without it."""

import json

import pytest
from celery import Celery

from tasks.settings import get_settings


@pytest.fixture
def configuration(monkeypatch):
    """The settings as an app reads them."""
    from workers.celery import configuration as read

    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://127.0.0.1:6390/0")
    get_settings.cache_clear()
    return read()


@pytest.fixture
def app(configuration):
    """An app with these settings, as Celery understands them."""
    made = Celery("test", set_as_current=False)
    made.config_from_object(configuration)
    return made


def test_nothing_is_lost_with_a_worker(app):
    """A message is done when its unit is written, a killed child's comes back, one is fetched per slot."""
    assert app.conf.task_acks_late
    assert app.conf.task_reject_on_worker_lost
    assert app.conf.worker_prefetch_multiplier == 1


def test_only_json(app):
    """A pickle from whoever reaches the broker would run as code."""
    assert app.conf.task_serializer == app.conf.result_serializer == "json"
    assert list(app.conf.accept_content) == list(app.conf.result_accept_content) == ["json"]


def test_the_visibility_timeout_is_the_same_in_all_three_places(configuration):
    """The shortest would win; and it outlasts every unit."""
    seconds = get_settings().visibility_timeout_s
    assert configuration["visibility_timeout"] == seconds
    assert configuration["broker_transport_options"]["visibility_timeout"] == seconds
    assert configuration["result_backend_transport_options"]["visibility_timeout"] == seconds
    assert seconds > configuration["task_time_limit"] > configuration["task_soft_time_limit"]


def test_lost_messages_come_back_soon(configuration):
    """With kombu's defaults a hundred seconds passed."""
    transport = configuration["broker_transport_options"]
    assert (transport["unacked_restore_interval"], transport["unacked_restore_throttle"]) == (5, 1)


def test_batches_stay_on(configuration):
    """kombu switches them off, without a word, where one of these stands among the transport's options."""
    transport = configuration["broker_transport_options"]
    assert not {"retry", "retry_on_timeout", "retry_on_error"} & transport.keys()


def test_rabbitmq_confirms_and_is_not_waited_for_long(monkeypatch):
    """Else a message to a broker that goes down is lost without a word; and none of the options is Redis's."""
    from workers.celery import configuration as read

    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://127.0.0.1:6390/0")
    monkeypatch.setenv("PENSTOCK_BROKER_URL", "amqp://127.0.0.1")
    get_settings.cache_clear()
    assert read()["broker_transport_options"] == {
        "confirm_publish": True,
        "read_timeout": 10,
        "write_timeout": 10,
    }


def test_a_unit_gives_up_a_publish_soon(configuration):
    """It is open in SQL and will be sent again; a worker must not hang on a broker that is away."""
    policy = configuration["task_publish_retry_policy"]
    assert policy["max_retries"] == 3
    assert policy["interval_max"] <= 1


def test_every_setting_is_one_that_celery_knows(configuration):
    """A typing mistake would be ignored without a word; two names are read by libraries, undeclared."""
    known = set(Celery("test", set_as_current=False).conf.keys())
    assert configuration.keys() - known == {"visibility_timeout", "redis_backend_health_check_interval"}


def test_ticks_do_not_pile_up(configuration):
    """Beat has two entries, each with an expiry no longer than its interval, on tasks that exist."""
    from workers.celery import app as ours

    ours.loader.import_default_modules()
    entries = configuration["beat_schedule"]
    assert set(entries) == {"tick", "reconcile"}
    for entry in entries.values():
        assert entry["options"]["expires"] <= entry["schedule"] == 5
        assert entry["task"] in ours.tasks


def test_the_chord_outlives_its_wave(configuration):
    """A unit may wait ten seconds at a time; a wave whose keys expire never fires."""
    assert configuration["result_chord_expires"] >= 3600
    assert configuration["task_ignore_result"] is True


def test_queues_follow_from_the_collectors(app):
    """Shipped ones here."""
    names = {queue.name for queue in app.conf.task_queues}
    assert {"collect.binance", "collect.binance.backfill", "collect.asana", "ctl", "alone"} <= names
    assert app.conf.task_default_queue == "ctl"


def test_retryable_errors_take_celerys_autoretry():
    """With back-off and jitter declared on the task, and no limit of Celery's own: waits count there too."""
    from tasks.units import RETRYABLE, collect

    assert set(collect.autoretry_for) == set(RETRYABLE)
    assert collect.retry_backoff is True
    assert collect.retry_jitter is True
    assert collect.max_retries is None
    assert collect.acks_late is True


def test_every_thread_has_the_app():
    """A run that is launched from another thread must not go to an app without a broker."""
    import threading

    from celery import current_app

    from workers.celery import app as ours

    found = []
    thread = threading.Thread(target=lambda: found.append(current_app._get_current_object()))
    thread.start()
    thread.join()
    assert found == [ours]


def test_no_password_is_shown(monkeypatch):
    """Celery shows its settings at start; URLs are masked there."""
    from workers.celery import configuration

    monkeypatch.setenv("PENSTOCK_REDIS_URL", "redis://:hush-hush@127.0.0.1:6390/0")
    get_settings.cache_clear()
    made = Celery("test", set_as_current=False)
    made.config_from_object(configuration())
    assert "hush-hush" not in json.dumps(made.conf.table(censored=True), default=str)
