"""Celery's consumer, which publishes the events of tasks a few times a second and not after each of them."""

import sys
from typing import Any

from celery.worker import consumer

EVENTS_EVERY_S = 0.25  # how far Flower may lag behind


class Consumer(consumer.Consumer):  # type: ignore[misc]
    """Its dispatcher collects the events of tasks; a timer of the event loop publishes what has gathered.

    Celery's own asks the loop for a publication after every event: three a unit, a tenth of a worker's CPU.
    Nothing else publishes them. A full buffer would have a thread of the pool do so, and wait for RabbitMQ's
    confirmation on a connection that the loop reads from: the one takes what is the other's, and both stand
    still.
    """

    def on_send_event_buffered(self) -> None:
        """Leave it to the timer."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Start the timer; Celery cancels it with the others when the connection is lost."""
        super().register_with_event_loop(hub)
        self.event_dispatcher.buffer_limit = sys.maxsize  # what gathers in a moment is not much
        hub.call_repeatedly(EVENTS_EVERY_S, self._flush_events)

    def shutdown(self) -> None:
        """Publish the rest."""
        self._flush_events()
        super().shutdown()
