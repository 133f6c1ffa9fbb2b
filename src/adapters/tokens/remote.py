"""A key set (JWKS) over HTTP: whatever is at the other end, one look ends in time and reads no more than it must."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import httpx2

from core.errors import Unavailable, ValidationFailed

CONNECT_SECONDS = 2.0
TOTAL_SECONDS = 5.0
BYTES_MAX = 256 * 1024


@asynccontextmanager
async def open_key_set(url: str) -> AsyncIterator[Callable[[], Awaitable[str]]]:
    """Return what fetches the key set at ``url``, each time anew. Nothing is sent yet.

    What it returns raises Unavailable, with a sentence that says why, unless a key set's text comes within
    ``TOTAL_SECONDS`` and ``BYTES_MAX``, from this very URL: a redirection could lead anywhere.

    Raises:
        ValidationFailed: the URL cannot be used.
    """
    try:
        parsed = httpx2.URL(url)
    except httpx2.InvalidURL as error:
        raise ValidationFailed(f"INVENTORY_AUTH_JWKS is not a URL: {error}.") from None
    if not parsed.host or parsed.fragment or parsed.userinfo:
        raise ValidationFailed("INVENTORY_AUTH_JWKS must be a URL with a host, and without user and fragment.")
    async with httpx2.AsyncClient(
        timeout=httpx2.Timeout(TOTAL_SECONDS, connect=CONNECT_SECONDS),
        limits=httpx2.Limits(max_keepalive_connections=0),  # minutes lie between two looks
        follow_redirects=False,
        trust_env=False,
    ) as client:

        async def fetch() -> str:
            try:
                async with asyncio.timeout(TOTAL_SECONDS):
                    return await _fetched(client, parsed)
            except TimeoutError as error:
                raise Unavailable(f"{parsed.host} gives no answer in {TOTAL_SECONDS:g} s.") from error
            except httpx2.HTTPError as error:
                reason = f"{type(error).__name__} ({error})" if str(error) else type(error).__name__
                raise Unavailable(f"{parsed.host} cannot be asked: {reason}.") from error

        yield fetch


async def _fetched(client: httpx2.AsyncClient, url: httpx2.URL) -> str:
    headers = {"accept": "application/jwk-set+json, application/json", "accept-encoding": "identity"}
    async with client.stream("GET", url, headers=headers) as answer:
        if 300 <= answer.status_code < 400:
            raise Unavailable(f"{url.host} redirects, which is not followed; set the address it redirects to.")
        if answer.status_code != 200:
            raise Unavailable(f"{url.host} answers with {answer.status_code}.")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise Unavailable(f"{url.host} compresses its answer without being asked to.")
        body = bytearray()
        async for piece in answer.aiter_raw():
            body += piece
            if len(body) > BYTES_MAX:
                raise Unavailable(f"The answer of {url.host} is larger than {BYTES_MAX} bytes.")
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Unavailable(f"The answer of {url.host} is not text.") from None
