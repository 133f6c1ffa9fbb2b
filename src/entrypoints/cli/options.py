"""Options that several commands have: how to print, how many, why, and the settings."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

if TYPE_CHECKING:
    from msgspec import Struct

T = TypeVar("T", bound="Struct")

SETTINGS = {
    "host": "The address to serve HTTP on.",
    "port": "The port to serve HTTP on; 0 takes a free one.",
    "store": "The store's URL.",
    "broker": "The broker's URL.",
    "cache": "The cache's URL.",
    "data_dir": "Where embedded mode keeps its files.",
    "log_level": "debug, info, warning or error.",
}

with_as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
with_limit = click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="How many.")
with_reason = click.option("--reason", required=True, help="Why.")


def with_settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options that set settings; it gets the ``Config`` that follows as ``config``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def configured(config: str | None, **arguments: Any) -> None:
            from entrypoints.config import load

            settings = {name: arguments.pop(name) for name in names}
            command(config=load(settings, toml_path=config), **arguments)

        decorated: Callable[..., None] = click.option("--config", metavar="FILE", help="A settings file.")(configured)
        for name in reversed(names):
            option = click.option(f"--{name.replace('_', '-')}", metavar="TEXT", help=SETTINGS[name])
            decorated = option(decorated)
        return decorated

    return decorate


def converted(options: dict[str, Any], kind: type[T]) -> T:
    """Return the options that were given as what they are on the wire."""
    import msgspec

    from core.errors import ValidationFailed

    wire = dict(zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True))
    try:
        return msgspec.convert({wire[name]: value for name, value in options.items() if value is not None}, kind)
    except msgspec.ValidationError as error:
        raise ValidationFailed(f"That is no filter: {error}.") from error
