"""The servers the tests share. Each is started by the first test that asks for it and stopped after the last."""

import os
from collections.abc import Iterator

import pytest
from services import Postgres, RabbitMQ, Redis

SERVERS = {"postgres", "rabbitmq", "redis"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server before ``-m "not services"`` chooses."""
    for item in items:
        if SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("services")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """PostgreSQL for every test but those that stop it; they make their own."""
    with Postgres(os.environ.get("INVENTORY_TEST_POSTGRESQL_URL")) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """RabbitMQ for every test but those that stop it; they make their own."""
    with RabbitMQ(os.environ.get("INVENTORY_TEST_RABBITMQ_URL")) as server:
        yield server


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """Redis for every test but those that stop it; they make their own."""
    with Redis(os.environ.get("INVENTORY_TEST_REDIS_URL")) as server:
        yield server


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database, dropped after the test."""
    url = postgres.create_database()
    yield url
    postgres.drop_database(url)


@pytest.fixture
def amqp_url(rabbitmq: RabbitMQ) -> str:
    """An empty vhost; with INVENTORY_TEST_RABBITMQ_URL that URL's own, whatever it holds."""
    return rabbitmq.create_vhost()


@pytest.fixture
def redis_url(redis: Redis) -> str:
    """An empty logical database; with INVENTORY_TEST_REDIS_URL that URL's own, whatever it holds."""
    return redis.create_database()
