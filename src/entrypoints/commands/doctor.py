"""``inventory doctor``: tries what the settings name, and says what is wrong and the one thing to do about it.

It makes nothing: neither tables nor queues, and not the files that a first start would make. It ends in time, whatever
hangs: store, broker, cache and Product Service are tried side by side, and what has not answered by then is told as
such.
"""

import asyncio
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, suppress
from datetime import UTC, datetime
from itertools import chain
from typing import Literal, NoReturn, TypeVar

import msgspec
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from adapters.registry import connect
from adapters.telemetry import configure_logging, mask
from adapters.tokens.keys import public_keys
from adapters.tokens.signing import mint, split_secrets
from core.errors import InventoryError, ProductNotFound, Unavailable, ValidationFailed
from entrypoints.commands.trouble import explain, sqlite_file, where
from entrypoints.config import Config, SettingError, check_processes, with_secret
from entrypoints.wiring import connect_catalog, make_verifier
from ports.broker import Broker
from ports.cache import Cache
from ports.catalog import ProductCatalog
from ports.outbox import BACKLOG_MAX, Backlog
from ports.store import Store

REACH_SECONDS = 3.0
TRY_SECONDS = 5.0
CLOSE_SECONDS = 2.0
CLOCK_WARNING_SECONDS = 2.0
CLOCK_PROBLEM_SECONDS = 30.0
BACKLOG_SECONDS = 60.0
FREE_BYTES = 100_000_000

T = TypeVar("T")
_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}
_MIGRATE = "Run `inventory migrate`."
_REMEDIES = {
    "INVENTORY_AUTH_JWKS": 'Have it name a file or a URL of a set of public keys, {"keys": [...]}.',
    "INVENTORY_AUTH_ISSUER": "Set both, or neither: the defaults are good.",
}
"""What to do, by the word with which a refusal begins, where the refusal does not say it."""


class Finding(Struct, frozen=True):
    """What one check found; ``remedy`` is the one thing to do, and empty where nothing needs to be done."""

    check: str
    verdict: Literal["ok", "warning", "problem"]
    detail: str
    remedy: str = ""


def run(config: Config, *, as_json: bool) -> NoReturn:
    """Print the findings and end the process: 0 unless there is a problem, then 1."""

    async def main() -> NoReturn:
        findings = await diagnose(config)
        (_print_json if as_json else _print_table)(findings)
        sys.stdout.flush()
        # A name that is looked up, or a file that does not come, holds a thread that would keep Python from ending.
        os._exit(any(finding.verdict == "problem" for finding in findings))

    configure_logging("error")
    asyncio.run(main())


async def diagnose(config: Config) -> list[Finding]:
    """Try everything and return what was found, which takes at most ``TRY_SECONDS`` and ``CLOSE_SECONDS``.

    Raises:
        ValidationFailed: no adapter goes with the URL of a port, or it cannot be understood.
    """
    opening = connect("store", config.store), connect("broker", config.broker), connect("cache", config.cache)
    catalog, unusable = _catalog_opening(config)
    found = [*_processes(config), *_tokens(config), *unusable, *_place(config)]
    unplaced = any(finding.check == "place" and finding.verdict == "problem" for finding in found)
    ends = AsyncExitStack()
    try:
        store = None if unplaced else await _opened(ends, "INVENTORY_STORE", opening[0])
        broker = await _opened(ends, "INVENTORY_BROKER", opening[1])
        cache = await _opened(ends, "INVENTORY_CACHE", opening[2])
        checks = [
            _public_keys(config),
            _collected("broker", config.broker, _broker(config, broker)),
            _collected("cache", config.cache, _cache(config, cache)),
        ]
        if catalog is not None:
            opened = await _opened(ends, "INVENTORY_CATALOG", catalog)
            checks.append(_collected("catalog", config.catalog, _catalog(config, opened)))
        if store is not None:
            checks.insert(0, _collected("store", config.store, _store(config, store)))
        found += chain(*await asyncio.gather(*checks))
        return [Finding(each.check, each.verdict, mask(each.detail), mask(each.remedy)) for each in found]
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await ends.aclose()


async def _opened(ends: AsyncExitStack, setting: str, opening: AbstractAsyncContextManager[T]) -> T:
    try:
        return await ends.enter_async_context(opening)
    except (TypeError, ValueError) as error:
        raise SettingError(f"{setting} cannot be understood: {mask(str(error))}.") from error


def _print_json(findings: Sequence[Finding]) -> None:
    print(msgspec.json.format(msgspec.json.encode({"findings": findings})).decode())


def _print_table(findings: Sequence[Finding]) -> None:
    table = Table("check", "verdict", "finding", "what to do")
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(finding.check, verdict, Text(finding.detail), Text(finding.remedy))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


# -- settings ---------------------------------------------------------------------------------------------------------


def _processes(config: Config) -> Iterator[Finding]:
    try:
        check_processes(config, "serve")
    except SettingError as error:
        yield _refused("processes", error)
    else:
        yield Finding("processes", "ok", f"INVENTORY_WORKERS={config.workers} suits the store and the broker.")


def _tokens(config: Config) -> Iterator[Finding]:
    given = config.auth_secret or config.auth_jwks
    if config.embedded and not given and not os.access(config.secret_file, os.F_OK):
        yield Finding("tokens", "ok", f"The first start makes a secret in {config.secret_file}.")
        return
    try:
        yield Finding("tokens", "ok", _round_trip(with_secret(config)))
    except InventoryError as error:
        yield _refused("tokens", error)


def _round_trip(config: Config) -> str:
    """Make a token and judge it as the service would; return what that showed."""
    verifier = make_verifier(config)
    if not config.auth_secret:
        return "Tokens are made elsewhere, and judged by public keys."
    issuer, audience = config.auth_issuer[0], config.auth_audience
    secret = split_secrets(config.auth_secret)[0]
    token = mint(secret, issuer=issuer, audience=audience, subject="inventory-doctor", roles=(), lifetime=60)
    verifier.verify(token)
    return f"A token of {issuer} for {audience} was made and accepted."


async def _public_keys(config: Config) -> list[Finding]:
    """Fetch the key set as the service would, where it is at a URL."""
    if not config.auth_jwks.startswith(("https://", "http://")):
        return []
    from adapters.tokens.remote import open_key_set

    try:
        async with open_key_set(config.auth_jwks) as fetch:
            return [await _fetched_keys(config.auth_jwks, fetch)]
    except ValidationFailed as error:
        return [_refused("keys", error)]


async def _fetched_keys(url: str, fetch: Callable[[], Awaitable[str]]) -> Finding:
    try:
        keys = public_keys(await fetch())
    except Unavailable as error:
        return Finding("keys", "problem", *explain("auth_jwks", url, error))
    except ValueError as error:
        return Finding("keys", "problem", f"What is at {where(url)} {error}.", "Correct INVENTORY_AUTH_JWKS.")
    if not keys.unfit:
        return Finding("keys", "ok", f"{where(url)} has {len(keys.named)} keys.")
    verdict: Literal["warning", "problem"] = "warning" if keys.named else "problem"
    detail = f"Of the keys at {where(url)} {len(keys.named)} can be used, {len(keys.unfit)} not: {keys.unfit[0]}."
    return Finding("keys", verdict, detail, "Have tokens for this service signed with ES256, EdDSA or RS256.")


def _refused(check: str, error: InventoryError) -> Finding:
    """Take the refusal apart where it turns from what is wrong to what to do."""
    if remedy := _REMEDIES.get(error.detail.partition(" ")[0].rstrip(":")):
        return Finding(check, "problem", error.detail, remedy)
    wrong, _, remedy = error.detail.replace("; ", ": ", 1).partition(": ")
    remedy = remedy.partition(". ")[0].rstrip(".")
    return Finding(check, "problem", f"{wrong}.", f"{remedy[:1].upper()}{remedy[1:]}.")


# -- the store --------------------------------------------------------------------------------------------------------


def _place(config: Config) -> Iterator[Finding]:
    """Look at where a SQLite database is, or would be."""
    if (file := sqlite_file(config.store)) is None:
        return
    folder = next(each for each in file.absolute().parents if os.access(each, os.F_OK))
    there = os.access(file, os.F_OK)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("place", "problem", f"No files can be made in {folder}.", "Correct that, or INVENTORY_STORE.")
    elif there and not os.access(file, os.R_OK | os.W_OK):
        yield Finding("place", "problem", f"{file} may not be written.", "Let the user that runs this write to it.")
    elif not there:
        yield Finding("place", "problem", f"There is no database {file} yet.", _MIGRATE)
    elif (free := shutil.disk_usage(folder).free) < FREE_BYTES:
        yield Finding("place", "warning", f"{folder} has {free / 1e6:.0f} MB left.", "Make room there.")
    else:
        yield Finding("place", "ok", f"{folder} has {free / 1e9:,.1f} GB left.")


async def _store(config: Config, store: Store) -> AsyncIterator[Finding]:
    async with asyncio.timeout(REACH_SECONDS):
        await store.ping()
    yield Finding("store", "ok", f"{where(config.store)} answers.")
    before = time.time()
    condition = await store.condition()
    if sqlite_file(config.store) is None:
        yield _clock(condition.now.timestamp() - (before + time.time()) / 2)
    if condition.read_only:
        yield Finding("writes", "problem", "The store is read-only.", "Name one in INVENTORY_STORE that takes writes.")
    else:
        yield Finding("writes", "ok", "The store takes writes.")
    if pending := await store.pending_migrations():
        yield Finding("migrations", "problem", f"The store lacks the migrations {', '.join(pending)}.", _MIGRATE)
    else:
        yield Finding("migrations", "ok", "None is pending.")
        yield _outbox(await store.backlog(), condition.now, config)
        if blocked := await store.blocked(1):
            detail = f"Product {blocked[0].product_id} waits for event {blocked[0].event_id}: {blocked[0].reason}"
            yield Finding("blocked", "problem", detail, "See `inventory outbox show`; release it, or skip it.")
        yield _letters(await store.letter_counts())


def _clock(ahead: float) -> Finding:
    apart = abs(ahead)
    if apart <= CLOCK_WARNING_SECONDS:
        return Finding("clock", "ok", f"The store's clock and this machine's are {apart:.1f} s apart.")
    verdict: Literal["warning", "problem"] = "problem" if apart > CLOCK_PROBLEM_SECONDS else "warning"
    how = "ahead of" if ahead > 0 else "behind"
    detail = f"The store's clock is {apart:,.0f} s {how} this machine's: tokens and holds end early or late."
    return Finding("clock", verdict, detail, "Set both clocks by the same time server.")


def _outbox(backlog: Backlog, now: datetime, config: Config) -> Finding:
    if backlog.oldest_at is None:
        return Finding("outbox", "ok", "No event waits to be published.")
    count = f"{backlog.count:,}{' or more' if backlog.count >= BACKLOG_MAX else ''}"
    detail = f"Events wait to be published: {count}, the first since {backlog.oldest_at.astimezone(UTC):%F %T} UTC."
    if (now - backlog.oldest_at).total_seconds() <= BACKLOG_SECONDS:
        return Finding("outbox", "ok", detail)
    relay = "serve" if config.broker.startswith("memory:") else "consumer"
    return Finding("outbox", "problem", detail, f"Start `inventory {relay}`; if it runs, its log says why they wait.")


def _letters(counts: Mapping[str, int]) -> Finding:
    if not (unresolved := counts.get("UNRESOLVED", 0)):
        return Finding("dead letters", "ok", "No message waits for an operator.")
    remedy = "See `inventory dead-letters list --groups`; retry, edit or discard them."
    return Finding("dead letters", "warning", f"Messages that wait for an operator: {unresolved:,}.", remedy)


# -- the broker -------------------------------------------------------------------------------------------------------


async def _broker(config: Config, broker: Broker) -> AsyncIterator[Finding]:
    if config.broker.startswith("memory:"):
        yield _in_memory(config)
        return
    await _answered(broker)
    if missing := await broker.check():
        yield Finding("topology", "problem", f"The broker lacks {', '.join(missing)}.", _MIGRATE)
    else:
        yield Finding("topology", "ok", "Exchanges and queues are there.")
    yield Finding("broker", "ok", f"{where(config.broker)} answers.")


def _in_memory(config: Config) -> Finding:
    if config.store.startswith("sqlite"):
        return Finding("broker", "ok", "It is in the process of `inventory serve`.")
    detail = "The broker is in memory: events reach nobody outside the process of `inventory serve`."
    return Finding("broker", "warning", detail, "Set INVENTORY_BROKER to amqp://….")


async def _answered(broker: Broker) -> None:
    """Ask up to three times: connecting may take longer than an answer may. A refusal comes at once each time."""
    for attempt in range(3):
        try:
            await broker.ping()
            break
        except Unavailable:
            if attempt == 2:
                raise


# -- the cache --------------------------------------------------------------------------------------------------------


async def _cache(config: Config, cache: Cache) -> AsyncIterator[Finding]:
    await cache.ping()
    if config.cache.startswith("none:"):
        yield Finding("cache", "ok", "There is none: every read goes to the store.")
    elif not config.cache.startswith("memory:"):
        yield Finding("cache", "ok", f"{where(config.cache)} answers.")
    elif config.embedded:
        yield Finding("cache", "ok", "It is in the process of `inventory serve`.")
    else:
        detail = "No cache is set: every read goes to the store."
        if "cache" in config.origins:
            detail = "The cache is in memory: it serves one `inventory serve` alone, other processes read without."
        yield Finding("cache", "warning", detail, "Set INVENTORY_CACHE to redis://….")


# -- the Product Service ----------------------------------------------------------------------------------------------


def _catalog_opening(config: Config) -> tuple[AbstractAsyncContextManager[ProductCatalog] | None, list[Finding]]:
    """Return what opens the catalogue, or what keeps it from being opened."""
    try:
        return connect_catalog(config), []
    except InventoryError as error:
        return None, [_refused("catalog", error)]


async def _catalog(config: Config, catalog: ProductCatalog) -> AsyncIterator[Finding]:
    if config.catalog.startswith("memory:"):
        yield Finding("catalog", "ok", "There is no Product Service to ask (INVENTORY_CATALOG).")
        return
    await catalog.ping()
    with suppress(ProductNotFound):  # nobody has it, but to say so our token must be good
        await catalog.product("inventory-doctor")
    yield Finding("catalog", "ok", f"The Product Service at {where(config.catalog)} answers and takes our token.")


# -- all - -------------------------------------------------------------------------------------------------------------


async def _collected(port: str, url: str, checks: AsyncIterator[Finding]) -> list[Finding]:
    """Return what the checks find in time. The error that ends them is the finding about the port itself."""
    found: dict[str, Finding] = {}

    async def collect() -> None:
        try:
            async for finding in checks:
                found[finding.check] = finding
        except Exception as error:  # whatever it is, it is what was asked for
            found[port] = Finding(port, "problem", *explain(port, url, error))

    # Not cancelled, because a driver may take its time with that as well.
    _, late = await asyncio.wait({asyncio.create_task(collect())}, timeout=TRY_SECONDS)
    if late:
        found[port] = Finding(port, "problem", *explain(port, url, TimeoutError()))
    return list(found.values())
