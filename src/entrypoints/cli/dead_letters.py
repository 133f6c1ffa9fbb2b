"""``inventory dead-letters`` and its options."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any

import rich_click as click

from entrypoints.cli.options import converted, with_as_json, with_reason, with_settings

if TYPE_CHECKING:
    from entrypoints.config import Config
    from ports.dead_letters import LetterFilter


@click.group("dead-letters")
def dead_letters() -> None:
    """Look at the messages that failed, try them again, edit, discard or restore them."""


def _with_filter(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that choose letters; it gets the ``LetterFilter`` that follows as ``filter``."""
    options = {
        "--status": "UNRESOLVED, WAITING, RETRYING, RESOLVED or DISCARDED.",
        "--id": "The id of the letter, of its message or of its event.",
        "--correlation-id": "The correlation id.",
        "--type": "The event's type.",
        "--code": "The error's code.",
        "--text": "What stands in the error's sentence.",
        "--group-id": "The group, as `list --groups` names it.",
        "--sku": "A SKU in it.",
        "--product-id": "The product.",
        "--since": "Failed last then or later, such as 2026-11-23T10:00:00Z.",
        "--until": "Failed last before then.",
    }

    @wraps(command)
    def filtered(**arguments: Any) -> None:
        from ports.dead_letters import LetterFilter

        names = [name.lstrip("-").replace("-", "_") for name in options]
        filter = converted({name: arguments.pop(name) for name in names}, LetterFilter)
        command(filter=filter, **arguments)

    decorated: Callable[..., None] = filtered
    for name, text in reversed(options.items()):
        decorated = click.option(name, metavar="TEXT", help=text)(decorated)
    return decorated


@dead_letters.command("list")
@_with_filter
@click.option("--groups", is_flag=True, help="Count what failed alike and is unresolved, or has --status.")
@click.option("--limit", type=click.IntRange(min=1, max=10_000), default=20, show_default=True, help="How many.")
@with_as_json
@with_settings("store", "data_dir")
def letters_list(config: "Config", filter: "LetterFilter", *, groups: bool, limit: int, as_json: bool) -> None:
    """List dead letters, the newest first."""
    from entrypoints.commands.dead_letters import list_groups, list_letters

    if groups:
        list_groups(config, filter, limit=limit, as_json=as_json)
    else:
        list_letters(config, filter, limit=limit, as_json=as_json)


@dead_letters.command("show")
@click.argument("letter")
@with_as_json
@with_settings("store", "data_dir")
def letters_show(config: "Config", letter: str, *, as_json: bool) -> None:
    """Show a dead letter: body, cause, every attempt, what was done to it, whether it was applied already."""
    from entrypoints.commands.dead_letters import show

    show(config, letter, as_json=as_json)


@dead_letters.command("retry")
@click.argument("letters", nargs=-1)
@_with_filter
@click.option("--all", "everything", is_flag=True, help="All that are unresolved.")
@click.option("--canary/--no-canary", default=True, show_default=True, help="Try one of many first.")
@click.option("--reason", help="Why it should work now.")
@with_as_json
@with_settings("store", "broker", "data_dir")
def letters_retry(
    config: "Config",
    filter: "LetterFilter",
    *,
    letters: Sequence[str],
    everything: bool,
    canary: bool,
    reason: str | None,
    as_json: bool,
) -> None:
    """Try dead letters again: one, several, or those of a filter. Exit code 1: some failed again."""
    from core.errors import ValidationFailed
    from entrypoints.commands.dead_letters import retry_many, retry_one
    from ports.dead_letters import LetterFilter

    if bool(letters) + (filter != LetterFilter()) + everything != 1:
        raise ValidationFailed("Name letters, or a filter, or --all.")
    if len(letters) == 1:
        sys.exit(retry_one(config, letters[0], reason=reason, as_json=as_json))
    sys.exit(retry_many(config, letters or filter, reason=reason, canary=canary, as_json=as_json))


@dead_letters.command("edit")
@click.argument("letter")
@click.option("--body", metavar="FILE", help="The whole event as it should be, - for standard input; else an editor.")
@with_reason
@with_as_json
@with_settings("store", "broker", "data_dir")
def letters_edit(config: "Config", letter: str, *, body: str | None, reason: str, as_json: bool) -> None:
    """Replace a dead letter by one with another body and try that. Exit code 1: it failed again."""
    from entrypoints.commands.dead_letters import edit, read_body

    sys.exit(edit(config, letter, read_body(config, letter, body), reason=reason, as_json=as_json))


@dead_letters.command("discard")
@click.argument("letters", nargs=-1, required=True)
@with_reason
@with_as_json
@with_settings("store", "data_dir")
def letters_discard(config: "Config", letters: Sequence[str], *, reason: str, as_json: bool) -> None:
    """Decide against dead letters; they can be restored for 90 days."""
    from entrypoints.commands.dead_letters import discard

    discard(config, letters, reason=reason, as_json=as_json)


@dead_letters.command("restore")
@click.argument("letters", nargs=-1, required=True)
@with_reason
@with_as_json
@with_settings("store", "data_dir")
def letters_restore(config: "Config", letters: Sequence[str], *, reason: str, as_json: bool) -> None:
    """Take back that dead letters were discarded."""
    from entrypoints.commands.dead_letters import restore

    restore(config, letters, reason=reason, as_json=as_json)
