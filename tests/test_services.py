"""The servers the tests start: what they keep when they are killed, and that nothing of them is left behind."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import asyncpg
import psutil
import pytest
from private_server import Server, apt_install, free_port, remaining
from services import Postgres, RabbitMQ, Redis
from sharing import Keeper, borrowed

pytestmark = pytest.mark.services


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[Postgres]:
    """A server of this module's own, to be killed."""
    with Postgres() as server:
        yield server


@pytest.fixture(scope="module")
def own_rabbitmq() -> Iterator[RabbitMQ]:
    """A node of this module's own, to be killed."""
    with RabbitMQ() as server:
        yield server


async def test_a_committed_row_survives_a_kill(own_postgres: Postgres) -> None:
    """What PostgreSQL committed is there after SIGKILL and a new start on the same port."""
    url = own_postgres.create_database()
    before = await asyncpg.connect(url)
    await before.execute("CREATE TABLE kept (value integer)")
    await before.execute("INSERT INTO kept VALUES (42)")
    victims = family(own_postgres.pid)

    own_postgres.kill()
    assert remaining(victims, seconds=0) == []
    await asyncio.to_thread(own_postgres.start)

    after = await asyncpg.connect(url)
    assert await after.fetchval("SELECT value FROM kept") == 42
    await after.close()
    before.terminate()


async def test_databases_are_separate_and_go_away(own_postgres: Postgres) -> None:
    """A new database has no tables, and a dropped one is gone although someone was connected."""
    first, second = own_postgres.create_database(), own_postgres.create_database()
    in_first, in_second = await asyncpg.connect(first), await asyncpg.connect(second)
    await in_first.execute("CREATE TABLE mine ()")

    assert await in_second.fetchval("SELECT to_regclass('mine')") is None
    own_postgres.drop_database(first)
    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(first)
    in_first.terminate()
    await in_second.close()


async def test_postgres_has_its_default_durability(own_postgres: Postgres) -> None:
    """A test that kills PostgreSQL proves something only with fsync and synchronous_commit on."""
    connection = await asyncpg.connect(own_postgres.url)
    names = ("fsync", "synchronous_commit", "full_page_writes", "max_connections", "TimeZone")
    shown = [await connection.fetchval(f"SHOW {name}") for name in names]
    await connection.close()

    assert shown == ["on", "on", "on", "200", "UTC"]


@pytest.mark.parametrize("end", [RabbitMQ.stop, RabbitMQ.kill])
async def test_a_persistent_message_survives_the_broker(own_rabbitmq: RabbitMQ, end) -> None:
    """A confirmed persistent message in a durable classic queue is there after the node's end and a new start."""
    url = own_rabbitmq.create_vhost()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue("kept", durable=True)
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, "kept")
    await asyncio.sleep(2)  # a queue that is younger may not survive a crash (reliability D16)
    victims = family(own_rabbitmq.pid)

    await asyncio.to_thread(end, own_rabbitmq)
    assert remaining(victims, seconds=0) == []
    await asyncio.to_thread(own_rabbitmq.start)

    async with await aio_pika.connect(url) as connection:
        queue = await (await connection.channel()).declare_queue("kept", passive=True)
        assert (await queue.get()).body == b"kept"


def test_redis_databases_are_separate_and_a_kill_empties_them() -> None:
    """Every logical database is a new one, and nothing in it outlives the server."""
    with Redis() as server:
        first, second = server.create_database(), server.create_database()
        assert told(first, "SET mine 1", "GET mine") == ["+OK", "$1", "1"]
        assert told(second, "GET mine") == ["$-1"]

        server.kill()
        server.start()
        assert told(first, "GET mine") == ["$-1"]


def test_rabbitmqctl_says_why_it_refuses(own_rabbitmq: RabbitMQ) -> None:
    """A refused command is an error with the node's own words."""
    with pytest.raises(RuntimeError, match="nobody"):
        own_rabbitmq.ctl("delete_user", "nobody")


@pytest.mark.parametrize("kind", [Postgres, RabbitMQ, Redis])
def test_nothing_is_left_behind(kind: type[Server]) -> None:
    """After the block no process of the server lives, its port is free and its folder gone."""
    others = family(os.getpid())
    with kind() as server:
        processes, port, directory = family(os.getpid()) - others, server.port, server.directory
        assert psutil.Process(server.pid) in processes

    assert remaining(processes, seconds=0) == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert not directory.exists()


@pytest.mark.parametrize("kind", [Postgres, RabbitMQ, Redis])
def test_a_killed_test_run_takes_its_servers_along(kind: type[Server]) -> None:
    """A server ends with the test process, but not with the thread that started it."""
    program = f"""
import threading, services
server = services.{kind.__name__}()
thread = threading.Thread(target=server.__enter__)
thread.start()
thread.join()
print(server.pid, server.directory, flush=True)
input()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=Path(__file__).parent, stdin=-1, stdout=-1, text=True) as run:
        pid, directory = run.stdout.readline().split()
        processes = family(run.pid)
        assert psutil.Process(int(pid)) in remaining(processes, seconds=0)
        os.kill(run.pid, signal.SIGKILL)

    assert remaining(processes, seconds=10) == []
    shutil.rmtree(directory)


def test_processes_share_a_server_and_none_can_stop_it() -> None:
    """All who ask borrow the one that was started for the first, work with it, and leave the end to its keeper."""
    others = family(os.getpid())
    keeper = Keeper()
    program = f"""
import sharing, services
server = sharing.borrowed(services.Redis, {keeper.address})
print(server.url, server.create_database())
server.kill()
"""
    command = [sys.executable, "-c", program]
    runs = [subprocess.Popen(command, cwd=Path(__file__).parent, stdout=-1, stderr=-1, text=True) for _ in range(3)]
    told = [run.communicate() for run in runs]
    (server,) = family(os.getpid()) - others
    keeper.close()

    urls, databases = zip(*(out.split() for out, _ in told), strict=True)
    assert len({*urls}) == 1
    assert len({*databases}) == 3
    assert all("not ours to start or stop" in error for _, error in told)
    assert remaining([server], seconds=0) == []


def test_a_server_that_cannot_be_lent_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who borrows gets the error of the start, and so does the next one."""

    def fail(_: Redis) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(Redis, "_prepare", fail)
    keeper = Keeper()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no room"):
            borrowed(Redis, keeper.address)
    keeper.close()


def test_a_stranger_s_server_is_never_stopped() -> None:
    """A server known by URL keeps that URL and refuses to be stopped, started or killed."""
    server = Postgres("postgresql://elsewhere/inventory")

    with server:
        assert (server.owned, server.url) == (False, "postgresql://elsewhere/inventory")
        for act in (server.start, server.stop, server.kill, server.restart):
            with pytest.raises(RuntimeError, match="not ours"):
                act()


def test_a_server_that_does_not_start_says_why(own_postgres: Postgres) -> None:
    """The error holds the end of the server's log, and the server can be started once the cause is gone."""
    own_postgres.stop()
    with socket.create_server(("127.0.0.1", own_postgres.port)), pytest.raises(RuntimeError, match="already in use"):
        own_postgres.start()

    own_postgres.start()
    own_postgres.drop_database(own_postgres.create_database())


def test_a_running_server_is_not_started_twice(own_postgres: Postgres) -> None:
    """A second start is refused instead of being answered by the first server."""
    with pytest.raises(RuntimeError, match="running already"):
        own_postgres.start()


def test_who_cannot_install_is_told_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root nothing is skipped: the error is one sentence with the command that would help."""
    monkeypatch.setattr(os, "geteuid", lambda: 1000)

    with pytest.raises(RuntimeError, match="apt-get install rabbitmq-server"):
        apt_install("rabbitmq-server")


def test_a_free_port_is_not_one_the_kernel_lends_to_clients() -> None:
    """Or a client that waits for a stopped server to return may connect to itself."""
    lent_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])

    assert free_port() < lent_from


def told(url: str, *commands: str) -> list[str]:
    """The lines that Redis answers to these commands in the URL's database."""
    there = urlsplit(url)
    sent = "\r\n".join([f"SELECT {there.path.removeprefix('/')}", *commands, "QUIT", ""])
    with socket.create_connection((there.hostname, there.port), timeout=5) as connection:
        connection.sendall(sent.encode())
        with connection.makefile(encoding="ascii") as answers:
            return [line.strip() for line in answers][1:-1]


def family(pid: int) -> set[psutil.Process]:
    """The process and all that descend from it."""
    parent = psutil.Process(pid)
    return {parent, *parent.children(recursive=True)}
