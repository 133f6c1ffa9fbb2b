"""``inventory outbox`` and its options."""

from typing import TYPE_CHECKING, Any

import rich_click as click

from entrypoints.cli.options import converted, with_as_json, with_reason, with_settings

if TYPE_CHECKING:
    from entrypoints.config import Config


@click.group()
def outbox() -> None:
    """Look at events on their way out, release blocked ones, publish others again."""


@outbox.command("show")
@with_as_json
@with_settings("store", "data_dir")
def outbox_show(config: "Config", *, as_json: bool) -> None:
    """Show what waits to be published, and the events that no broker takes."""
    from entrypoints.commands.outbox import show

    show(config, as_json=as_json)


@outbox.command("release")
@click.argument("event")
@click.option("--skip", is_flag=True, help="Never publish it, instead of trying again.")
@with_reason
@with_as_json
@with_settings("store", "data_dir")
def outbox_release(config: "Config", event: str, *, skip: bool, reason: str, as_json: bool) -> None:
    """Let a blocked event's product go on."""
    from entrypoints.commands.outbox import release

    release(config, event, reason=reason, skip=skip, as_json=as_json)


@outbox.command("replay")
@click.option("--from-position", type=click.IntRange(min=0), help="The first position.")
@click.option("--to-position", type=click.IntRange(min=0), help="The last position.")
@click.option("--since", help="Published then or later, such as 2026-11-23T10:00:00Z.")
@click.option("--until", help="Published before then.")
@click.option("--product-id", help="Events of this product only.")
@click.option("--wait/--no-wait", default=True, show_default=True, help="Watch until the relay has done it.")
@with_reason
@with_as_json
@with_settings("store", "data_dir")
def outbox_replay(config: "Config", *, wait: bool, reason: str, as_json: bool, **bounds: Any) -> None:
    """Have the relay publish events again, with the same eventIds. Published events are kept 30 days."""
    from core.errors import ValidationFailed
    from entrypoints.commands.outbox import replay
    from ports.replays import ReplayRange

    chosen = converted(bounds, ReplayRange)
    if chosen == ReplayRange():
        raise ValidationFailed("Name at least one bound.")
    replay(config, chosen, reason=reason, wait=wait, as_json=as_json)
