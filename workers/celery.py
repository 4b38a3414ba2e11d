"""The Celery app, found by `celery -A workers`. Each setting with its reason; measured ones say so."""

from typing import Any

from celery import Celery
from kombu import serialization

from tasks.collectors.registry import collectors
from tasks.settings import Settings, get_settings
from workers import transport
from workers.queues import CTL, all_queues, route

app = Celery("penstock", set_as_current=True)


def configuration() -> dict[str, Any]:
    """Settings → Celery configuration; read when the app is first used, not at import."""
    settings = get_settings()
    return {
        "broker_url": settings.broker,
        "result_backend": settings.redis,
        # JSON only: a pickle from whoever reaches the broker would run as code.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "enable_utc": True,  # ETAs travel between hosts
        "timezone": "UTC",  # slots do not jump with daylight saving
        "task_acks_late": True,  # a message is done when its unit is written
        "task_reject_on_worker_lost": True,  # a killed child's message comes back at once
        "worker_prefetch_multiplier": 1,  # a dead worker parks one message per slot, not sixteen
        "task_track_started": False,  # five Redis commands per unit for nothing we show
        "worker_send_task_events": True,  # Flower is blind without
        "task_send_sent_event": False,  # a fourth event per unit for nothing we show
        "task_ignore_result": True,  # results are in SQL; the chord gets its parts all the same
        "result_expires": 3600,  # what Redis keeps of a chord is of use for minutes only
        "result_chord_expires": 4 * 3600,  # longer than any wave lives
        "result_extended": False,  # arguments stand in SQL and need not be stored twice
        "result_backend_always_retry": True,  # a Redis that restarts costs a chord nothing
        "result_backend_max_retries": 20,  # the default is for ever
        "result_backend_transport_options": {"visibility_timeout": settings.visibility_timeout_s},
        "visibility_timeout": settings.visibility_timeout_s,  # read in three places; the shortest would win
        # The result backend has connections of its own; these say for them what `_transport` says below.
        "redis_socket_timeout": 10,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
        "redis_backend_health_check_interval": 10,
        "broker_connection_retry_on_startup": True,  # processes may start before their broker
        "broker_connection_max_retries": None,  # a worker waits for its broker for as long as it takes
        "broker_transport_options": _transport(settings),
        "broker_heartbeat": 20,  # RabbitMQ: a worker and its broker miss each other within 40 s
        # A publish gives up soon: the unit or run is open in SQL and will be sent again. Commands do not even
        # try twice; they say that the run starts when the broker is back.
        "task_publish_retry_policy": {
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        "task_soft_time_limit": settings.soft_time_limit_s,  # prefork only; HTTP deadlines are the real limit
        "task_time_limit": settings.time_limit_s,  # a unit beyond the soft one is stuck where no signal helps
        "worker_consumer": "workers.consumer:Consumer",  # publishes events together
        "worker_disable_rate_limits": True,  # they are per worker, and block what waits behind them
        "worker_eta_task_limit": 1000,  # waiting messages are held in memory
        "worker_max_tasks_per_child": 10000,  # bounds what a leak may cost; a new child takes 10 ms
        "worker_hijack_root_logger": True,  # our log lines in Celery's form, all in one stream
        "task_queues": all_queues(collectors()),  # declared, so that a worker may be given any of them
        "task_default_queue": CTL,  # a task that nobody has routed must not wait behind units
        "task_routes": (route,),  # what steers to ctl, units to the queue of their API
        # Two entries and no state: slots are in SQL, so there is no file to sync or to break.
        "beat_scheduler": "celery.beat:Scheduler",
        "beat_max_loop_interval": 5,  # beat looks at its clock as often as its shortest entry is due
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
        "imports": (  # by name: nothing is found by looking through packages
            "tasks.units",
            "tasks.runs",
            "tasks.schedules",
            "tasks.reconcile",
            "workers.lifecycle",
        ),
    }


def _transport(settings: Settings) -> dict[str, Any]:
    """What kombu has to know of the broker."""
    if not settings.broker.startswith("redis"):
        return {
            "confirm_publish": True,  # else a message to a broker that is going down is lost without a word
            "read_timeout": 10,  # a server that hangs is an error, not a hanging worker
            "write_timeout": 10,
        }
    return {
        "visibility_timeout": settings.visibility_timeout_s,  # a backstop only: SQL leases recover first
        "unacked_restore_interval": 5,  # measured: with the defaults a restore came after 100 s
        "unacked_restore_throttle": 1,  # the other factor of those 100 s
        "socket_timeout": 10,  # a server that hangs is an error, not a hanging worker
        "socket_connect_timeout": 5,  # the same for one that cannot be reached
        "connect_retries_timeout": 2,  # a publisher hears in two seconds, not six, that it is away
        "socket_keepalive": True,  # the kernel notices a peer that is gone
        "health_check_interval": 10,  # finds a connection that died in silence
        "queue_order_strategy": "round_robin",  # no API's queue starves another's
    }


transport.use()
app.set_default()  # for every thread, not only for the one that imports this
app.add_defaults(configuration)
serialization.disable_insecure_serializers()
