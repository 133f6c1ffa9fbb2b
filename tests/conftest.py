"""What tests share: servers, each started by the first that asks for it and stopped after the last, and stores."""

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from services import Postgres, RabbitMQ, Redis
from sharing import AnyServer, Keeper, borrowed
from stores import empty, migrated

from ports.store import Store

pytest_plugins = ["secrecy"]
SERVERS = {"postgres", "rabbitmq", "redis"}
LONGEST = (
    "test_simulation",
    "test_chaos",
    "test_broker_away",
    "test_crash_points",
    "test_schemathesis",
    "test_store_properties",
    "test_race",
    "test_rules_properties",
    "test_kill",
)
"""Modules begun with, so that of several processes none is busy long after the others."""
KEEPER = pytest.StashKey[Keeper]()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server before ``-m "not services"`` chooses, and begin with what takes longest."""
    for item in items:
        if SERVERS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("services")
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell a process of pytest-xdist where to ask for servers."""
    config: pytest.Config = node.config
    if KEEPER not in config.stash:
        config.stash[KEEPER] = Keeper()
        config.add_cleanup(config.stash[KEEPER].close)
    node.workerinput["keeper"] = config.stash[KEEPER].address


@pytest.fixture(scope="session")
def postgres(request: pytest.FixtureRequest) -> Iterator[Postgres]:
    """PostgreSQL for every test but those that stop it; they make their own."""
    with opened(Postgres, request.config, "INVENTORY_TEST_POSTGRESQL_URL") as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[RabbitMQ]:
    """RabbitMQ for every test but those that stop it; they make their own."""
    with opened(RabbitMQ, request.config, "INVENTORY_TEST_RABBITMQ_URL") as server:
        yield server


@pytest.fixture(scope="session")
def redis(request: pytest.FixtureRequest) -> Iterator[Redis]:
    """Redis for every test but those that stop it; they make their own."""
    with opened(Redis, request.config, "INVENTORY_TEST_REDIS_URL") as server:
        yield server


def opened(kind: type[AnyServer], config: pytest.Config, variable: str) -> AbstractContextManager[AnyServer]:
    """The stranger's server that the environment names, else one for all processes, else one for this one."""
    url, keeper = os.environ.get(variable), getattr(config, "workerinput", {}).get("keeper")
    return kind(url) if url or keeper is None else nullcontext(borrowed(kind, keeper))


@pytest.fixture(scope="module")
def database(postgres: Postgres) -> str:
    """A database of this module's own."""
    return postgres.create_database()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.services)])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    server = request.param == "postgresql"
    url = request.getfixturevalue("database") if server else f"sqlite:///{tmp_path}/inventory.db"
    async with migrated(url) as store:
        if server:
            await empty(url)
        yield store


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
