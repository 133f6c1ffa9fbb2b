"""Who may call what: one table, and nothing that is not in it.

A route that neither stands here nor declares ``opt={"roles": (...)}`` keeps the application from starting. The token is
judged before the body is read. Paths and methods that do not exist are answered 404 and 405 to anybody: what exists is
public in ``/schema``, what it holds is not.
"""

from litestar.config.app import AppConfig
from litestar.handlers import HTTPRouteHandler
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.routes import BaseRoute, HTTPRoute
from litestar.types import ASGIApp, Receive, Scope, Send

from adapters.tokens.watch import KeyWatch
from core.errors import Forbidden, Unauthorized, ValidationFailed
from entrypoints.api.headers import header
from entrypoints.api.replies import Reply

PUBLIC = frozenset({"public"})
_ADMIN = frozenset({"inventory-admin"})
_MANAGE = _ADMIN | {"inventory-operator"}
_QUERY = _MANAGE | {"product-service"}

ACCESS: dict[tuple[str, str], frozenset[str]] = {
    ("GET", "/inventory-items/by-product/{productId}"): _QUERY,
    ("GET", "/inventory-items/{id}/availability"): _QUERY,
    ("GET", "/inventory-items"): _MANAGE,
    ("POST", "/inventory-items"): _MANAGE,
    ("GET", "/inventory-items/{id}"): _MANAGE,
    ("PATCH", "/inventory-items/{id}"): _MANAGE,
    ("GET", "/inventory-items/{id}/transactions"): _MANAGE,
    ("GET", "/warehouses"): _MANAGE,
    ("POST", "/warehouses"): _MANAGE,
    ("GET", "/warehouses/{id}"): _MANAGE,
    ("PATCH", "/warehouses/{id}"): _MANAGE,
    ("GET", "/products/{productId}/availability"): _QUERY,
    ("GET", "/events"): _QUERY,
    ("GET", "/products/{productId}"): _MANAGE,
    ("PATCH", "/products/{productId}"): _MANAGE,
    ("POST", "/stock-operations"): _MANAGE,
    ("POST", "/reservations"): _MANAGE,
    ("GET", "/reservations"): _MANAGE,
    ("GET", "/reservations/{id}"): _MANAGE,
    ("POST", "/reservations/{id}/confirm"): _MANAGE,
    ("POST", "/reservations/{id}/extend"): _MANAGE,
    ("POST", "/reservations/{id}/fulfil"): _MANAGE,
    ("POST", "/reservations/{id}/release"): _MANAGE,
    ("POST", "/expected-receipts"): _MANAGE,
    ("GET", "/expected-receipts"): _MANAGE,
    ("GET", "/expected-receipts/{id}"): _MANAGE,
    ("PATCH", "/expected-receipts/{id}"): _MANAGE,
    ("POST", "/expected-receipts/{id}/receive"): _MANAGE,
    ("POST", "/expected-receipts/{id}/cancel"): _MANAGE,
    ("POST", "/product-events"): _ADMIN | {"product-events"},
    ("GET", "/product-events/{eventId}"): _MANAGE | {"product-events"},
    ("POST", "/imports"): _MANAGE,
    ("GET", "/imports"): _MANAGE,
    ("GET", "/imports/{id}"): _MANAGE,
    ("GET", "/imports/{id}/errors"): _MANAGE,
    ("GET", "/imports/{id}/errors.csv"): _MANAGE,
    ("POST", "/imports/{id}/cancel"): _MANAGE,
    ("GET", "/exports/{kind}"): _MANAGE,
    ("GET", "/admin/product-service"): _MANAGE,
    ("GET", "/admin/product-service/checks"): _MANAGE,
    ("PUT", "/admin/product-service/circuit"): _ADMIN,
    ("GET", "/admin/dead-letters"): _MANAGE,
    ("GET", "/admin/dead-letters/groups"): _MANAGE,
    ("GET", "/admin/dead-letters/retries"): _MANAGE,
    ("POST", "/admin/dead-letters/retries"): _ADMIN,
    ("GET", "/admin/dead-letters/retries/{id}"): _MANAGE,
    ("POST", "/admin/dead-letters/retries/{id}/cancel"): _ADMIN,
    ("GET", "/admin/dead-letters/{id}"): _MANAGE,
    ("POST", "/admin/dead-letters/{id}/retry"): _ADMIN,
    ("POST", "/admin/dead-letters/{id}/edit"): _ADMIN,
    ("POST", "/admin/dead-letters/{id}/discard"): _ADMIN,
    ("POST", "/admin/dead-letters/{id}/restore"): _ADMIN,
    ("POST", "/admin/dead-letters/{id}/note"): _ADMIN,
    ("GET", "/admin/outbox"): _MANAGE,
    ("POST", "/admin/outbox/blocked/{eventId}/release"): _ADMIN,
    ("POST", "/admin/outbox/replay"): _ADMIN,
    ("GET", "/admin/outbox/replays"): _MANAGE,
    ("GET", "/admin/outbox/replays/{id}"): _MANAGE,
    ("POST", "/admin/outbox/replays/{id}/cancel"): _ADMIN,
    ("GET", "/admin/reconciliation"): _MANAGE,
    ("POST", "/admin/reconciliation"): _ADMIN,
    ("GET", "/admin/reconciliation/{id}"): _MANAGE,
    ("POST", "/admin/reconciliation/{id}/cancel"): _ADMIN,
    ("GET", "/health"): PUBLIC,
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/problems/{name}"): PUBLIC,
    ("GET", "/schema"): PUBLIC,
    ("GET", "/schema/openapi.json"): PUBLIC,
    ("GET", "/schema/{path}"): PUBLIC,
    ("GET", "/schema/assets/{name}"): PUBLIC,
}


class AccessPlugin(InitPlugin, ReceiveRoutePlugin):
    """Gives every route its roles, and lets nobody past without one of them."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Put the check in front of every handler, before any plugin's middleware."""
        app_config.middleware.insert(0, _Gate)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Write the roles into each handler's ``opt``, where the check reads them.

        Raises:
            ValidationFailed: the route has no roles.
        """
        if not isinstance(route, HTTPRoute):
            raise ValidationFailed(f"Route {route.path} is not an HTTP route; this service knows no roles for those.")
        handlers = [handler for handler in route.route_handlers if "OPTIONS" not in handler.http_methods]
        for handler in handlers:
            for method in handler.http_methods:
                roles = _roles(method, route.path_format, handler)
                handler.opt = {**handler.opt, "roles": roles}
                handler.security = None if roles == PUBLIC else [{"token": []}]
        anybody = frozenset[str]().union(*(handler.opt["roles"] for handler in handlers))
        for handler in route.route_handlers:
            if handler not in handlers:  # OPTIONS, for whoever may use the path at all
                roles = PUBLIC if anybody >= PUBLIC else anybody
                handler.opt = {**handler.opt, "roles": roles, "allow": ", ".join(sorted(route.methods)).encode()}


def _roles(method: str, path: str, handler: HTTPRouteHandler) -> frozenset[str]:
    roles = ACCESS.get((method, path)) or frozenset(handler.opt.get("roles", ()))
    if not roles:
        raise ValidationFailed(f'{method} {path} declares no roles: add opt={{"roles": (…)}} to its handler.')
    return roles


class _Gate:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._keys: KeyWatch | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opt = scope["route_handler"].opt
        roles: frozenset[str] = opt["roles"]
        if roles != PUBLIC:
            keys = self._keys
            if keys is None:
                keys = self._keys = await scope["state"]["dishka_container"].get(KeyWatch)
            principal = scope["user"] = await keys.verify(_token(scope))
            if roles.isdisjoint(principal.roles):
                raise Forbidden(f"This needs one of the roles: {', '.join(sorted(roles))}.")
        if scope.get("method") == "OPTIONS" and "allow" in opt:
            # Litestar's own answer forgets methods that were added to the path later.
            await Reply(b"", status=204, headers=[(b"allow", opt["allow"])])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _token(scope: Scope) -> str:
    try:
        value = header(scope, "authorization")
    except ValidationFailed as error:
        raise Unauthorized(error.detail) from None
    scheme, _, token = (value or "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("Send a token: Authorization: Bearer followed by the token.")
    return token
