"""The ``inventory`` command as users meet it: real processes, their output, and their exit codes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
import secrecy
from private_server import LOOPBACK, free_port
from service import COMMAND, SECRET, Service, environment, no_broker, token

from adapters.tokens.keys import KeyRing
from adapters.tokens.verifier import Verifier

AWAY = f"postgresql://user:hush@{LOOPBACK}:1/stock"
COMMANDS = ("serve", "api", "consumer", "migrate", "token", "config", "demo")


class Running:
    """A started process that has said it is ready."""

    def __init__(self, process: psutil.Popen, log: Path) -> None:
        self.process = process
        self._log = log
        self.url: str = next(line for line in self.lines() if line["event"] == "ready").get("url", "")

    def lines(self) -> list[dict[str, Any]]:
        """Return what it has logged."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def said(self, words: str) -> bool:
        """Tell whether it logs these words within ten seconds."""
        return within(10, lambda: words in self._log.read_text())

    def end(self, *signals: signal.Signals, seconds: float = 5) -> int:
        """Send the signals in turn and return the exit code."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.2)
        return int(self.process.wait(timeout=seconds))

    def get(self, path: str) -> httpx2.Response:
        """Ask as an administrator."""
        return httpx2.get(self.url + path, headers={"authorization": f"Bearer {token()}"}, trust_env=False)


@contextmanager
def running(*arguments: str, cwd: Path, **settings: Any) -> Iterator[Running]:
    """Start a process, wait until it is ready, and kill what is left of it in the end."""
    log = cwd / f"log-{free_port()}"
    with log.open("w") as file:
        process = psutil.Popen([COMMAND, *arguments], cwd=cwd, env=variables(settings), stderr=file)
    try:
        assert within(60, lambda: '"event": "ready"' in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Running(process, log)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
        process.wait()
        secrecy.check(log.read_text())


def inventory(*arguments: str, cwd: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(
        [COMMAND, *arguments], cwd=cwd, env=variables(settings), capture_output=True, text=True, check=False, timeout=60
    )
    secrecy.check(done.stderr)
    return done


def variables(settings: dict[str, Any]) -> dict[str, str]:
    """Return the environment: these settings, and a secret unless ``auth_secret`` is among them."""
    secret = {"INVENTORY_AUTH_SECRET": settings["auth_secret"]} if "auth_secret" in settings else {}
    return {"INVENTORY_PORT": "0", **environment(**settings), **secret}


def within(seconds: float, true: Any) -> bool:
    """Wait for a condition."""
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)
    return bool(true())


# -- commands that end by themselves ---------------------------------------------------------------------------------


def test_help_names_every_command(tmp_path: Path) -> None:
    """``inventory --help`` lists them all, and they explain themselves, the one that is loaded late as well."""
    listed = inventory("--help", cwd=tmp_path).stdout

    assert all(command in listed for command in COMMANDS)
    assert "--inherited-listener" not in inventory("api", "--help", cwd=tmp_path).stdout
    assert "--reset" in inventory("demo", "--help", cwd=tmp_path).stdout


def test_help_loads_nothing_heavy() -> None:
    """Asking for help is quick, because the command imports only the terminal's library."""
    program = (
        "import sys; from entrypoints.cli import inventory; inventory(['--help'], standalone_mode=False);"
        "print('loaded', [name for name in ('litestar', 'sqlalchemy', 'structlog', 'jwt') if name in sys.modules])"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)

    assert printed.stdout.splitlines()[-1] == "loaded []"


def test_a_token_is_all_that_is_printed(tmp_path: Path) -> None:
    """The token is good, speaks for the roles asked for, and can be taken from the output as it is."""
    printed = inventory(
        "token", "--role", "inventory-operator", "--role", "product-events", "--subject", "ann", cwd=tmp_path
    )
    verifier = Verifier(KeyRing(secrets=[SECRET]), issuer="inventory-service", audience="inventory-service")
    principal = verifier.verify(printed.stdout.removesuffix("\n"))

    assert (printed.returncode, printed.stderr) == (0, "")
    assert principal.subject == "ann"
    assert principal.roles == {"inventory-operator", "product-events"}


def test_a_token_lives_as_long_as_asked(tmp_path: Path) -> None:
    """``--lifetime`` is in seconds; without it, a token lives as long as the service accepts."""
    verifier = Verifier(KeyRing(secrets=[SECRET]), issuer="inventory-service", audience="inventory-service")

    def lives(*arguments: str) -> int:
        started = int(time.time())
        printed = inventory("token", "--role", "inventory-admin", *arguments, cwd=tmp_path, auth_lifetime_max=600)
        return verifier.verify(printed.stdout.strip()).expires_at - started

    assert 120 <= lives("--lifetime", "120") <= 130
    assert 600 <= lives() <= 610


def test_settings_are_shown_without_secrets(tmp_path: Path) -> None:
    """``config show`` tells value and origin of every setting, as a table and as JSON."""
    (tmp_path / "inventory.toml").write_text("idempotency_hours = 12")
    settings = {"store": AWAY, "broker": "amqp://user:hush@host/", "catalog_audience": "[/]", "cwd": tmp_path}
    table = inventory("config", "show", "--port", "81", **settings)
    shown = json.loads(inventory("config", "show", "--json", "--port", "81", **settings).stdout)

    assert table.returncode == 0
    assert all(name in table.stdout for name in shown)
    assert "argument --port" in table.stdout
    assert shown["INVENTORY_PORT"]["value"] == "81"
    assert shown["INVENTORY_IDEMPOTENCY_HOURS"]["origin"] == "inventory.toml"
    assert shown["INVENTORY_STORE"]["value"] == AWAY.replace("hush", "***")
    assert "hush" not in table.stdout
    assert SECRET not in table.stdout + json.dumps(shown)


@pytest.mark.parametrize(
    ("arguments", "settings", "sentence"),
    [
        (["serve", "--port", "http"], {}, "INVENTORY_PORT cannot be 'http' (argument --port)"),
        (["serve"], {"prot": "1"}, "did you mean INVENTORY_PORT"),
        (["serve", "--store", "mysql://db"], {}, "INVENTORY_STORE names the scheme mysql"),
        (["serve", "--config", "nowhere.toml"], {}, "nowhere.toml cannot be read"),
        (["serve", "--host", "192.0.2.1"], {}, "192.0.2.1:0 cannot be served on"),
        (["serve", "--host", "no such host"], {}, "INVENTORY_HOST cannot be 'no such host'"),
        (["serve"], {"auth_secret": "short"}, "INVENTORY_AUTH_SECRET is unfit"),
        (["serve"], {"auth_secret": "", "store": AWAY}, "set INVENTORY_AUTH_SECRET"),
        (["serve"], {"workers": 2}, "a memory:// broker lives in one"),
        (["api"], {}, "a memory:// broker lives in one"),
        (["consumer"], {}, "a memory:// broker lives in one"),
        (["migrate", "--store", "stock.db"], {}, "INVENTORY_STORE is not a URL"),
        (
            ["token", "--role", "inventory-admin", "--lifetime", "3601"],
            {},
            "INVENTORY_AUTH_LIFETIME_MAX is 3600 seconds",
        ),
        (
            ["token", "--role", "inventory-admin"],
            {"auth_secret": "", "auth_jwks": "x"},
            "INVENTORY_AUTH_JWKS only verifies",
        ),
        (["config", "show", "--log-level", "loud"], {}, "it must be among debug, info, warning, error"),
    ],
)
def test_a_wrong_setting_ends_the_command(
    arguments: list[str], settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    """Exit code 2, and one sentence that says what is wrong."""
    ended = inventory(*arguments, cwd=tmp_path, **settings)

    assert ended.returncode == 2
    assert sentence in ended.stderr.splitlines()[-1]
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_an_unknown_role_is_refused(tmp_path: Path) -> None:
    """A misspelt role would make a token that opens nothing."""
    ended = inventory("token", "--role", "admin", cwd=tmp_path)

    assert ended.returncode == 2
    assert "inventory-admin" in ended.stderr


def test_migrating_twice_is_harmless(tmp_path: Path) -> None:
    """The second time there is nothing to do, and that is no failure."""
    first = inventory("migrate", cwd=tmp_path)
    second = inventory("migrate", cwd=tmp_path)

    assert (first.returncode, second.returncode) == (0, 0)
    assert "applied" in first.stdout
    assert "store: up to date" in second.stdout
    assert (tmp_path / ".inventory" / "inventory.db").exists()


@pytest.mark.parametrize("setting", ["store", "broker"])
def test_migrating_what_is_away_is_told(setting: str, tmp_path: Path) -> None:
    """Exit code 3 and one sentence, so that a deployment knows to try again."""
    ended = inventory("migrate", cwd=tmp_path, **{setting: AWAY if setting == "store" else no_broker()})

    assert ended.returncode == 3
    assert "cannot be reached" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# -- processes ---------------------------------------------------------------------------------------------------------


def test_serving_needs_nothing_and_keeps_its_data(tmp_path: Path) -> None:
    """One command on an empty folder serves; SIGTERM ends it with 0, an idle connection or not; the stock stays."""
    with running("serve", cwd=tmp_path, auth_secret="") as first:
        printed = inventory("token", "--role", "inventory-operator", cwd=tmp_path, auth_secret="").stdout.strip()
        with httpx2.Client(headers={"authorization": f"Bearer {printed}"}, trust_env=False) as kept_alive:
            made = kept_alive.post(f"{first.url}/warehouses", json={"id": "wh_1", "name": "North"})
            assert first.end(signal.SIGTERM) == 0
    with running("serve", cwd=tmp_path, auth_secret="") as second:
        found = httpx2.get(
            f"{second.url}/warehouses", headers={"authorization": f"Bearer {printed}"}, trust_env=False
        ).json()

    assert made.status_code == 201
    assert [warehouse["id"] for warehouse in found["data"]] == ["wh_1"]


def test_the_first_and_the_ready_line_tell_what_runs(tmp_path: Path) -> None:
    """They say version, store, broker, address and how long it took; passwords are masked."""
    with running("api", cwd=tmp_path, store=AWAY, broker="amqp://user:hush@127.0.0.1:1/") as api:
        starting, *_, ready = [line for line in api.lines() if line["logger"] == "inventory"]

    assert starting["event"] == "starting"
    assert starting["store"] == AWAY.replace("hush", "***")
    assert starting["broker"] == "amqp://user:***@127.0.0.1:1/"
    assert starting["version"]
    assert starting["url"] == ready["url"] == api.url
    assert ready["milliseconds"] > 0
    assert "hush" not in json.dumps(api.lines())


@pytest.mark.parametrize("command", ["serve", "api"])
def test_what_is_away_at_the_start_is_no_reason_not_to_start(command: str, tmp_path: Path) -> None:
    """Without database and broker the process is alive and not ready, and ends as always."""
    with running(command, cwd=tmp_path, store=AWAY, broker=no_broker()) as service:
        live, ready = service.get("/health/live"), service.get("/health/ready")

        assert (live.status_code, ready.status_code) == (200, 503)
        assert service.end(signal.SIGTERM) == 0


def test_stock_is_sold_without_a_broker(tmp_path: Path) -> None:
    """The broker is asked for in the background; writes are answered meanwhile."""
    with running("serve", cwd=tmp_path, broker=no_broker()) as service:
        made = httpx2.post(
            f"{service.url}/warehouses",
            json={"id": "wh_1", "name": "North"},
            headers={"authorization": f"Bearer {token()}"},
            trust_env=False,
        )

        assert made.status_code == 201
        assert service.said("the broker's topology has to wait")
        assert service.get("/health/ready").json()["data"]["status"] == "degraded"


def test_a_consumer_waits_for_what_is_missing(tmp_path: Path) -> None:
    """It says once that the store has to be migrated, goes on by itself when it is, and ends with 0."""
    broker = no_broker()
    with running("consumer", cwd=tmp_path, broker=broker) as consumer:
        assert consumer.said("The store lacks the migrations")
        assert inventory("migrate", cwd=tmp_path, broker=broker).returncode == 3
        assert consumer.said("the work in the background waits no longer")
        assert consumer.end(signal.SIGTERM) == 0


def test_a_taken_port_is_told(tmp_path: Path) -> None:
    """Two services on one port would share its requests unseen; the second one ends with 2."""
    with running("serve", cwd=tmp_path) as first:
        second = inventory("serve", "--port", first.url.rpartition(":")[2], cwd=tmp_path)

    assert second.returncode == 2
    assert "is taken by another process" in second.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_in_flight_is_answered(number: signal.Signals, tmp_path: Path) -> None:
    """SIGTERM and Ctrl-C refuse new connections, let what has begun finish, and end with 0."""
    with running("serve", cwd=tmp_path) as service, begun_request(service.url) as (connection, rest):
        service.process.send_signal(number)
        assert service.said("stopping")
        assert within(5, lambda: refused(service.url))
        connection.sendall(rest)
        answer = connection.recv(100)

        assert answer.startswith(b"HTTP/1.1 201")
        assert service.process.wait(timeout=5) == 0


def test_a_request_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    """A client that stalls cannot keep the process from ending."""
    with running("serve", cwd=tmp_path) as service, begun_request(service.url):
        assert service.end(signal.SIGTERM, seconds=15) == 0
        assert service.said("requests in flight were cut off")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path) -> None:
    """Who is impatient need not wait for requests in flight."""
    with running("serve", cwd=tmp_path) as service, begun_request(service.url):
        assert service.end(signal.SIGINT, signal.SIGINT, seconds=2) == 130


def test_stopping_while_it_starts_is_no_failure(tmp_path: Path) -> None:
    """A process that is told to stop before it is ready ends with 0 as well."""
    with (tmp_path / "log").open("w") as log:
        process = psutil.Popen([COMMAND, "serve"], cwd=tmp_path, env=variables({}), stderr=log)
    assert within(30, lambda: "starting" in (tmp_path / "log").read_text())
    process.terminate()

    assert process.wait(timeout=10) == 0


def test_workers_share_the_port_and_are_replaced(tmp_path: Path) -> None:
    """Two processes serve one port; one that dies is started again; all end together."""
    with Service("serve", store=f"sqlite:///{tmp_path}/stock.db", broker=no_broker(), workers=2) as service:
        [worker] = service.pids() - {service.pid}
        os.kill(worker, signal.SIGKILL)
        assert within(30, lambda: service.logged().count('"event": "ready"') == 3)
        [replacement] = service.pids() - {service.pid}
        with service.client() as client:
            assert client.get("/warehouses").status_code == 200
        service.stop()

        assert replacement != worker
        assert "a worker died and is started again" in service.logged()
        assert not psutil.pid_exists(replacement)


def test_workers_do_not_outlive_the_first(tmp_path: Path) -> None:
    """When the first process is killed, the others notice and leave the port."""
    with running("serve", cwd=tmp_path, broker=no_broker(), workers=2) as service:
        assert within(30, lambda: sum(line["event"] == "ready" for line in service.lines()) == 2)
        workers = service.process.children()
        service.process.kill()

        assert len(workers) == 1
        assert within(10, lambda: not workers[0].is_running() or workers[0].status() == psutil.STATUS_ZOMBIE)


@contextmanager
def begun_request(url: str) -> Iterator[tuple[socket.socket, bytes]]:
    """Send half a request; yield the connection and the other half."""
    host, port = url.removeprefix("http://").split(":")
    body = b'{"id": "wh_1", "name": "North"}'
    head = (
        f"POST /warehouses HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token()}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(head.encode() + body[:5])
        time.sleep(0.2)
        yield connection, body[5:]


def refused(url: str) -> bool:
    """Tell whether nobody takes new connections there."""
    host, port = url.removeprefix("http://").split(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except ConnectionRefusedError:
        return True
    return False
