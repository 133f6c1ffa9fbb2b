"""Settings: read once, checked whole, and able to say where each value came from.

Arguments win over the environment (``INVENTORY_*``), that over ``inventory.toml`` (in the working directory, or the
file ``INVENTORY_CONFIG`` names), that over the defaults. A name nobody knows is an error, because a misspelt setting
that is silently ignored is found in production. An empty environment variable counts as not set.

In the file a setting may be written ``data_dir`` or ``dataDir``, at the top or in the table ``[inventory]``.
"""

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from adapters.telemetry import HIDDEN, mask
from core.catalog.products import Policy
from core.errors import ValidationFailed
from core.events import Payload
from core.findings import Repairs

PREFIX = "INVENTORY_"
FILE = "inventory.toml"
_SECRETS = frozenset({"auth_secret", "catalog_secret"})
_DOTTED = {"integration.productService.url": "catalog"}
"""The specification's keys that are not their setting's name in camel case."""
_EVENT_TYPES = tuple(sorted(payload.__name__ for payload in Payload.__subclasses__()))


class SettingError(ValidationFailed, ValueError):
    """A setting is wrong; the sentence names it and says what is allowed."""


def _text(description: str, allowed: str = "text without line breaks") -> Meta:
    return Meta(description=description, pattern=r"^[^\x00-\x1f\x7f]*$", extra={"allowed": allowed})


def _number(description: str, least: int, most: int) -> Meta:
    return Meta(description=description, ge=least, le=most, extra={"allowed": f"a whole number, {least} to {most}"})


def _choice(description: str, *words: str) -> Meta:
    return Meta(description=description, extra={"allowed": f"among {', '.join(words)}", "words": words})


class Config(Struct, frozen=True, kw_only=True):
    """Every setting; ``origins`` says where each came from, such as ``environment INVENTORY_PORT``."""

    store: Annotated[str, _text("Where stock is kept: sqlite:///<file> or postgresql://…", "a URL")] = ""
    broker: Annotated[str, _text("Where events go: memory:// or amqp://…", "a URL")] = "memory://"
    cache: Annotated[str, _text("Where reads are kept near: memory://, redis://… or none:", "a URL")] = "memory://"
    catalog: Annotated[str, _text("Where the Product Service is: http(s)://…, or memory:// for none", "a URL")] = (
        "memory://"
    )
    catalog_secret: Annotated[str, _text("What our tokens for the Product Service are signed with (HS256)")] = ""
    catalog_key: Annotated[str, _text("The same by a private key: a PEM file (EC P-256, Ed25519, RSA)", "a file")] = ""
    catalog_audience: Annotated[str, _text("The audience of our tokens for the Product Service")] = "product-service"
    catalog_health_path: Annotated[str, _text("Where the Product Service says how it is", "a path")] = "/health"
    catalog_list_path: Annotated[str, _text("Where it lists its products; empty where it does not", "a path")] = ""
    catalog_health_seconds: Annotated[int, _number("How often it is asked that, in seconds; 0 for never", 0, 3_600)] = (
        15
    )
    catalog_timeout_ms: Annotated[int, _number("How long a question to it may take, in milliseconds", 50, 60_000)] = (
        3_000
    )
    catalog_policy: Annotated[
        str,
        _choice(
            "What items may be made of products nobody here has heard of: of those the Product Service has (strict), "
            "of any while it is away (lenient), of any (off); auto is lenient with a Product Service, else off",
            "auto",
            "strict",
            "lenient",
            "off",
        ),
    ] = "auto"
    host: Annotated[str, _text("The address to serve HTTP on", "an address of this machine")] = "127.0.0.1"
    port: Annotated[int, _number("The port to serve HTTP on; 0 takes a free one", 0, 65_535)] = 8_000
    workers: Annotated[int, _number("How many processes serve HTTP", 1, 64)] = 1
    drain_seconds: Annotated[
        int, _number("How long to go on serving, and say not ready, once told to stop, in seconds", 0, 300)
    ] = 0
    data_dir: Annotated[str, _text("Where embedded mode keeps its files", "a directory")] = ".inventory"
    auth_secret: Annotated[str, _text("Token secrets (HS256), between commas: all verify, the first signs")] = ""
    auth_jwks: Annotated[
        str, _text("The public keys that tokens are verified with: a JWKS file, or https://…", "a file or a URL")
    ] = ""
    auth_jwks_seconds: Annotated[int, _number("How often a JWKS URL is looked at again, in seconds", 1, 86_400)] = 300
    auth_issuer: Annotated[tuple[str, ...], _text("Trusted issuers, between commas; our tokens carry the first")] = (
        "inventory-service",
    )
    auth_audience: Annotated[str, _text("The audience a token must be meant for")] = "inventory-service"
    auth_lifetime_max: Annotated[int, _number("The longest life of an accepted token, in seconds", 60, 604_800)] = 3_600
    log_level: Annotated[str, _choice("From where on a log line is written", "debug", "info", "warning", "error")] = (
        "info"
    )
    idempotency_hours: Annotated[int, _number("How long answers are kept for repeated requests", 1, 8_760)] = 48
    required_events: Annotated[
        tuple[str, ...], _choice("Events that wait until a queue takes them", *_EVENT_TYPES)
    ] = ()
    events_days: Annotated[int, _number("How long published events are kept, in days", 1, 3_650)] = 30
    reconcile_minutes: Annotated[int, _number("How often records are compared, in minutes; 0 for never", 0, 10_080)] = (
        15
    )
    reconcile_repair: Annotated[
        str,
        _choice(
            "What runs that come by themselves repair: nothing (plan), all but what takes stock away or off sale "
            "(safe), or everything (all)",
            "plan",
            "safe",
            "all",
        ),
    ] = "safe"
    reconcile_changes_max: Annotated[
        int, _number("A run with more than so much to repair repairs nothing", 0, 10**6)
    ] = 1_000
    reconcile_percent_max: Annotated[
        int, _number("Nor one with more than this percentage of what it looked at, if that is more than 10", 0, 100)
    ] = 1
    reconcile_rate: Annotated[
        int, _number("Products and rows that runs look at in a second, at most; 0 for no limit", 0, 10**6)
    ] = 10_000
    reconcile_settle_seconds: Annotated[
        int, _number("How long a change at the Product Service may be on its way, in seconds", 0, 3_600)
    ] = 5
    auto_create_on_product_creation: Annotated[
        bool, Meta(description="Make items for new products", extra={"allowed": "true or false"})
    ] = True
    default_warehouses: Annotated[
        tuple[str, ...], _text("Where items of new products are made: warehouse ids between commas")
    ] = ()
    default_reorder_threshold: Annotated[int, _number("Reorder threshold of items made so", 0, 1_000_000_000)] = 10
    default_target_stock_level: Annotated[int, _number("Target level of items made so", 0, 1_000_000_000)] = 50
    origins: dict[str, str] = {}

    @property
    def embedded(self) -> bool:
        """Whether the service runs with nothing installed: everything it needs is in its process and its files."""
        return self.store.startswith("sqlite") and self.broker.startswith("memory:")

    @property
    def policy(self) -> Policy:
        """What ``catalog_policy`` comes to."""
        if self.catalog_policy == "auto":
            return "off" if self.catalog.startswith("memory:") else "lenient"
        return cast("Policy", self.catalog_policy)

    @property
    def repairs(self) -> Repairs:
        """``reconcile_repair`` as reconciliation calls it."""
        return cast("Repairs", self.reconcile_repair)

    @property
    def secret_file(self) -> Path:
        """Where embedded mode keeps the secret it made."""
        return Path(self.data_dir, "auth-secret")

    def __repr__(self) -> str:
        return f"Config({', '.join(f'{line.name}={line.value}' for line in self.show())})"

    def show(self) -> "Iterator[Shown]":
        """Yield every setting as it may be shown: secrets and the passwords in URLs are masked."""
        for name, setting in SETTINGS.items():
            value = getattr(self, name)
            text = ", ".join(value) if isinstance(value, tuple) else mask(str(value))
            yield Shown(
                PREFIX + name.upper(),
                HIDDEN if name in _SECRETS and value else text,
                self.origins.get(name, "default"),
                setting.description,
            )


class Shown(NamedTuple):
    """One setting for people to read."""

    name: str
    value: str
    origin: str
    description: str


class Setting(NamedTuple):
    """What is known of a setting beside its value."""

    type: Any
    meta: Meta

    @property
    def description(self) -> str:
        """What it is for, in one line."""
        return self.meta.description or ""

    @property
    def extra(self) -> dict[str, Any]:
        """``allowed``, in words, and the ``words`` to choose from, where it is a choice."""
        return self.meta.extra or {}


SETTINGS = {
    name: Setting(*get_args(hint))
    for name, hint in get_type_hints(Config, include_extras=True).items()
    if get_origin(hint) is Annotated
}


def load(
    arguments: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] = os.environ,
    toml_path: str | Path | None = None,
) -> Config:
    """Read the settings. ``arguments`` are by setting name, None for not given.

    Raises:
        SettingError: a name is unknown, a value is not allowed, or the file cannot be read.
    """
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for name, value, origin in (
        *_from_file(toml_path or environ.get(f"{PREFIX}CONFIG") or None),
        *_from_environment(environ),
        *((name, value, f"argument --{name.replace('_', '-')}") for name, value in (arguments or {}).items()),
    ):
        if value not in (None, ""):
            values[name] = _parsed(name, value, origin)
            origins[name] = origin
    config = Config(**values, origins=origins)
    return config if config.store else replace(config, store=f"sqlite:///{config.data_dir}/inventory.db")


def check_processes(config: Config, command: str) -> Config:
    """Refuse to share among processes what lives in one (rule R8); return the settings that ``command`` runs with.

    A cache in memory is not refused but left out: without it every read goes to the store. So it is where nobody asked
    for one and others may run on the same store.

    Raises:
        SettingError: ``command`` would run beside others, or as several, with something kept in memory.
    """
    if command in ("api", "consumer", "reconciler"):
        several, instead = f"`inventory {command}` is one process of several", "run `inventory serve`"
    elif config.workers > 1:
        several, instead = f"INVENTORY_WORKERS={config.workers} means several processes", "run one worker"
    else:
        if config.embedded or "cache" in config.origins:
            return config
        return replace(config, cache="none:", origins={**config.origins, "cache": "a store that others may share"})
    if config.broker.startswith("memory:") and command != "reconciler":
        raise SettingError(
            f"{several}, and a memory:// broker lives in one: set INVENTORY_BROKER to amqp://…, or {instead}."
        )
    if config.store.rstrip("/").removesuffix(":memory:").rstrip("/") == "sqlite:":
        raise SettingError(
            f"{several}, and a SQLite database in memory lives in one: set INVENTORY_STORE, or {instead}."
        )
    if config.cache.startswith("memory:"):
        return replace(config, cache="none:", origins={**config.origins, "cache": "one process of several"})
    return config


def with_secret(config: Config) -> Config:
    """Return ``config`` with a key to verify tokens with; embedded mode makes its own, kept in ``secret_file``.

    Raises:
        ValidationFailed: there is none and none may be made, or the file is unfit.
    """
    if config.auth_secret or config.auth_jwks:
        return config
    if not config.embedded:
        raise SettingError(
            "There is no key to verify tokens with: set INVENTORY_AUTH_SECRET (random text of at least 32 bytes, as "
            "`openssl rand -base64 32` prints) or INVENTORY_AUTH_JWKS. Only with a sqlite store and a memory:// broker "
            "is one generated."
        )
    from adapters.tokens.signing import generate_secret  # here, because cryptography is slow to import

    origins = {**config.origins, "auth_secret": f"generated in {config.secret_file}"}
    return replace(config, auth_secret=generate_secret(config.secret_file), origins=origins)


def as_environment(config: Config) -> dict[str, str]:
    """Return the settings as environment variables, for a process that must run with the same."""
    values = {name: getattr(config, name) for name in SETTINGS}
    return {
        PREFIX + name.upper(): ",".join(value) if isinstance(value, tuple) else str(value)
        for name, value in values.items()
    }


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    # Kubernetes adds INVENTORY_SERVICE_HOST and more where a service is called "inventory".
    hint = "; if Kubernetes put it there, set enableServiceLinks: false" if "KUBERNETES_SERVICE_HOST" in environ else ""
    for variable, value in environ.items():
        name = variable.removeprefix(PREFIX).lower()
        if not variable.startswith(PREFIX) or name == "config" or name.startswith("test_"):
            continue
        if name not in SETTINGS:
            raise SettingError(
                f"The environment variable {variable} is no setting of this service{_nearest(name, PREFIX)}{hint}."
            )
        yield name, value, f"environment {variable}"


def _from_file(path: str | Path | None) -> Iterator[tuple[str, Any, str]]:
    file = Path(path or FILE)
    if path is None and not file.exists():
        return
    try:
        content = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"The settings file {file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise SettingError(f"The settings file {file} is not TOML: {error}.") from None
    for key, value in _flat(content):
        spelt = _DOTTED.get(key, key.removeprefix("inventory."))
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", spelt).lower()
        if name not in SETTINGS:
            raise SettingError(f"{key} in {file} is no setting of this service{_nearest(name)}.")
        yield name, value, str(file)


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _nearest(name: str, prefix: str = "") -> str:
    found = get_close_matches(name, SETTINGS, n=1)
    if not found:
        return ""
    return f"; did you mean {prefix + found[0].upper() if prefix else found[0]}"


def _parsed(name: str, value: Any, origin: str) -> Any:
    setting = SETTINGS[name]
    value = value.strip() if isinstance(value, str) else value
    try:
        if setting.type is int:
            return msgspec.convert(value, Annotated[int, setting.meta], strict=False)
        if setting.type is bool:
            return msgspec.convert(value, bool, strict=False)
        if setting.type is str:
            return _word(setting, value)
        parts = value.split(",") if isinstance(value, str) else msgspec.convert(value, list[str])
        return tuple(_word(setting, part.strip()) for part in parts if part.strip())
    except (msgspec.ValidationError, KeyError):
        shown = "" if name in _SECRETS else f" {mask(str(value))!r}"
        raise SettingError(
            f"{PREFIX}{name.upper()} cannot be{shown} ({origin}); it must be {setting.extra['allowed']}."
        ) from None


def _word(setting: Setting, value: Any) -> str:
    text: str = msgspec.convert(value, Annotated[str, setting.meta])
    words: dict[str, str] = {word.lower(): word for word in setting.extra.get("words", ())}
    return words[text.lower()] if words else text
