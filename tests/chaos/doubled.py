"""The app with a producer that publishes every unit twice, whatever the broker."""

from kombu import Producer

from workers.celery import app

__all__ = ["app"]

_publish = Producer.publish


def publish_twice(self, body, *, routing_key=None, **options):
    """Publish the message, and once more if it is a unit's."""
    if str(routing_key).startswith("collect."):
        _publish(self, body, routing_key=routing_key, **options)
    return _publish(self, body, routing_key=routing_key, **options)


Producer.publish = publish_twice
