"""Who may call what: every route of the running application, with every kind of caller."""

import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from dishka import make_async_container
from in_process import ADMIN, OPERATOR, PRODUCT_SERVICE, SECRET, Api, ask, serving, token
from litestar import get
from litestar.config.app import AppConfig
from litestar.plugins import InitPlugin
from litestar.routes import HTTPRoute

from core.errors import ValidationFailed
from entrypoints.api.app import create_app

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "TRACE", "OPTIONS")
ROUTES = sorted(
    (method, route.path_format)
    for route in create_app(make_async_container()).routes
    if isinstance(route, HTTPRoute)
    for method in route.methods
    if method != "OPTIONS"
)
PATHS = sorted({path for _, path in ROUTES})
PUBLIC = {
    ("GET", path)
    for path in (
        "/health",
        "/health/live",
        "/health/ready",
        "/problems/{name}",
        "/schema",
        "/schema/openapi.json",
        "/schema/{path}",
        "/schema/assets/{name}",
    )
}
QUERIES = {
    ("GET", "/inventory-items/by-product/{productId}"),
    ("GET", "/inventory-items/{id}/availability"),
    ("GET", "/products/{productId}/availability"),
    ("GET", "/events"),
}
EVENTS = {("POST", "/product-events"), ("GET", "/product-events/{eventId}")}
ADMINS_ALONE = {(method, path) for method, path in ROUTES if path.startswith("/admin/") and method != "GET"}
ADMINS_ALONE |= {("POST", "/product-events")}
CLOSED = [route for route in ROUTES if route not in PUBLIC]


@pytest.fixture(scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """One empty service for all of these tests."""
    async with serving(tmp_path_factory.mktemp("access")) as api:
        yield api


def _url(path: str) -> str:
    for name in ("{productId}", "{eventId}", "{id}", "{name}", "{path}"):
        path = path.replace(name, "prod_1" if name == "{productId}" else "inv_1")
    return path


async def _status(api: Api, method: str, path: str, *roles: str) -> int:
    async with api.client(*roles) as client:
        return (await client.request(method, _url(path))).status_code


def _expired() -> str:
    issued = int(time.time()) - 600
    claims = {"iss": "inventory-service", "aud": "inventory-service", "sub": "tester", "roles": [ADMIN]}
    return jwt.encode(claims | {"iat": issued, "exp": issued + 500}, SECRET, "HS256")


# Who may what, by the design and not by the service's table. None is for those who have no good token.
CALLERS: dict[str, tuple[str | None, set[tuple[str, str]] | None]] = {
    "nobody": (None, None),
    "expired": (_expired(), None),
    "foreign": (jwt.encode({"roles": [ADMIN]}, "somebody else's secret, long enough", "HS256"), None),
    "no role": (token(), set()),
    "unknown role": (token("root"), set()),
    "product-events": (token("product-events"), EVENTS),
    PRODUCT_SERVICE: (token(PRODUCT_SERVICE), QUERIES),
    OPERATOR: (token(OPERATOR), {*CLOSED} - ADMINS_ALONE),
    ADMIN: (token(ADMIN), {*CLOSED}),
}


@pytest.mark.parametrize("caller", CALLERS)
async def test_every_caller_on_every_path_with_every_method(api: Api, caller: str) -> None:
    """The whole matrix: in, 401, 403, or 405 where there is no such method, and nothing else."""
    bearer, rights = CALLERS[caller]
    headers = {"Authorization": f"Bearer {bearer}"} if bearer else {}
    got, wanted = {}, {}
    for path in PATHS:
        for method in METHODS:
            status = (await ask(api.app, method, _url(path), headers=headers)).status
            got[method, path] = status if status in (401, 403, 405) or status >= 500 else "in"
            if (status, path) == (503, "/events"):  # nobody runs the stream here; to say so is to let in
                got[method, path] = "in"
            ways = {(way, at) for way, at in ROUTES if at == path and method in (way, "OPTIONS")}
            closed = ways and not ways & PUBLIC
            refused = 401 if rights is None else 403 if not ways & rights else "in"
            wanted[method, path] = refused if closed else "in" if ways else 405
    assert got == wanted


@pytest.mark.parametrize(("method", "path"), CLOSED)
async def test_nobody_gets_past_without_a_good_token(api: Api, method: str, path: str) -> None:
    """No token, another scheme, a foreign signature: 401 with the challenge, whatever the route."""
    good = token(ADMIN)
    for value in ("", "Bearer", "Bearer ", f"Basic {good}", f"Bearer {good[:-6]}AAAAAA", good):
        answer = await ask(api.app, method, _url(path), headers={"Authorization": value} if value else {})
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["code"] == "unauthorized"


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize(
    "roles", [("inventory-service",), ("Inventory-Admin", "admin", "*"), ("public",), ("product-event",)]
)
async def test_roles_without_rights_are_refused_everywhere(
    api: Api, method: str, path: str, roles: tuple[str, ...]
) -> None:
    """Only an exact role opens a route, and these open none today."""
    assert await _status(api, method, path, *roles) == 403


@pytest.mark.parametrize(("method", "path"), CLOSED)
@pytest.mark.parametrize("role", [ADMIN, OPERATOR])
async def test_operators_and_admins_manage_stock(api: Api, method: str, path: str, role: str) -> None:
    """All is open to admins, all but a little to operators; what they send is then judged on its own."""
    status = await _status(api, method, path, role)
    if role == OPERATOR and (method, path) in ADMINS_ALONE:
        assert status == 403
    else:
        assert status not in (401, 403, 405, 500)


async def test_the_product_service_reaches_the_queries_and_nothing_else(api: Api) -> None:
    """Least privilege, by what the service answers and not by what its table says."""
    open_to_it = {route for route in CLOSED if await _status(api, *route, PRODUCT_SERVICE) != 403}
    assert open_to_it == QUERIES


async def test_whoever_brings_events_brings_events_and_nothing_else(api: Api) -> None:
    """The same for the role product-events."""
    assert {route for route in CLOSED if await _status(api, *route, "product-events") != 403} == EVENTS


@pytest.mark.parametrize(("method", "path"), sorted(PUBLIC))
async def test_public_routes_need_no_token(api: Api, method: str, path: str) -> None:
    """Health, documentation and the explanations of problems are for everybody."""
    assert await _status(api, method, path) in (200, 404)


@pytest.mark.parametrize("path", PATHS)
async def test_swapping_the_method_opens_nothing(api: Api, path: str) -> None:
    """A method that a path does not declare is 405 to anybody, with those it does take, and tells nothing else."""
    for method in METHODS:
        if (method, path) in ROUTES or method == "OPTIONS":
            continue
        answer = await ask(api.app, method, _url(path), headers={"X-HTTP-Method-Override": "GET"})
        assert answer.status == 405
        assert set(answer.headers["allow"].split(", ")) == {way for way, at in ROUTES if at == path} | {"OPTIONS"}
        assert answer.json()["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", PATHS)
async def test_options_is_for_those_who_may_use_the_path(api: Api, path: str) -> None:
    """OPTIONS names a path's methods to whoever may use one of them."""
    url = _url(path)
    public = any((way, path) in PUBLIC for way in METHODS)
    assert await _status(api, "OPTIONS", url) == (204 if public else 401)
    assert await _status(api, "OPTIONS", url, "unknown") == (204 if public else 403)
    async with api.client(ADMIN) as client:
        answer = await client.options(url)
    assert answer.status_code == 204
    assert set(answer.headers["allow"].split(", ")) == {way for way, at in ROUTES if at == path} | {"OPTIONS"}


async def test_the_token_is_judged_before_the_body_is_read(api: Api) -> None:
    """A caller without rights cannot make the service read anything."""

    async def receive() -> Any:
        raise AssertionError("the body was read")

    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    for headers in ([], [(b"authorization", f"Bearer {token(PRODUCT_SERVICE)}".encode())]):
        scope: Any = {"type": "http", "method": "POST", "path": "/stock-operations", "query_string": b""}
        await api.app(scope | {"headers": headers}, receive, send)
    assert statuses[::2] == [401, 403]


async def test_a_route_without_roles_keeps_the_application_from_starting() -> None:
    """Default deny: forgetting the roles is found at the start, not by a stranger."""

    @get("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(ValidationFailed, match="GET /forgotten declares no roles"):
        create_app(make_async_container(), plugins=[_Adding(forgotten)])


class _Adding(InitPlugin):
    def __init__(self, handler: Any) -> None:
        self._handler = handler

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        app_config.route_handlers.append(self._handler)
        return app_config
