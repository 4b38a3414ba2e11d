"""The Celery app, found by `celery -A workers`. Each setting with its reason; measured ones say so."""

from typing import Any

from celery import Celery
from kombu import serialization

from tasks.collectors.registry import collectors
from tasks.settings import get_settings
from workers.queues import CTL, all_queues, route

app = Celery("penstock", set_as_current=True)


def configuration() -> dict[str, Any]:
    """Settings → Celery configuration; read when the app is first used, not at import."""
    settings = get_settings()
    transport = {
        "visibility_timeout": settings.visibility_timeout_s,  # a backstop only: SQL leases recover first
        "unacked_restore_interval": 5,  # measured: with the defaults a restore came after 100 s
        "unacked_restore_throttle": 1,
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "connect_retries_timeout": 2,  # a publisher hears in two seconds, not six, that it is away
        "socket_keepalive": True,
        "health_check_interval": 10,  # finds a connection that died in silence
        "queue_order_strategy": "round_robin",  # no API's queue starves another's
    }
    return {
        "broker_url": settings.broker,
        "result_backend": settings.redis,
        # JSON only: a pickle from whoever reaches the broker would run as code.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "enable_utc": True,
        "timezone": "UTC",
        "task_acks_late": True,  # a message is done when its unit is written
        "task_reject_on_worker_lost": True,  # a killed child's message comes back at once
        "worker_prefetch_multiplier": 1,  # a dead worker parks one message per slot, not sixteen
        "task_track_started": False,  # five Redis commands per unit for nothing we show
        "worker_send_task_events": True,  # Flower is blind without
        "task_send_sent_event": False,
        "task_ignore_result": True,  # results are in SQL; the chord gets its parts all the same
        "result_expires": 3600,
        "result_chord_expires": 4 * 3600,  # longer than any wave lives
        "result_extended": False,
        "result_backend_always_retry": True,
        "result_backend_max_retries": 20,  # the default is for ever
        "result_backend_transport_options": {"visibility_timeout": settings.visibility_timeout_s},
        "visibility_timeout": settings.visibility_timeout_s,  # read in three places; the shortest would win
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
        "redis_backend_health_check_interval": 10,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": transport,
        # Inside a unit a publish gives up soon: the unit is open in SQL and will be sent again.
        "task_publish_retry_policy": {
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        "task_soft_time_limit": settings.soft_time_limit_s,  # prefork only; HTTP deadlines are the real limit
        "task_time_limit": settings.time_limit_s,
        "worker_disable_rate_limits": True,  # they are per worker, and block what waits behind them
        "worker_eta_task_limit": 1000,  # waiting messages are held in memory
        "worker_max_tasks_per_child": 10000,  # bounds what a leak may cost
        "worker_hijack_root_logger": True,
        "task_queues": all_queues(collectors()),
        "task_default_queue": CTL,
        "task_routes": (route,),
        "beat_scheduler": "celery.beat:Scheduler",  # two entries and no state: slots are in SQL
        "beat_max_loop_interval": 5,
        "beat_schedule": {
            "tick": {
                "task": "tasks.schedules.tick",
                "schedule": settings.tick_s,
                "options": {"expires": settings.tick_s, "ignore_result": True},  # ticks must not pile up
            },
            "reconcile": {
                "task": "tasks.reconcile.reconcile",
                "schedule": settings.reconcile_s,
                "options": {"expires": settings.reconcile_s, "ignore_result": True},
            },
        },
        "imports": (
            "tasks.units",
            "tasks.runs",
            "tasks.schedules",
            "tasks.reconcile",
            "workers.lifecycle",
        ),
    }


app.set_default()  # for every thread, not only for the one that imports this
app.add_defaults(configuration)
serialization.disable_insecure_serializers()
