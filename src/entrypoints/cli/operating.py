"""Looking into a deployment: what is wrong, what is set, and a token to call it with."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import rich_click as click

from entrypoints.cli.options import SETTINGS, with_as_json, with_settings

if TYPE_CHECKING:
    from entrypoints.config import Config

ROLES = ("product-service", "product-events", "inventory-operator", "inventory-admin", "inventory-service")


@click.command()
@with_as_json
@with_settings("store", "broker", "cache", "data_dir")
def doctor(config: "Config", *, as_json: bool) -> None:
    """Try store, broker, cache, Product Service and tokens; say what is wrong and what to do. Changes nothing."""
    from entrypoints.commands.doctor import run

    run(config, as_json=as_json)


@click.command()
@click.option("--role", "roles", type=click.Choice(ROLES), multiple=True, required=True, help="May be repeated.")
@click.option("--subject", default="inventory-cli", show_default=True, help="Whom the token speaks for.")
@click.option("--lifetime", type=click.IntRange(min=1), help="Seconds; as long as accepted when left out.")
@with_settings("store", "broker", "data_dir")
def token(config: "Config", roles: Sequence[str], subject: str, lifetime: int | None) -> None:
    """Print a token for calling the service."""
    from entrypoints.config import SettingError, with_secret

    config = with_secret(config)
    from adapters.tokens.signing import mint, split_secrets

    if not config.auth_secret:
        raise SettingError(
            "Tokens are signed with INVENTORY_AUTH_SECRET, which is not set; INVENTORY_AUTH_JWKS only verifies."
        )
    if lifetime is not None and lifetime > config.auth_lifetime_max:
        raise SettingError(
            f"--lifetime {lifetime} is more than the service accepts: INVENTORY_AUTH_LIFETIME_MAX is "
            f"{config.auth_lifetime_max} seconds."
        )
    click.echo(
        mint(
            split_secrets(config.auth_secret)[0],
            issuer=config.auth_issuer[0],
            audience=config.auth_audience,
            subject=subject,
            roles=roles,
            lifetime=lifetime or config.auth_lifetime_max,
        )
    )


@click.group()
def config() -> None:
    """Look at the settings."""


@config.command()
@with_as_json
@with_settings(*SETTINGS)
def show(config: "Config", *, as_json: bool) -> None:
    """Show every setting, its value, and where it comes from; secrets are masked."""
    if as_json:
        import msgspec

        shown = {line.name: line._asdict() for line in config.show()}
        click.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("setting", "value", "from", "meaning")
    for line in config.show():
        table.add_row(*map(Text, line))
    Console(width=None if sys.stdout.isatty() else 200).print(table)
