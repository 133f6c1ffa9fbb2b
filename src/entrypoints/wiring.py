"""Who gets what: the ports by their URLs, the use cases over the ports. One of each in a process."""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from importlib.metadata import entry_points

from dishka import AsyncContainer, Provider, Scope, make_async_container, provide

from adapters.registry import connect
from adapters.service_token import ServiceToken
from adapters.tokens.keys import KeyRing, is_url
from adapters.tokens.signing import SigningKey, split_secrets
from adapters.tokens.verifier import Verifier
from adapters.tokens.watch import KeyWatch
from core.catalog.products import Products
from core.catalog.watch import CatalogWatch
from core.consuming.consumption import ProductEvents
from core.consuming.dead_letters import DeadLetters
from core.consuming.reception import Reception
from core.consuming.redelivery import Redelivery
from core.files.imports import Imports
from core.findings import Limits
from core.operations import EventPolicy
from core.publishing.relay import Relay
from core.reading.feed import Feed
from core.reading.inventory import Inventory
from core.reading.snapshots import Snapshots
from core.reconciling.reconciliation import Reconciliation
from core.reconciling.repairs import Repairer
from core.reconciling.survey import CatalogSurvey
from core.rules.sourcing import STRATEGIES
from core.upkeep.expiry import Sweeper
from core.upkeep.housekeeping import Housekeeper
from core.writing.writer import Writer
from entrypoints.config import Config, SettingError
from ports.broker import Broker
from ports.cache import Cache
from ports.catalog import ProductCatalog
from ports.store import Store


def make_container(config: Config) -> AsyncContainer:
    """Return the container of a process. Nothing is opened before it is asked for; closing the container closes it.

    Raises:
        ValidationFailed: no installed adapter goes with one of the URLs, or there is no key for the catalogue's.
    """
    # The adapters are looked up now, so that a wrong URL ends the process before it does anything.
    store, broker = connect("store", config.store), connect("broker", config.broker)
    ports = Ports(store, broker, connect("cache", config.cache), connect_catalog(config))
    return make_async_container(ports, UseCases(config))


def connect_catalog(config: Config) -> AbstractAsyncContextManager[ProductCatalog]:
    """Return what opens the catalogue that the settings name, with a token of ours to call it with.

    Raises:
        ValidationFailed: no installed adapter goes with its URL, or there is nothing to sign tokens with.
    """
    if config.catalog.startswith("memory:"):
        return connect("catalog", config.catalog)
    if not config.catalog_secret and not config.catalog_key:
        raise SettingError(
            "There is nothing to sign our tokens for the Product Service with: set INVENTORY_CATALOG_SECRET (random "
            "text of at least 32 bytes that it knows too) or INVENTORY_CATALOG_KEY."
        )
    signed_with = SigningKey(config.catalog_key) if config.catalog_key else split_secrets(config.catalog_secret)[0]
    return connect(
        "catalog",
        config.catalog,
        token=ServiceToken(signed_with, issuer=config.auth_issuer[0], audience=config.catalog_audience),
        health_path=config.catalog_health_path,
        list_path=config.catalog_list_path,
        deadline=config.catalog_timeout_ms / 1000,
    )


def make_verifier(config: Config) -> Verifier:
    """Return the judge of tokens, as yet without the keys of a JWKS URL.

    Raises:
        ValidationFailed: a key, the issuer or the audience is unfit.
    """
    secrets = split_secrets(config.auth_secret) if config.auth_secret else ()
    return Verifier(
        KeyRing(secrets=secrets, jwks=config.auth_jwks),
        issuer=config.auth_issuer,
        audience=config.auth_audience,
        lifetime_max=config.auth_lifetime_max,
    )


class Ports(Provider):
    """What is outside, opened once and closed with the container."""

    scope = Scope.APP

    def __init__(
        self,
        store: AbstractAsyncContextManager[Store],
        broker: AbstractAsyncContextManager[Broker],
        cache: AbstractAsyncContextManager[Cache],
        catalog: AbstractAsyncContextManager[ProductCatalog],
    ) -> None:
        super().__init__()
        self._store = store
        self._broker = broker
        self._cache = cache
        self._catalog = catalog

    @provide
    async def store(self) -> AsyncIterator[Store]:
        """Open the store."""
        async with self._store as store:
            yield store

    @provide
    async def broker(self) -> AsyncIterator[Broker]:
        """Open the broker."""
        async with self._broker as broker:
            yield broker

    @provide
    async def cache(self) -> AsyncIterator[Cache]:
        """Open the cache."""
        async with self._cache as cache:
            yield cache

    @provide
    async def catalog(self) -> AsyncIterator[ProductCatalog]:
        """Open the Product Service's catalogue."""
        async with self._catalog as catalog:
            yield catalog


class UseCases(Provider):
    """What the service does. Whoever needs a loop running starts it; nothing here does."""

    scope = Scope.APP
    sweeper = provide(Sweeper)
    inventory = provide(Inventory)
    dead_letters = provide(DeadLetters)
    snapshots = provide(Snapshots)
    feed = provide(Feed)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._config = config
        # Two relays must never share a name; a process id alone comes back, and is 1 in every container.
        self._owner = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    @provide
    def config(self) -> Config:
        """Give the settings."""
        return self._config

    @provide
    def writer(self, store: Store, snapshots: Snapshots) -> Writer:
        """Make the writer, with the sourcing strategies that are installed; readers hear of its commits."""
        installed = {entry.name: entry.load() for entry in entry_points(group="inventory.sourcing")}
        return Writer(store, sourcing={**STRATEGIES, **installed}, committed=snapshots.committed)

    @provide
    def relay(self, store: Store, broker: Broker) -> Relay:
        """Make the outbox relay."""
        return Relay(store, broker, owner=self._owner, required_events=frozenset(self._config.required_events))

    @provide
    def making(self) -> EventPolicy:
        """Say what a new product leads to."""
        config = self._config
        return EventPolicy(
            auto_create=config.auto_create_on_product_creation,
            warehouse_ids=config.default_warehouses,
            reorder_threshold=config.default_reorder_threshold,
            target_stock_level=config.default_target_stock_level,
        )

    @provide
    def products(self, catalog: ProductCatalog, store: Store, making: EventPolicy) -> Products:
        """Make the judge of products."""
        return Products(catalog, store, policy=self._config.policy, making=making)

    @provide
    def product_events(self, store: Store, broker: Broker, writer: Writer, products: Products) -> ProductEvents:
        """Make the consumer of product events."""
        return ProductEvents(store, broker, writer, products, process=self._owner)

    @provide
    def redelivery(self, store: Store, writer: Writer, products: Products) -> Redelivery:
        """Make what tries dead letters again."""
        return Redelivery(store, writer, products, process=self._owner)

    @provide
    def imports(self, store: Store, writer: Writer, products: Products) -> Imports:
        """Make what carries out files."""
        return Imports(store, writer, products, owner=self._owner)

    @provide
    def reception(self, store: Store, writer: Writer, products: Products) -> Reception:
        """Make what takes product events by HTTP."""
        return Reception(store, writer, products, process=self._owner)

    @provide
    def catalog_watch(self, catalog: ProductCatalog) -> CatalogWatch:
        """Make what looks how the Product Service is."""
        return CatalogWatch(catalog, seconds=self._config.catalog_health_seconds)

    @provide
    def housekeeper(self, store: Store) -> Housekeeper:
        """Make what drops old answers and events."""
        config = self._config
        return Housekeeper(
            store, owner=self._owner, answers_hours=config.idempotency_hours, events_days=config.events_days
        )

    @provide
    def reconciliation(
        self, store: Store, writer: Writer, catalog: ProductCatalog, making: EventPolicy
    ) -> Reconciliation:
        """Make what looks whether the records agree; without a Product Service it asks nobody."""
        config = self._config
        settle = config.reconcile_settle_seconds
        survey = None if config.policy == "off" else CatalogSurvey(store, catalog, settle_seconds=settle)
        return Reconciliation(
            store,
            Repairer(store, writer, survey, making=making),
            survey,
            minutes=config.reconcile_minutes,
            repairs=config.repairs,
            limits=Limits(changes_max=config.reconcile_changes_max, percent_max=config.reconcile_percent_max),
            rate=config.reconcile_rate,
        )

    @provide
    def verifier(self) -> Verifier:
        """Make the judge of tokens."""
        return make_verifier(self._config)

    @provide
    async def key_watch(self, verifier: Verifier) -> AsyncIterator[KeyWatch]:
        """Make what keeps the verifier's keys as a URL has them; a file is read once."""
        if not is_url(self._config.auth_jwks):
            yield KeyWatch(verifier)
            return
        from adapters.tokens.remote import open_key_set  # here, because only who names a URL needs an HTTP client

        async with open_key_set(self._config.auth_jwks) as fetch:
            yield KeyWatch(verifier, fetch, seconds=self._config.auth_jwks_seconds)
