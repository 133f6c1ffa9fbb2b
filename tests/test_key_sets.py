"""Public keys by URL: fetched from an owner who rotates, revokes, is away or misbehaves; and nobody is let in."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from in_process import ADMIN, serving, token

from adapters.tokens import remote, watch
from adapters.tokens.keys import KeyRing
from adapters.tokens.remote import BYTES_MAX, open_key_set
from adapters.tokens.verifier import Verifier
from adapters.tokens.watch import COOLDOWN_SECONDS, KEPT_SECONDS, KeyWatch
from core.errors import Unauthorized, Unavailable, ValidationFailed
from entrypoints.commands.doctor import diagnose
from entrypoints.config import load
from entrypoints.processes import process

SECRET = "a-secret-for-tests-that-is-long-enough"
ISSUER = AUDIENCE = "inventory-service"
OWN = {kid: ec.generate_private_key(ec.SECP256R1()) for kid in ("one", "two")}


def jwk(kid: str, **members: Any) -> dict[str, Any]:
    """The public part of one of our keys."""
    es256 = jwt.get_algorithm_by_name("ES256")
    public: dict[str, Any] = es256.to_jwk(OWN[kid].public_key(), as_dict=True)  # type: ignore[attr-defined]
    return public | {"kid": kid} | members


def key_set(*kids: str) -> str:
    """The set of these keys, as its owner publishes it."""
    return json.dumps({"keys": [jwk(kid) for kid in kids]})


def signed(kid: str, *roles: str, named: str = "") -> str:
    """A token that is good once this key is known; it names the key, or another."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "caller", "roles": roles, "iat": now, "exp": now + 600}
    return jwt.encode(claims, OWN[kid], "ES256", {"kid": named or kid})


class Owner:
    """Who publishes the keys; ``content`` is what is there, an exception what happens instead."""

    def __init__(self, content: str | Exception) -> None:
        self.content = content
        self.asked = 0
        self.now = 0.0
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def fetch(self) -> str:
        self.asked += 1
        await self.may_answer.wait()
        if isinstance(self.content, Exception):
            raise self.content
        return self.content

    def watch(self, *secrets: str) -> KeyWatch:
        keys = KeyRing(secrets=secrets, jwks="https://owner.example/keys")
        verifier = Verifier(keys, issuer=ISSUER, audience=AUDIENCE)
        return KeyWatch(verifier, self.fetch, clock=lambda: self.now)

    def later(self, seconds: float = COOLDOWN_SECONDS) -> None:
        self.now += seconds


AWAY = Unavailable("owner.example cannot be asked.")


async def looked(keys: KeyWatch, owner: Owner) -> None:
    """Have it look once, as it does every so often."""
    asked = owner.asked
    async with process.background(keys.keep()):
        while owner.asked == asked or keys._flight is None or not keys._flight.done():
            await asyncio.sleep(0)


async def test_a_key_is_found_when_the_first_token_names_it() -> None:
    """Nobody has to wait for the next look."""
    owner = Owner(key_set("one"))
    keys = owner.watch()

    assert (await keys.verify(signed("one"))).subject == "caller"
    assert (owner.asked, keys.state) == (1, "ok")


async def test_without_keys_nobody_is_let_in_and_nobody_is_told_wrong() -> None:
    """Before the first set has come a good token is not refused but put off; a secret is as good as ever."""
    owner = Owner(AWAY)
    keys = owner.watch(SECRET)

    assert keys.state == "unavailable"
    with pytest.raises(Unavailable, match="try again shortly"):
        await keys.verify(signed("one"))
    with pytest.raises(Unauthorized):
        await keys.verify("no.token.atall")
    assert (await keys.verify(hs256())).subject == "caller"
    assert keys.state == "unavailable"


def hs256(secret: str = SECRET) -> str:
    """A token signed with a shared secret."""
    now = int(time.time())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "caller", "roles": [], "iat": now, "exp": now + 600}
    return jwt.encode(claims, secret, "HS256")


async def test_rotation_refuses_nobody() -> None:
    """While both keys are published both are good; the new one is found by the first token that names it."""
    owner = Owner(key_set("one"))
    keys = owner.watch()
    await keys.verify(signed("one"))
    owner.content = key_set("one", "two")
    owner.later()

    assert (await keys.verify(signed("two"))).subject == "caller"
    assert (await keys.verify(signed("one"))).subject == "caller"
    assert owner.asked == 2


async def test_a_revoked_key_is_refused_at_once_whoever_was_known() -> None:
    """A token found good before is refused as soon as a set has come that lacks its key."""
    owner = Owner(key_set("one", "two"))
    keys = owner.watch()
    mine = signed("one")
    await keys.verify(mine)
    owner.content = key_set("two")
    await looked(keys, owner)

    with pytest.raises(Unauthorized, match="No key"):
        await keys.verify(mine)
    assert (await keys.verify(signed("two"))).subject == "caller"


async def test_unknown_keys_are_asked_for_once_however_many_come() -> None:
    """A hundred at once share one look; those that come before the cooldown is over are refused without one."""
    owner = Owner(key_set("one"))
    keys = owner.watch()
    owner.may_answer.clear()
    crowd = [asyncio.create_task(keys.verify(signed("one", named=f"kid-{number}"))) for number in range(100)]
    await asyncio.sleep(0.01)
    owner.may_answer.set()
    refusals = await asyncio.gather(*crowd, return_exceptions=True)

    assert {type(refusal).__mro__[1] for refusal in refusals} == {Unauthorized}
    assert owner.asked == 1
    owner.later(COOLDOWN_SECONDS - 1)
    with pytest.raises(Unauthorized):
        await keys.verify(signed("one", named="another"))
    assert owner.asked == 1
    owner.later(1)
    with pytest.raises(Unauthorized):
        await keys.verify(signed("one", named="another"))
    assert owner.asked == 2


@pytest.mark.parametrize("bad", [signed("two", named="one"), hs256(), signed("one") + "A", "x"])
async def test_what_no_new_key_could_mend_makes_nobody_look(bad: str) -> None:
    """A wrong signature, another algorithm and what is no token at all are refused where they stand."""
    owner = Owner(key_set("one"))
    keys = owner.watch()
    await keys.verify(signed("one"))
    owner.later()

    with pytest.raises(Unauthorized):
        await keys.verify(bad)
    assert owner.asked == 1


async def test_a_known_key_waits_for_nobody() -> None:
    """While a look hangs, tokens of known keys are judged at once, also ones not seen before."""
    owner = Owner(key_set("one"))
    keys = owner.watch()
    await keys.verify(signed("one"))
    owner.may_answer.clear()
    owner.later()
    waiting = asyncio.create_task(keys.verify(signed("two")))
    await asyncio.sleep(0.01)

    async with asyncio.timeout(0.5):
        assert (await keys.verify(signed("one", "role"))).roles == {"role"}
    assert not waiting.done()
    owner.content = key_set("one", "two")
    owner.may_answer.set()
    assert (await waiting).subject == "caller"


async def test_who_leaves_takes_the_look_from_nobody() -> None:
    """A caller who gives up while a look is under way does not end it for the others."""
    owner = Owner(key_set("one"))
    keys = owner.watch()
    owner.may_answer.clear()
    first, second = (asyncio.create_task(keys.verify(signed("one"))) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    await asyncio.sleep(0.01)
    owner.may_answer.set()

    assert (await second).subject == "caller"
    assert (first.cancelled(), owner.asked) == (True, 1)


@pytest.mark.parametrize("trouble", [AWAY, "not JSON", '{"keys": []}', ValueError("whatever")])
async def test_the_last_good_set_is_used_while_no_other_comes(trouble: str | Exception) -> None:
    """What its owner has broken changes nothing for those who are known; it is told, and over when he has mended it."""
    owner = Owner(key_set("one"))
    keys = owner.watch()
    await keys.verify(signed("one"))
    owner.content = trouble
    await looked(keys, owner)

    assert keys.state == "stale"
    assert (await keys.verify(signed("one"))).subject == "caller"
    with pytest.raises(Unavailable):  # it may be a good one: that cannot be found out
        await keys.verify(signed("two"))
    owner.content = key_set("two")
    await looked(keys, owner)
    assert (keys.state, keys.trouble) == ("ok", "")
    assert (await keys.verify(signed("two"))).subject == "caller"


async def test_the_last_good_set_is_not_used_for_ever() -> None:
    """Keys that may have been revoked a day ago are trusted no longer; secrets still are."""
    owner = Owner(key_set("one"))
    keys = owner.watch(SECRET)
    await keys.verify(signed("one"))
    owner.content = AWAY
    owner.later(KEPT_SECONDS - 1)
    await looked(keys, owner)
    assert (await keys.verify(signed("one"))).subject == "caller"
    owner.later(1)
    await looked(keys, owner)

    assert keys.state == "unavailable"
    with pytest.raises(Unavailable):
        await keys.verify(signed("one"))
    assert (await keys.verify(hs256())).subject == "caller"


async def test_keys_of_no_use_here_do_not_spoil_the_others() -> None:
    """Sets that others use as well hold keys for other things; none of those verifies anything."""
    secret = {"kty": "oct", "k": "c2VjcmV0", "kid": "secret"}
    private = jwt.get_algorithm_by_name("ES256").to_jwk(OWN["two"], as_dict=True) | {"kid": "two"}
    weak = jwt.get_algorithm_by_name("RS256").to_jwk(rsa.generate_private_key(65537, 1024).public_key(), as_dict=True)
    owner = Owner(json.dumps({"keys": [secret, jwk("one"), jwk("two", use="enc"), private, weak, "key", jwk("one")]}))
    keys = owner.watch()

    assert (await keys.verify(signed("one"))).subject == "caller"
    with pytest.raises(Unauthorized):
        await keys.verify(signed("two"))


async def test_it_looks_again_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so often, and sooner after a failure."""
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.01)
    owner = Owner(AWAY)
    keys = KeyWatch(owner.watch()._verifier, owner.fetch, seconds=0.05)
    async with process.background(keys.keep()), asyncio.timeout(5):
        while owner.asked < 3:
            await asyncio.sleep(0.01)
        owner.content = key_set("one")
        while keys.state != "ok":
            await asyncio.sleep(0.01)
        asked = owner.asked
        while owner.asked < asked + 2:
            await asyncio.sleep(0.01)


# -- over HTTP --------------------------------------------------------------------------------------------------------


Answer = Callable[[asyncio.StreamWriter], Awaitable[None]]


def answer(body: str | bytes, *, status: str = "200 OK", length: int | None = None, more: str = "") -> Answer:
    """Answer so."""
    content = body.encode() if isinstance(body, str) else body
    head = f"HTTP/1.1 {status}\r\ncontent-length: {len(content) if length is None else length}\r\n{more}\r\n"

    async def write(writer: asyncio.StreamWriter) -> None:
        writer.write(head.encode() + content)
        await writer.drain()

    return write


async def hang(_: asyncio.StreamWriter) -> None:
    """Say nothing."""
    await asyncio.sleep(60)


async def trickle(writer: asyncio.StreamWriter) -> None:
    """Say a little every so often, and never all."""
    writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


class Publisher:
    """A server that answers every request in one way, until told another."""

    def __init__(self, says: Answer) -> None:
        self.says = says
        self.asked: list[bytes] = []

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            self.asked.append(await reader.readuntil(b"\r\n\r\n"))
            await self.says(writer)
        writer.close()


@asynccontextmanager
async def publishing(says: Answer, *, port: int = 0) -> AsyncIterator[tuple[Publisher, str]]:
    """Run a publisher; yield it and its URL."""
    publisher = Publisher(says)
    server = await asyncio.start_server(publisher, "127.0.0.1", port)
    try:
        yield publisher, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/keys?tenant=1"
    finally:
        server.close()


async def test_a_key_set_is_fetched() -> None:
    """By GET, from the whole URL, uncompressed, without anybody's credentials."""
    async with publishing(answer(key_set("one"))) as (publisher, url), open_key_set(url) as fetch:
        assert await fetch() == key_set("one")

    (request,) = publisher.asked
    assert request.startswith(b"GET /keys?tenant=1 ")
    assert b"accept-encoding: identity" in request.lower()
    assert b"authorization" not in request.lower()


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        (answer("{}", status="500 Oh"), "answers with 500"),
        (answer("{}", status="404 No"), "answers with 404"),
        (answer("", status="302 Found", more="location: http://127.0.0.1:1/\r\n"), "redirects"),
        (answer(gzip.compress(b"{}"), more="content-encoding: gzip\r\n"), "compresses"),
        (answer(" " * (BYTES_MAX + 1)), "larger than"),
        (answer("{}", length=100), "cannot be asked"),
        (answer(b"\xff"), "not text"),
        (answer("", status="abc"), "cannot be asked"),
        (hang, "no answer in"),
        (trickle, "no answer in"),
    ],
    ids=["500", "404", "redirect", "gzip", "large", "cut", "bytes", "not HTTP", "hang", "trickle"],
)
async def test_a_publisher_that_misbehaves(says: Answer, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it does, it is over in time, and one sentence says what it was."""
    monkeypatch.setattr(remote, "TOTAL_SECONDS", 0.3)
    async with publishing(says) as (publisher, url), open_key_set(url) as fetch, asyncio.timeout(3):
        with pytest.raises(Unavailable, match=reason):
            await fetch()

        publisher.says = answer(key_set("one"))
        assert await fetch() == key_set("one")


@pytest.mark.parametrize("url", ["http://", "https://user:word@host/keys", "http://host/keys#one"])
async def test_a_url_that_cannot_be_used(url: str) -> None:
    """It is refused before anybody is served."""
    with pytest.raises(ValidationFailed, match="INVENTORY_AUTH_JWKS"):
        async with open_key_set(url):
            pass


async def test_the_service_and_its_keys(tmp_path: Path) -> None:
    """From the start without the source, over rotation and revocation, to a source that is away again."""
    async with (
        publishing(answer("", status="503 Later")) as (publisher, url),
        serving(tmp_path, auth_jwks=url, auth_jwks_seconds=1) as api,
        process.background((keys := await api.container.get(KeyWatch)).keep()),
        api.client() as client,
    ):

        async def status(kid: str) -> tuple[int, str]:
            headers = {"authorization": f"Bearer {signed(kid, ADMIN)}"}
            reply = await client.get("/warehouses", headers=headers)
            return reply.status_code, reply.json().get("code", "")

        async def until(state: str) -> None:
            async with asyncio.timeout(10):
                while keys.state != state:
                    await asyncio.sleep(0.05)

        assert await status("one") == (503, "unavailable")
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["dependencies"]["keys"]) == (503, "unavailable")
        assert "keys" in ready.json()["detail"]
        reply = await client.get("/warehouses", headers={"authorization": f"Bearer {token(ADMIN)}"})
        assert reply.status_code == 200  # by the secret

        publisher.says = answer(key_set("one"))
        await until("ok")
        assert await status("one") == (200, "")
        assert await status("two") == (401, "unauthorized")

        publisher.says = answer(key_set("two"))
        async with asyncio.timeout(10):
            while await status("two") != (200, ""):
                await asyncio.sleep(0.1)
        assert await status("one") == (401, "unauthorized")

        publisher.says = answer("", status="500 Oh")
        await until("stale")
        assert await status("two") == (200, "")
        await asyncio.sleep(1.1)  # as long as a look at the dependencies is good for
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["data"]["status"]) == (200, "degraded")
        assert ready.json()["data"]["dependencies"]["keys"] == "stale"


@pytest.mark.parametrize(
    ("says", "verdict", "detail"),
    [
        (answer(key_set("one", "two")), "ok", "has 2 keys"),
        (answer(json.dumps({"keys": [jwk("one"), jwk("two", use="enc")]})), "warning", "1 can be used, 1 not: key 2"),
        (answer(json.dumps({"keys": [jwk("two", use="enc")]})), "problem", "0 can be used"),
        (answer("<html>"), "problem", "is not JSON"),
        (answer("", status="404 No"), "problem", "answers with 404"),
    ],
)
async def test_the_doctor_looks_at_the_keys(says: Answer, verdict: str, detail: str, tmp_path: Path) -> None:
    """What is at the URL is told before a service depends on it."""
    async with publishing(says) as (_, url):
        config = load({"data_dir": str(tmp_path), "auth_secret": SECRET, "auth_jwks": url}, environ={})
        (finding,) = (finding for finding in await diagnose(config) if finding.check == "keys")

    assert finding.verdict == verdict
    assert detail in finding.detail
    assert (finding.remedy == "") == (verdict == "ok")
