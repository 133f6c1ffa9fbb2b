"""Settings: where they come from, which of them wins, and what is said when one is wrong."""

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from adapters.tokens.signing import split_secrets
from core import events
from core.errors import ValidationFailed
from entrypoints.config import Config, SettingError, as_environment, check_processes, load, with_secret
from entrypoints.wiring import connect_catalog

SECRET = "known-to-the-tests-and-to-nobody-else"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder, so that nobody's settings file is read."""
    monkeypatch.chdir(tmp_path)


def read(arguments: dict[str, Any] | None = None, *, toml: str | None = None, **environ: str) -> Config:
    """Load from these sources alone."""
    if toml is not None:
        Path("inventory.toml").write_text(toml)
    return load(arguments, environ={f"INVENTORY_{name.upper()}": value for name, value in environ.items()})


def refusal(*arguments: Any, **sources: Any) -> str:
    """Return the sentence that these sources are refused with."""
    with pytest.raises(SettingError) as error:
        read(*arguments, **sources)
    return str(error.value)


def test_without_settings_everything_is_embedded() -> None:
    """Nothing set means SQLite under the data directory, the in-process broker, and this machine only."""
    config = read()

    assert (config.store, config.broker) == ("sqlite:///.inventory/inventory.db", "memory://")
    assert (config.host, config.port, config.workers) == ("127.0.0.1", 8_000, 1)
    assert config.embedded


def test_arguments_win_over_environment_over_file_over_defaults() -> None:
    """Each source overrides the next, setting by setting, and is remembered."""
    config = read({"port": "4", "host": None}, toml="port = 2\nhost = '::1'\nworkers = 2", port="3", workers="5")
    from_where = {shown.name: shown.origin for shown in config.show()}

    assert (config.port, config.workers, config.host) == (4, 5, "::1")
    assert from_where["INVENTORY_PORT"] == "argument --port"
    assert from_where["INVENTORY_WORKERS"] == "environment INVENTORY_WORKERS"
    assert from_where["INVENTORY_HOST"] == "inventory.toml"
    assert from_where["INVENTORY_BROKER"] == "default"


@pytest.mark.parametrize(
    "toml", ["data_dir = 'd'", "dataDir = 'd'", "[inventory]\ndataDir = 'd'", "inventory.data_dir = 'd'"]
)
def test_the_file_may_spell_a_setting_either_way(toml: str) -> None:
    """Flat or in the table, with underscores or in the specification's camel case."""
    assert read(toml=toml).data_dir == "d"


def test_the_default_store_follows_the_data_directory(tmp_path: Path) -> None:
    """An absolute directory makes an absolute path in the URL."""
    assert read(data_dir=str(tmp_path)).store == f"sqlite:///{tmp_path}/inventory.db"


def test_another_file_can_be_named(tmp_path: Path) -> None:
    """INVENTORY_CONFIG takes the place of inventory.toml, and an argument that of both."""
    (tmp_path / "a.toml").write_text("port = 1")
    (tmp_path / "b.toml").write_text("port = 2")

    assert read(toml="port = 3", config="a.toml").port == 1
    assert load(environ={"INVENTORY_CONFIG": "a.toml"}, toml_path="b.toml").port == 2
    assert "nowhere.toml cannot be read" in refusal(config="nowhere.toml")


def test_an_empty_variable_is_not_set() -> None:
    """What a compose file leaves empty keeps its default."""
    assert read(port="", broker="", config="") == read()


def test_the_tests_own_variables_are_left_alone() -> None:
    """INVENTORY_TEST_* belongs to the test suite."""
    assert read(test_postgresql_url="postgresql://x") == read()


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ({"prot": "1"}, "INVENTORY_PROT is no setting of this service; did you mean INVENTORY_PORT."),
        ({"zzz": "1"}, "INVENTORY_ZZZ is no setting of this service."),
        ({"toml": "inventory.dataDri = 1"}, "inventory.dataDri in inventory.toml is no setting of this service; did"),
        ({"toml": "port ="}, "The settings file inventory.toml is not TOML"),
        ({"port": "http"}, "INVENTORY_PORT cannot be 'http' (environment INVENTORY_PORT); it must be a whole number"),
        ({"port": "65536"}, "it must be a whole number, 0 to 65535"),
        ({"port": "80.5"}, "it must be a whole number, 0 to 65535"),
        ({"toml": "port = true"}, "INVENTORY_PORT cannot be 'True' (inventory.toml); it must be a whole number"),
        ({"toml": "store = 1"}, "INVENTORY_STORE cannot be '1' (inventory.toml); it must be a URL"),
        ({"store": "a\nb"}, "it must be a URL"),
        ({"log_level": "loud"}, "it must be among debug, info, warning, error"),
        ({"required_events": "OutOfStock,Sold"}, "it must be among BackInStock, LowStockThresholdReached, "),
        ({"idempotency_hours": "0"}, "it must be a whole number, 1 to 8760"),
    ],
)
def test_what_is_wrong_is_one_sentence(sources: dict[str, str], sentence: str) -> None:
    """It names the setting, its value, where that comes from, and what is allowed."""
    assert sentence in refusal(**sources)


def test_a_secret_is_not_repeated_in_an_error() -> None:
    """Neither a bad secret nor a bad URL's password is printed."""
    assert "hush" not in refusal(auth_secret="hush\x00hush")
    assert "hush" not in refusal(store="postgresql://user:hush@host/\x00")


def test_kubernetes_own_variables_are_explained() -> None:
    """A service called "inventory" gives its pods INVENTORY_SERVICE_HOST; the sentence says how to prevent that."""
    environ = {"INVENTORY_SERVICE_HOST": "10.0.0.1", "KUBERNETES_SERVICE_HOST": "10.0.0.2"}

    with pytest.raises(SettingError, match="enableServiceLinks: false"):
        load(environ=environ)


@pytest.mark.parametrize(
    "sources",
    [{"required_events": "outofstock, BackInStock"}, {"toml": "required_events = ['OutOfStock', 'BackInStock']"}],
)
def test_words_are_matched_whatever_their_case(sources: dict[str, str]) -> None:
    """Lists are comma-separated, or arrays in the file."""
    assert read(**sources).required_events == ("OutOfStock", "BackInStock")


def test_every_event_we_publish_can_be_required() -> None:
    """The known event types are those of the code."""
    names = [event.__name__ for event in events.Payload.__subclasses__()]

    assert set(read(required_events=",".join(names)).required_events) == set(names)
    assert len(names) >= 4


def test_shown_settings_hold_no_secret() -> None:
    """Neither the table, nor the repr that a traceback prints, gives one away."""
    config = read(
        auth_secret=SECRET,
        catalog_secret=SECRET[::-1],
        store="postgresql://user:hush@host/db",
        broker="amqp://user:hush@host",
    )
    shown = {line.name: line for line in config.show()}

    assert shown["INVENTORY_AUTH_SECRET"].value == shown["INVENTORY_CATALOG_SECRET"].value == "***"
    assert shown["INVENTORY_STORE"].value == "postgresql://user:***@host/db"
    assert SECRET not in repr(config)
    assert SECRET[::-1] not in repr(config)
    assert "hush" not in repr(config)
    assert all(line.description for line in shown.values())


@pytest.mark.parametrize(
    "toml", ["integration.productService.url = 'http://ps'", "[integration.productService]\nurl = 'http://ps'"]
)
def test_the_specifications_key_names_the_product_service(toml: str) -> None:
    """Beside our own name for it, INVENTORY_CATALOG, which wins."""
    assert read(toml=toml).catalog == "http://ps"
    assert read(toml=toml, catalog="http://other").catalog == "http://other"


def test_the_policy_follows_the_catalogue() -> None:
    """Lenient with a Product Service, off without, and what is set wins."""
    assert (read().policy, read(catalog="http://ps").policy) == ("off", "lenient")
    assert read(catalog="http://ps", catalog_policy="Strict").policy == "strict"


def test_the_product_service_wants_a_key_of_its_own() -> None:
    """Our tokens for it are not signed with what others' tokens are verified with: it would know that, too."""
    with pytest.raises(SettingError, match="INVENTORY_CATALOG_SECRET"):
        connect_catalog(read(catalog="http://ps", auth_secret=SECRET))
    connect_catalog(read(catalog="http://ps", catalog_secret=SECRET))


def test_another_process_can_be_given_the_same() -> None:
    """The environment that ``as_environment`` makes reads back as the same settings."""
    config = read({"port": "1"}, toml="required_events = ['OutOfStock']\nauth_issuer = ['a', 'b']", auth_secret=SECRET)
    again = load(environ=as_environment(config))

    assert msgspec.structs.replace(again, origins={}) == msgspec.structs.replace(config, origins={})


@pytest.mark.parametrize(
    ("command", "sources"),
    [
        ("api", {}),
        ("consumer", {"store": "postgresql://host/db"}),
        ("serve", {"workers": "2"}),
        ("serve", {"workers": "2", "broker": "amqp://host", "store": "sqlite://"}),
        ("api", {"broker": "amqp://host", "store": "sqlite:///:memory:"}),
    ],
)
def test_memory_is_not_shared_by_processes(command: str, sources: dict[str, str]) -> None:
    """What lives in one process is refused where there are several (rule R8)."""
    with pytest.raises(SettingError, match="lives in one"):
        check_processes(read(**sources), command)


@pytest.mark.parametrize(
    ("command", "sources"),
    [
        ("serve", {}),
        ("serve", {"workers": "2", "broker": "amqp://host"}),
        ("api", {"broker": "amqp://host"}),
        ("consumer", {"broker": "amqp://host", "store": "postgresql://host/db"}),
    ],
)
def test_files_and_servers_are_shared_by_processes(command: str, sources: dict[str, str]) -> None:
    """A SQLite file may be shared when the broker is not in memory."""
    check_processes(read(**sources), command)


@pytest.mark.parametrize(
    ("sources", "cache"),
    [
        ({}, "memory://"),
        ({"store": "postgresql://host/db"}, "none:"),
        ({"broker": "amqp://host"}, "none:"),
        ({"store": "postgresql://host/db", "cache": "memory://"}, "memory://"),
        ({"store": "postgresql://host/db", "cache": "redis://host"}, "redis://host"),
    ],
)
def test_what_others_may_change_is_kept_in_memory_only_on_request(sources: dict[str, str], cache: str) -> None:
    """Two services on one store must not tell old stock because nobody thought of a cache."""
    assert check_processes(read(**sources), "serve").cache == cache


def test_embedded_mode_makes_its_own_secret(tmp_path: Path) -> None:
    """It is made once, only its owner can read it, and it signs."""
    config = with_secret(read())
    file = tmp_path / ".inventory" / "auth-secret"

    assert split_secrets(config.auth_secret) == [file.read_text()]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert with_secret(read()).auth_secret == config.auth_secret
    assert config.origins["auth_secret"] == "generated in .inventory/auth-secret"


@pytest.mark.parametrize("sources", [{"store": "postgresql://host/db"}, {"broker": "amqp://host"}])
def test_elsewhere_a_secret_must_be_given(sources: dict[str, str]) -> None:
    """Several machines cannot guess each other's secret, and there is none built in."""
    with pytest.raises(ValidationFailed, match="set INVENTORY_AUTH_SECRET"):
        with_secret(read(**sources))

    assert with_secret(read(auth_secret=SECRET, **sources)).auth_secret == SECRET
    assert with_secret(read(auth_jwks="keys.json", **sources)).auth_secret == ""
