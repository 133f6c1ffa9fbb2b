"""``inventory outbox``: what waits to go out, what no broker takes, and having published events go out again."""

import asyncio

import rich_click as click
from rich.table import Table
from rich.text import Text

from entrypoints.commands.terminal import act, console, print_json, progress, time_text, with_store
from entrypoints.config import Config
from ports.outbox import Backlog
from ports.replays import BlockedEvent, Replay, ReplayRange
from ports.store import Store

_SHOWN_MAX = 1_000
_POLL_SECONDS = 0.5


def show(config: Config, *, as_json: bool) -> None:
    """Print what waits and what is blocked."""

    async def read(store: Store) -> tuple[Backlog, list[BlockedEvent]]:
        return await store.backlog(), await store.blocked(_SHOWN_MAX)

    backlog, blocked = with_store(config, read)
    if as_json:
        print_json({"waiting": backlog.count, "oldestAt": backlog.oldest_at, "blocked": blocked})
        return
    if blocked:
        table = Table("blocked event", "type", "product", "sequence", "waiting", "since", "because")
        for each in blocked:
            numbers = (str(each.sequence), str(each.waiting))
            words = (each.event_id, each.event_type, each.product_id, *numbers, time_text(each.blocked_at), each.reason)
            table.add_row(*map(Text, words))
        console().print(table)
    since = f", the first since {time_text(backlog.oldest_at)}" if backlog.oldest_at else ""
    click.echo(f"{backlog.count} events wait to be published{since}; {len(blocked)} are blocked.")


def release(config: Config, event_id: str, *, reason: str, skip: bool, as_json: bool) -> None:
    """Let a blocked event's product go on."""
    event = with_store(config, lambda store: store.release_blocked(event_id, act(reason), skip=skip))
    if as_json:
        print_json(event)
    else:
        click.echo(f"{event.event_id} is {'skipped' if skip else 'tried again'}; product {event.product_id} goes on.")


def replay(config: Config, chosen: ReplayRange, *, reason: str, wait: bool, as_json: bool) -> None:
    """Have events published again by the relay, and watch it unless told not to; broken off, it goes on."""

    async def work(store: Store) -> Replay:
        begun = await store.begin_replay(chosen, act(reason))
        return await _watch(store, begun) if wait else begun

    done = with_store(config, work)
    if as_json:
        print_json(done)
    else:
        click.echo(f"{done.id} {done.status}: {done.published} of {done.total} events went out again.")


async def _watch(store: Store, replay: Replay) -> Replay:
    with progress("Publishing again") as bars:
        bar = bars.add_task("", total=replay.total)
        while replay.ended_at is None:
            await asyncio.sleep(_POLL_SECONDS)
            replay = await store.replay(replay.id) or replay
            bars.update(bar, completed=replay.published)
    return replay
