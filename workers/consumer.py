"""Celery's consumer, which publishes the events of tasks a few times a second and not after each of them."""

from typing import Any

from celery.worker import consumer

EVENTS_EVERY_S = 0.25  # how far Flower may lag behind


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Its dispatcher collects the events of tasks; a timer of the event loop publishes what has gathered.

    Celery's own asks the loop for a publication after every event: three a unit, a tenth of a worker's CPU.
    The dispatcher still publishes by itself when its buffer is full.
    """

    def on_send_event_buffered(self) -> None:
        """Leave it to the timer."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Start the timer; Celery cancels it with the others when the connection is lost."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(EVENTS_EVERY_S, self._flush_events)

    def shutdown(self) -> None:
        """Publish the rest."""
        self._flush_events()
        super().shutdown()
