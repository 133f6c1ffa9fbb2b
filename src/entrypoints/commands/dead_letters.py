"""``inventory dead-letters``: what failed, and what an operator does about it, on the store itself."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import msgspec
import rich_click as click
from msgspec.structs import replace
from rich.console import Console
from rich.progress import TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from core.catalog.products import Products
from core.consuming.dead_letters import DeadLetters
from core.consuming.redelivery import Elsewhere, Redelivery
from core.errors import NotFound, ValidationFailed
from core.writing.writer import Writer
from entrypoints.commands.terminal import NAME, act, console, print_json, progress, run_to_end, time_text, with_store
from entrypoints.commands.working import at_work
from entrypoints.config import Config
from ports.dead_letters import Letter, LetterDetail, LetterFilter, LetterGroup, Retry
from ports.store import Store

_DETAIL_SHOWN = 100
_POLL_SECONDS = 0.2
T = TypeVar("T")


def list_letters(config: Config, filter: LetterFilter, *, limit: int, as_json: bool) -> None:
    """Print the newest letters of a filter."""
    letters = with_store(config, lambda store: store.letters(filter, limit=limit))
    if as_json:
        print_json(letters)
        return
    table = Table("id", "status", "event", "product", "SKUs", "failed", "attempts", "last failed", "because")
    for each in letters:
        event, skus = f"{each.event_type} {each.event_id}", ", ".join(each.skus)
        because = each.detail if len(each.detail) <= _DETAIL_SHOWN else f"{each.detail[:_DETAIL_SHOWN]}…"
        row = (each.id, each.status, event, each.product_id or "", skus, each.code, str(each.attempts))
        table.add_row(*map(Text, (*row, time_text(each.last_failed_at), because)))
    console().print(table)


def list_groups(config: Config, filter: LetterFilter, *, limit: int, as_json: bool) -> None:
    """Print how many letters of a filter failed alike; without a status, of those that are unresolved."""
    if filter.status is None:
        filter = replace(filter, status="UNRESOLVED")
    groups: list[LetterGroup] = with_store(config, lambda store: store.letter_groups(filter, limit=limit))
    if as_json:
        print_json(groups)
        return
    table = Table("group", "letters", "failed", "first failed", "last failed", "cause", "for example")
    for each in groups:
        times = (time_text(each.first_failed_at), time_text(each.last_failed_at))
        table.add_row(*map(Text, (each.group_id, str(each.count), each.code, *times, each.cause, each.example_id)))
    console().print(table)


def show(config: Config, id: str, *, as_json: bool) -> None:
    """Print all there is to know of a letter.

    Raises:
        NotFound: there is none of that id.
    """

    async def read(store: Store) -> LetterDetail:
        if (letter := await store.letter(id)) is None:
            raise NotFound(f"There is no dead letter {id}; `inventory dead-letters list` names them.")
        return letter

    _print_detail(with_store(config, read), as_json=as_json)


def retry_one(config: Config, id: str, *, reason: str | None, as_json: bool) -> int:
    """Try a letter now, print it, and return the exit code: 1 if it failed again."""
    letter = _at_work(config, lambda letters, *_: letters.retry(id, act(reason)))
    _print_detail(letter, as_json=as_json)
    return 0 if letter.status == "RESOLVED" else 1


def retry_many(
    config: Config, which: LetterFilter | Sequence[str], *, reason: str | None, canary: bool, as_json: bool
) -> int:
    """Try letters now, with a progress bar, and return the exit code: 1 if some failed again.

    Consumers that run help. Broken off, what has not been tried is unresolved again.
    """

    async def work(_: DeadLetters, redelivery: Redelivery, store: Store) -> Retry:
        retry = await store.begin_retry(which, act(reason), canary=canary)
        try:
            return await _watch(store, redelivery, retry)
        except asyncio.CancelledError:
            await store.cancel_retry(retry.id, act("broken off"))
            raise

    retry = _at_work(config, work)
    if as_json:
        print_json(retry)
    else:
        told = f"{retry.id} {retry.status}: {retry.succeeded} of {retry.total} succeeded, {retry.failed} failed again"
        click.echo(f"{told}, {retry.total - retry.succeeded - retry.failed} were left alone.")
    return 0 if retry.succeeded == retry.total else 1


def edit(config: Config, id: str, body: Any, *, reason: str, as_json: bool) -> int:
    """Replace a letter by one with another body, try and print that, and return the exit code: 1 if it failed."""
    letter = _at_work(config, lambda letters, *_: letters.edit(id, body, act(reason)))
    _print_detail(letter, as_json=as_json)
    return 0 if letter.status == "RESOLVED" else 1


def discard(config: Config, ids: Sequence[str], *, reason: str, as_json: bool) -> None:
    """Decide against letters."""
    _decide(config, ids, lambda store, id: store.discard_letter(id, act(reason)), as_json=as_json)


def restore(config: Config, ids: Sequence[str], *, reason: str, as_json: bool) -> None:
    """Take that back."""
    _decide(config, ids, lambda store, id: store.restore_letter(id, act(reason)), as_json=as_json)


def read_body(config: Config, id: str, path: str | None) -> Any:
    """Return the new body of a letter: from a file, ``-`` for standard input, else from an editor that has the old one.

    Raises:
        NotFound: there is no letter of that id.
        ValidationFailed: it is no JSON object, or the editor was left without a change.
    """
    if path is None:
        letter = with_store(config, lambda store: store.letter(id))
        if letter is None:
            raise NotFound(f"There is no dead letter {id}; `inventory dead-letters list` names them.")
        before = letter.body
        with suppress(msgspec.DecodeError):
            before = msgspec.json.format(letter.body, indent=2)
        if (text := click.edit(before, extension=".json")) is None:
            raise ValidationFailed("Nothing was changed.")
    else:
        with click.open_file(path) as file:
            text = file.read()
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise ValidationFailed(f"The body is not a JSON object: {error}.") from error


def _decide(
    config: Config, ids: Sequence[str], decide: Callable[[Store, str], Awaitable[Letter]], *, as_json: bool
) -> None:
    async def work(store: Store) -> list[Letter]:
        return [await decide(store, id) for id in ids]

    letters = with_store(config, work)
    if as_json:
        print_json(letters)
        return
    for each in letters:
        click.echo(f"{each.id} is {each.status}.")


def _at_work(config: Config, work: Callable[[DeadLetters, Redelivery, Store], Awaitable[T]]) -> T:
    """Do ``work`` so that every reader hears of it."""

    async def main() -> T:
        async with at_work(config) as (container, store, here):
            if here:
                return await work(await container.get(DeadLetters), await container.get(Redelivery), store)
            writer, products = await container.get(Writer), await container.get(Products)
            elsewhere = Elsewhere(store, writer, products, process=NAME)
            return await work(DeadLetters(store, elsewhere), elsewhere, store)

    return run_to_end(main())


async def _watch(store: Store, redelivery: Redelivery, retry: Retry) -> Retry:
    """Work on a retry and tell how far it is, until it has ended and nobody has any of it in hand."""
    with progress("Trying dead letters", TimeElapsedColumn()) as bars:
        bar = bars.add_task("", total=retry.total)
        while retry.ended_at is None:
            tried = await redelivery.turn()
            retry = await store.retry(retry.id) or retry
            bars.update(bar, completed=retry.total - retry.left)
            if not tried and retry.ended_at is None:
                await asyncio.sleep(_POLL_SECONDS)
    return retry


def _print_detail(letter: LetterDetail, *, as_json: bool) -> None:
    if as_json:
        print_json(letter)
        return
    screen = console()
    table = Table(letter.id, "")
    for name, value in _facts(letter).items():
        if value:
            table.add_row(name, Text(value))
    screen.print(table)
    _print_history(screen, letter)
    coded = letter.body_encoding == "base64"
    screen.print(Text(f"{letter.body_bytes} bytes, in base64: {letter.body}" if coded else letter.body))


def _facts(letter: LetterDetail) -> dict[str, str]:
    applied = letter.applied
    return {
        "status": letter.status,
        "next attempt": time_text(letter.next_attempt_at),
        "event": f"{letter.event_type} {letter.event_id}",
        "product": f"{letter.product_id or 'unknown'}, SKUs {', '.join(letter.skus) or 'unknown'}",
        "message": f"{letter.message_id} of {letter.exchange}, routing key {letter.routing_key}",
        "correlation id": letter.correlation_id,
        "headers": ", ".join(f"{name}: {value}" for name, value in letter.headers.items()),
        "failed": f"{letter.code}: {letter.detail}",
        "group": letter.group_id,
        "applied already": "no" if applied is None else f"{applied.verdict} {time_text(applied.received_at)}",
        "edited from": letter.edited_from or "",
        "replaced by": letter.replaced_by or "",
        "note": letter.note or "",
    }


def _print_history(screen: Console, letter: LetterDetail) -> None:
    table = Table("at", "what", "who", "about it")
    rows = [(each.at, f"attempt {each.number}: {each.outcome}", each.process, each.detail) for each in letter.history]
    rows += [(each.at, each.action, each.actor, each.reason or "") for each in letter.acts]
    for at, *words in sorted(rows, key=lambda row: row[0]):
        table.add_row(time_text(at), *map(Text, words))
    screen.print(table)
