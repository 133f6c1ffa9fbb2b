"""``inventory doctor`` as operators meet it: what it finds and advises, its exit code, and what it keeps to itself."""

import json
import re
import shutil
import socket
import sqlite3
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import pytest
from private_server import LOOPBACK, free_port
from service import COMMAND, SECRET, environment, migrate, no_broker
from services import Postgres, RabbitMQ
from standin import SECRET as SHARED
from standin import standing_in
from stores import migrated, only, stocked

from entrypoints.commands.doctor import Finding, diagnose
from entrypoints.config import load
from entrypoints.demo.misbehaviour import Misbehaviour

AWAY = f"postgresql://user:hush@{LOOPBACK}:1/stock"
MIGRATE = "Run `inventory migrate`."
TLS_WANTED = struct.pack("!ii", 8, 80_877_103)
"""What a client of PostgreSQL begins with."""


class Visit(NamedTuple):
    """How the doctor ended, and its findings by check."""

    code: int
    findings: dict[str, dict[str, str]]

    def problems(self) -> set[str]:
        """Name the checks that found a problem."""
        return {check for check, finding in self.findings.items() if finding["verdict"] == "problem"}


def doctor(cwd: Path, **settings: Any) -> Visit:
    """Run the command in a folder, with these settings and a good secret; nothing may be printed but the findings."""
    ended = run("--json", cwd=cwd, **settings)
    assert ended.stderr == ""
    findings = json.loads(ended.stdout)["findings"]
    assert all(finding["verdict"] == "ok" or finding["remedy"].endswith(".") for finding in findings)
    return Visit(ended.returncode, {finding["check"]: finding for finding in findings})


def run(*arguments: str, cwd: Path, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, which must come soon whatever hangs."""
    secret = {"INVENTORY_AUTH_SECRET": settings["auth_secret"]} if "auth_secret" in settings else {}
    return subprocess.run(
        [COMMAND, "doctor", *arguments],
        cwd=cwd,
        env=environment(**settings) | secret,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


@contextmanager
def answering(reply: bytes | None) -> Iterator[int]:
    """A port where every caller gets this reply to its first words, or, with None, no reply ever."""
    ended = threading.Event()

    def talk() -> None:
        while not ended.is_set():
            with suppress(OSError), listener.accept()[0] as caller:
                if caller.recv(1000) == TLS_WANTED:
                    caller.sendall(b"N")
                    caller.recv(1000)
                caller.sendall(reply or b"")

    with socket.create_server((LOOPBACK, 0)) as listener:
        listener.settimeout(0.1)
        thread = threading.Thread(target=talk)
        if reply is not None:
            thread.start()
        yield listener.getsockname()[1]
        ended.set()
        if reply is not None:
            thread.join()


def refusal(sqlstate: str) -> bytes:
    """What PostgreSQL says when it does not let somebody in."""
    fields = b"".join(kind + text.encode() + b"\0" for kind, text in ((b"S", "FATAL"), (b"C", sqlstate), (b"M", "no")))
    return b"E" + struct.pack("!i", len(fields) + 5) + fields + b"\0"


async def execute(url: str, *statements: str) -> None:
    """Run statements on a PostgreSQL database."""
    connection = await asyncpg.connect(url)
    for statement in statements:
        await connection.execute(statement)
    await connection.close()


@pytest.fixture
async def stock(tmp_path: Path) -> Path:
    """A migrated SQLite database with stock in it, and its events, where embedded mode has it."""
    file = tmp_path / ".inventory" / "inventory.db"
    async with migrated(f"sqlite:///{file}") as store:
        await stocked(store)
    return file


# -- the whole ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("stock")
def test_all_is_well(tmp_path: Path) -> None:
    """With nothing but SQLite and memory every check is fine, also in the table for people."""
    visit = doctor(tmp_path)
    table = run(cwd=tmp_path)

    assert (visit.code, table.returncode) == (0, 0)
    assert {finding["verdict"] for finding in visit.findings.values()} == {"ok"}
    assert visit.findings.keys() == {
        *(
            "processes",
            "tokens",
            "place",
            "store",
            "writes",
            "migrations",
            "outbox",
            "dead letters",
            "broker",
            "cache",
            "catalog",
        )
    }
    # What is left on the disk is another number at each visit while other tests run.
    details = {re.sub(r"[\d,.]+ GB", "so much", finding["detail"]) for finding in visit.findings.values()}
    shown = re.sub(r"[\d,.]+ GB", "so much", table.stdout)
    assert all(detail in shown for detail in details)


def test_a_visit_changes_nothing(tmp_path: Path) -> None:
    """Before the first start it says that there is no database, and makes neither that nor a secret."""
    visit = doctor(tmp_path, auth_secret="")

    assert (visit.code, visit.problems()) == (1, {"place"})
    assert visit.findings["place"]["remedy"] == MIGRATE
    assert list(tmp_path.iterdir()) == []


def test_it_ends_when_everything_hangs(tmp_path: Path) -> None:
    """A store and a broker that take the call and say nothing are told as such, and what was found beside them."""
    with answering(None) as port:
        visit = doctor(tmp_path, store=f"postgresql://x@{LOOPBACK}:{port}/x", broker=f"amqp://{LOOPBACK}:{port}/")

    assert (visit.code, visit.problems()) == (1, {"store", "broker"})
    assert "does not answer in time" in visit.findings["store"]["detail"]
    assert "does not answer in time" in visit.findings["broker"]["detail"]
    assert visit.findings["tokens"]["verdict"] == "ok"


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_no_secret_is_printed(arguments: list[str], tmp_path: Path) -> None:
    """Neither the passwords in the URLs, whatever they are made of, nor the token secret; hosts are."""
    store, broker = f"postgresql://user:hu@sh@{LOOPBACK}:1/stock", f"amqp://user:12/sh@{LOOPBACK}:1/"
    ended = run(*arguments, cwd=tmp_path, store=store, broker=broker, auth_secret="hush")

    assert ended.returncode == 1
    assert ended.stdout.count(f"{LOOPBACK}:1") == 2
    assert not any(secret in ended.stdout + ended.stderr for secret in ("hu@", "sh@", ":12", "hush", "user"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"store": "mysql://db"}, "INVENTORY_STORE names the scheme mysql"),
        ({"store": "postgresql://db:port/x"}, "The store's URL cannot be read"),
        ({"store": f"{AWAY}?pool=many"}, "The store URL's pool is many"),
        ({"prot": 1}, "did you mean INVENTORY_PORT"),
    ],
)
def test_a_wrong_setting_ends_it(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    """As everywhere: exit code 2 and one sentence."""
    ended = run(cwd=tmp_path, **settings)

    assert (ended.returncode, ended.stdout) == (2, "")
    assert sentence in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "detail", "remedy"),
    [
        ({"auth_secret": "short"}, "A secret in INVENTORY_AUTH_SECRET is unfit.", "at least 32 bytes"),
        ({"auth_secret": "", "store": AWAY}, "There is no key to verify tokens with.", "Set INVENTORY_AUTH_SECRET"),
        ({"auth_jwks": "nowhere.json"}, "nowhere.json cannot be read", "public keys"),
        ({"auth_jwks": "empty.json"}, "empty.json is not a key set", "public keys"),
        ({"auth_issuer": ","}, "must not be empty", "the defaults are good"),
    ],
)
def test_unfit_token_settings_are_told(settings: dict[str, Any], detail: str, remedy: str, tmp_path: Path) -> None:
    """Secrets, key sets and what a token must say."""
    (tmp_path / "empty.json").write_text("{}")
    visit = doctor(tmp_path, **settings)

    assert visit.code == 1
    assert visit.findings["tokens"]["verdict"] == "problem"
    assert detail in visit.findings["tokens"]["detail"]
    assert remedy in visit.findings["tokens"]["remedy"]


@pytest.mark.usefixtures("stock")
def test_a_secret_that_others_may_read_is_told(tmp_path: Path) -> None:
    """The file that embedded mode made must be its owner's alone; as it was made, it is used."""
    secret = tmp_path / ".inventory" / "auth-secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    before = doctor(tmp_path, auth_secret="")
    secret.chmod(0o644)
    after = doctor(tmp_path, auth_secret="")

    assert (before.code, after.code) == (0, 1)
    assert "was made and accepted" in before.findings["tokens"]["detail"]
    assert after.findings["tokens"]["detail"].startswith("Others may read the secret file")
    assert after.findings["tokens"]["remedy"] == "Remove it to get a new one, or chmod 600 it."


@pytest.mark.usefixtures("stock")
def test_several_workers_need_a_broker_they_share(tmp_path: Path) -> None:
    """Rule R8: what lives in memory lives in one process."""
    visit = doctor(tmp_path, workers=2)

    assert (visit.code, visit.problems()) == (1, {"processes"})
    assert "a memory:// broker lives in one" in visit.findings["processes"]["detail"]
    assert visit.findings["processes"]["remedy"] == "Set INVENTORY_BROKER to amqp://…, or run one worker."


# -- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "detail", "remedy"),
    [
        (refusal("28P01"), "refuses the user or the password", "Correct user and password in INVENTORY_STORE."),
        (refusal("53300"), "has no connection left", "Allow more on the server"),
        (refusal("57P03"), "is starting or stopping", "Try again"),
        (refusal("XX000"), "cannot be used: no", "correct INVENTORY_STORE"),
        (b"", "cannot be used", "correct INVENTORY_STORE"),
    ],
    ids=["password", "connections", "starting", "whatever", "silence"],
)
def test_a_database_that_lets_nobody_in_is_told_apart(reply: bytes, detail: str, remedy: str, tmp_path: Path) -> None:
    """Each reason in plain words, with the one thing to do."""
    with answering(reply) as port:
        visit = doctor(tmp_path, store=f"postgresql://user:hush@{LOOPBACK}:{port}/stock")

    assert (visit.code, visit.problems()) == (1, {"store"})
    assert visit.findings["store"]["detail"].startswith(f"The store at {LOOPBACK}:{port}/stock {detail}")
    assert remedy in visit.findings["store"]["remedy"]


def test_what_refuses_connections_is_told(tmp_path: Path) -> None:
    """Where nothing listens, both URLs are told in one visit."""
    visit = doctor(tmp_path, store=AWAY, broker=no_broker())

    assert (visit.code, visit.problems()) == (1, {"store", "broker"})
    assert visit.findings["store"]["detail"] == f"The store at {LOOPBACK}:1/stock refuses connections."
    assert visit.findings["store"]["remedy"] == "Start it, or correct host and port in INVENTORY_STORE."
    assert "refuses connections" in visit.findings["broker"]["detail"]


def test_a_host_that_nobody_knows_is_told(tmp_path: Path) -> None:
    """A misspelt host name is not a server that is down."""
    visit = doctor(tmp_path, store="postgresql://user@nowhere.invalid/stock", broker="amqp://nowhere.invalid/")

    assert visit.problems() == {"store", "broker"}
    assert "is not found" in visit.findings["store"]["detail"]
    assert visit.findings["broker"]["remedy"] == "Correct the host in INVENTORY_BROKER."


async def test_postgresql_has_to_exist_and_be_migrated(postgres: Postgres, postgres_url: str, tmp_path: Path) -> None:
    """No such database, then one without tables, then all is well but for a warning, which is no problem."""
    lost = doctor(tmp_path, store=f"{postgres_url}_no")
    bare = doctor(tmp_path, store=postgres_url)
    async with migrated(postgres_url):
        visit = doctor(tmp_path, store=postgres_url)

    assert (lost.code, lost.problems()) == (1, {"store"})
    assert "has no database of that name" in lost.findings["store"]["detail"]
    assert (bare.code, bare.problems()) == (1, {"migrations"})
    assert bare.findings["migrations"]["remedy"] == MIGRATE
    assert (visit.code, visit.problems()) == (0, set())
    assert visit.findings["clock"]["verdict"] == visit.findings["outbox"]["verdict"] == "ok"
    assert visit.findings["broker"]["verdict"] == "warning"
    assert "events reach nobody" in visit.findings["broker"]["detail"]


async def test_a_database_that_takes_no_writes_is_told(postgres_url: str, tmp_path: Path) -> None:
    """As on a standby: everything can be read, and nothing sold."""
    name = postgres_url.rpartition("/")[2]
    async with migrated(postgres_url):
        await execute(postgres_url, f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    visit = doctor(tmp_path, store=postgres_url)

    assert (visit.code, visit.problems()) == (1, {"writes"})


@pytest.mark.parametrize(
    ("seconds", "verdict", "detail"), [(5, "warning", "5 s ahead of"), (-3600, "problem", "3,600 s behind")]
)
async def test_clocks_that_disagree_are_told(
    seconds: int, verdict: str, detail: str, postgres_url: str, tmp_path: Path
) -> None:
    """A few seconds are a warning, more is a problem: tokens and holds end by these clocks."""
    name = postgres_url.rpartition("/")[2]
    async with migrated(postgres_url):
        await execute(
            postgres_url,
            "CREATE SCHEMA skewed",
            f"CREATE FUNCTION skewed.clock_timestamp() RETURNS timestamptz LANGUAGE sql AS "
            f"$$ SELECT pg_catalog.clock_timestamp() + interval '{seconds} seconds' $$",
            f"ALTER DATABASE {name} SET search_path = skewed, pg_catalog, public",
        )
    visit = doctor(tmp_path, store=postgres_url)

    assert visit.code == (verdict == "problem")
    assert visit.findings["clock"]["verdict"] == verdict
    assert detail in visit.findings["clock"]["detail"]


def test_events_that_wait_too_long_are_told(stock: Path, tmp_path: Path) -> None:
    """What has waited for more than a minute waits for a relay that does not run."""
    young = doctor(tmp_path)
    with closing(sqlite3.connect(stock)) as database, database:
        database.execute("UPDATE outbox SET created_at = '2026-01-02T03:04:05.000000+00:00' WHERE id = 1")
    old = doctor(tmp_path)
    elsewhere = doctor(tmp_path, broker=no_broker())

    assert young.findings["outbox"]["verdict"] == "ok"
    assert (old.code, old.problems()) == (1, {"outbox"})
    assert (
        old.findings["outbox"]["detail"] == "Events wait to be published: 3, the first since 2026-01-02 03:04:05 UTC."
    )
    assert "Start `inventory serve`" in old.findings["outbox"]["remedy"]
    assert "Start `inventory consumer`" in elsewhere.findings["outbox"]["remedy"]


def test_a_file_that_cannot_be_a_database_is_told(tmp_path: Path) -> None:
    """Neither text nor a folder below a file will do."""
    (tmp_path / "text").write_text("This is not a database, and long enough to be seen as none." * 10)
    text = doctor(tmp_path, store="sqlite:///text")
    below = doctor(tmp_path, store="sqlite:///text/stock.db")

    assert text.findings["store"]["detail"] == "The store at text cannot be used: file is not a database."
    assert below.problems() == {"place"}
    assert below.findings["place"]["detail"] == f"No files can be made in {tmp_path}/text."


@pytest.mark.usefixtures("stock")
async def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In time, as a warning. No disk is filled for this test: the system is made to say so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free=99_000_000))
    findings = await diagnose(load(environ={"INVENTORY_AUTH_SECRET": SECRET}))

    [place] = [finding for finding in findings if finding.check == "place"]
    assert place.verdict == "warning"
    assert "99 MB left" in place.detail


class Usage(NamedTuple):
    """What the system says of a disk."""

    free: int


# -- the broker -------------------------------------------------------------------------------------------------------


def test_rabbitmq_needs_its_exchanges_and_queues(stock: Path, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """They are named until `inventory migrate` has declared them."""
    url = rabbitmq.create_vhost()
    before = doctor(tmp_path, broker=url)
    migrate(f"sqlite:///{stock}", url)
    after = doctor(tmp_path, broker=url)

    if rabbitmq.owned:
        assert (before.code, before.problems()) == (1, {"topology"})
        assert "exchange inventory.events, " in before.findings["topology"]["detail"]
        assert before.findings["topology"]["remedy"] == MIGRATE
    assert (after.code, after.problems()) == (0, set())


@pytest.mark.usefixtures("stock")
def test_rabbitmq_that_lets_nobody_in_is_told_apart(amqp_url: str, tmp_path: Path) -> None:
    """A wrong password, and a virtual host that is not there."""
    secret = amqp_url.partition("@")[0].rpartition(":")[2]
    password = doctor(tmp_path, broker=amqp_url.replace(f":{secret}@", ":wrong@"))
    vhost = doctor(tmp_path, broker=f"{amqp_url.rpartition('/')[0]}/nowhere")

    assert password.problems() == vhost.problems() == {"broker"}
    assert "refuses the user or the password" in password.findings["broker"]["detail"]
    assert "has no such virtual host" in vhost.findings["broker"]["detail"]


# -- the Product Service ----------------------------------------------------------------------------------------------


async def of_catalog(folder: Path, **settings: Any) -> Finding:
    """Return what is found about the Product Service."""
    config = load({"data_dir": str(folder), "auth_secret": SECRET, **settings}, environ={})
    return only([finding for finding in await diagnose(config) if finding.check == "catalog"])


async def test_a_product_service_that_is_well(tmp_path: Path) -> None:
    """It says how it is, and takes our token."""
    async with standing_in() as (_, url):
        finding = await of_catalog(tmp_path, catalog=url, catalog_secret=SHARED)

    assert finding.verdict == "ok"
    assert "answers and takes our token" in finding.detail


@pytest.mark.parametrize(
    ("secret", "fault", "detail", "remedy"),
    [
        ("", None, "nothing to sign our tokens", "INVENTORY_CATALOG_SECRET"),
        (SHARED[::-1], None, "refuses our token", "INVENTORY_CATALOG_AUDIENCE"),
        (SHARED, Misbehaviour("error"), "does not say that it is well", "INVENTORY_CATALOG_HEALTH_PATH"),
        (SHARED, Misbehaviour("hang"), "does not answer in time", "INVENTORY_CATALOG"),
        (SHARED, Misbehaviour("garbage", path="/products"), "answers what no Product Service does", "Correct"),
        (SHARED, Misbehaviour("redirect", path="/products"), "redirects", "address"),
    ],
)
async def test_a_product_service_that_is_not(
    tmp_path: Path, secret: str, fault: Misbehaviour | None, detail: str, remedy: str
) -> None:
    """What is wrong with it, or with what we know of it, is one sentence and one thing to do."""
    async with standing_in() as (service, url):
        service.misbehaviour = fault
        finding = await of_catalog(tmp_path, catalog=url, catalog_secret=secret, catalog_timeout_ms=300)

    assert finding.verdict == "problem"
    assert detail in finding.detail
    assert remedy in finding.remedy


def test_a_product_service_that_is_not_there(tmp_path: Path) -> None:
    """Its port is closed; the command says so."""
    visit = doctor(tmp_path, catalog=f"http://{LOOPBACK}:{free_port()}", catalog_secret=SHARED)

    assert "catalog" in visit.problems()
    assert "The Product Service" in visit.findings["catalog"]["detail"]
    assert "refuses connections" in visit.findings["catalog"]["detail"]
