"""What the same test runs on: a broker and a database. Results, limits and circuits are in Redis everywhere."""

from dataclasses import dataclass

from tests.rabbitmq import RabbitMQ

REDIS_SQLITE, REDIS_POSTGRESQL, RABBITMQ_SQLITE, RABBITMQ_POSTGRESQL = DEPLOYMENTS = tuple(
    f"{broker}+{database}" for broker in ("redis", "rabbitmq") for database in ("sqlite", "postgresql")
)
# Each broker and each database once: what most tests run on.
BOTH = (REDIS_SQLITE, RABBITMQ_POSTGRESQL)


@dataclass(frozen=True)
class Deployment:
    """A database, and a broker where it is not the Redis of the fleet."""

    name: str
    database_url: str
    broker_url: str | None = None
    rabbitmq: RabbitMQ | None = None  # one that may be broken

    @property
    def settings(self):
        """What tells Penstock of it."""
        broker = {"PENSTOCK_BROKER_URL": self.broker_url} if self.broker_url else {}
        return {"PENSTOCK_DATABASE_URL": self.database_url, **broker}
