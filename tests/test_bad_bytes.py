"""Bad inputs as bytes on the wire, which client libraries would not send: to the real server, which lives on."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import NamedTuple

import pytest
from service import Service, token

SECONDS = 20
SLOW = 300


class Bad(NamedTuple):
    """Bytes, the status they get, and whether our own problem comes with it; a server's refusal has no body."""

    status: int
    content: bytes
    problem: bool = True


def get(target: bytes, *headers: bytes) -> bytes:
    """A request with a good token, put in later."""
    return b"\r\n".join([b"GET %b HTTP/1.1" % target, b"Host: inventory", b"Authorization: TOKEN", *headers, b"", b""])


def post(body: bytes, *headers: bytes) -> bytes:
    """A warehouse to be made."""
    typed = (b"Content-Type: application/json", *headers)
    return get(b"/warehouses", *typed).replace(b"GET", b"POST", 1) + body


BODY = b'{"name":"N"}'
BAD = {
    "28 a token of 1 MB": Bad(431, get(b"/warehouses").replace(b"TOKEN", b"Bearer " + b"a" * 2**20), problem=False),
    "28 a token of 9 KB": Bad(401, get(b"/warehouses").replace(b"TOKEN", b"Bearer " + b"a" * 9_000)),
    "28 2,000 headers": Bad(431, get(b"/warehouses", *(b"X-%d: a" % number for number in range(2_000))), problem=False),
    "29 %00": Bad(404, get(b"/inventory-items/inv_%00")),
    "29 a bare NUL": Bad(400, get(b"/inventory-items/inv_\0"), problem=False),
    "29 a bare byte": Bad(400, get(b"/inventory-items/inv_\xff"), problem=False),
    "29 overlong UTF-8": Bad(404, get(b"/inventory-items/inv_%C0%AF")),
    "29 overlong UTF-8 in a product": Bad(404, get(b"/inventory-items/by-product/%C0%AF")),
    "29 overlong UTF-8 in a filter": Bad(400, get(b"/inventory-items?sku=%C0%AF")),
    "29 right to left": Bad(404, get(b"/inventory-items/inv_%E2%80%AE1")),
    "29 lone surrogate": Bad(404, get(b"/inventory-items/by-product/%ED%A0%80")),
    "30 ../": Bad(404, get(b"/inventory-items/../health")),
    "30 %2e%2e": Bad(404, get(b"/inventory-items/%2e%2e/health")),
    "30 %2f": Bad(404, get(b"/schema/assets/..%2f..%2fapp.py")),
    "30 backslash": Bad(404, get(b"/schema/assets/..%5c..%5capp.py")),
    "30 encoded twice": Bad(404, get(b"/schema/assets/%252e%252e/app.py")),
    "30 a semicolon": Bad(404, get(b"/inventory-items/inv_1;v=1")),
    "32 10 MB and one byte": Bad(413, post(b" " * (10 * 2**20 + 1), b"Content-Length: 10485761")),
    "32 pieces without length": Bad(
        413, post(b"20000\r\n%b\r\n0\r\n\r\n" % (b" " * 0x20000), b"Transfer-Encoding: chunked")
    ),
    "32 a length too short": Bad(400, post(BODY, b"Content-Length: 5")),
    "32 a negative length": Bad(400, post(BODY, b"Content-Length: -1"), problem=False),
    "32 two lengths": Bad(400, post(BODY, b"Content-Length: 12", b"Content-Length: 5"), problem=False),
    "36 gzip": Bad(415, post(BODY, b"Content-Length: 12", b"Content-Encoding: gzip")),
    "37 TRACE": Bad(405, get(b"/warehouses").replace(b"GET", b"TRACE", 1)),
    "37 CONNECT": Bad(404, get(b"elsewhere:443").replace(b"GET", b"CONNECT", 1)),
    "a folded header": Bad(400, get(b"/warehouses", b"X: a\r\n b"), problem=False),
    "a space before a colon": Bad(400, get(b"/warehouses", b"X : a"), problem=False),
    "a TLS greeting": Bad(400, b"\x16\x03\x01\x00\xa5\x01\x00\x00", problem=False),
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The whole service in one process."""
    store = f"sqlite:///{tmp_path_factory.mktemp('bytes')}/stock.db"
    with Service("serve", store=store, broker="memory://") as service:
        yield service


def _connect(service: Service) -> socket.socket:
    return socket.create_connection(("127.0.0.1", service.port), timeout=SECONDS)


def _ask(service: Service, content: bytes) -> bytes:
    """Send bytes and return the head of the first answer, with its body where it comes at once."""
    with _connect(service) as connection:
        with suppress(OSError):  # it need not read all before it refuses
            connection.sendall(content.replace(b"TOKEN", f"Bearer {token()}".encode()))
        answer = b""
        while b"\r\n\r\n" not in answer or (b"problem+json" in answer and b"correlationId" not in answer):
            answer += connection.recv(65_536) or b"\r\n\r\n(the end)"
        return answer


def _warehouses(service: Service) -> bytes:
    return _ask(service, get(b"/warehouses")).partition(b"\r\n")[0]


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_it_is_refused_and_the_server_lives_on(service: Service, bad: Bad) -> None:
    """With the right status, as a problem wherever it came as far as us; nothing is made, and the next is answered."""
    answer = _ask(service, bad.content)
    assert (bad.status, bad.problem) == (int(answer.split()[1]), b"problem+json" in answer), answer[:500]
    assert b"HTTP/1.1 200 OK" == _warehouses(service)
    with service.client() as client:
        assert [] == client.get("/warehouses").json()["data"]


def test_33_slow_senders_keep_nobody_waiting(service: Service) -> None:
    """Hundreds of connections that never finish their headers or bodies do not keep others from being answered."""
    with ExitStack() as stack:
        for number in range(SLOW):
            connection = stack.enter_context(_connect(service))
            unfinished = post(b"{", b"Content-Length: 100") if number % 2 else get(b"/warehouses")[:-4]
            connection.sendall(unfinished.replace(b"TOKEN", f"Bearer {token()}".encode()))
        assert b"HTTP/1.1 200 OK" == _warehouses(service)


def test_nothing_of_it_was_unexpected(service: Service) -> None:
    """Whatever came in, the log has no error of ours."""
    assert [] == [line for line in service.logged().splitlines() if '"level": "error"' in line or "Traceback" in line]
