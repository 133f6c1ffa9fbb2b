"""The API's own documentation: an OpenAPI document, and a page to read and try it that works without the internet.

What all operations have in common (headers, errors, the security scheme) is said once, here.
"""

from dataclasses import dataclass
from functools import lru_cache
from html import escape
from importlib import resources
from typing import Any

from litestar import Request, Router, get
from litestar.config.app import AppConfig
from litestar.datastructures import ResponseHeader
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import OpenAPIRenderPlugin
from litestar.openapi.spec import (
    Components,
    Example,
    OpenAPIType,
    Operation,
    Parameter,
    RequestBody,
    Schema,
    SecurityScheme,
    Tag,
)
from litestar.params import FromPath
from litestar.plugins import InitPlugin, ReceiveRoutePlugin
from litestar.response import Response
from litestar.routes import BaseRoute, HTTPRoute

from core.errors import NotFound
from entrypoints.api.examples import EXAMPLES
from entrypoints.api.problems import MEDIA_TYPE, Problem
from entrypoints.api.replies import Reply

DESCRIPTION = """The canonical source of stock: how many, where, by when.

Every answer is `{"success": true, "data": …}`; every error is a problem document (RFC 9457) whose `code` is stable and
whose `detail` says what to do. Send `X-Correlation-Id` to find a request again in events and logs, and
`Idempotency-Key` with a write to be able to repeat it safely. Unknown fields and query parameters are refused."""

_TAGS = {
    "Queries": "What the Product Service asks.",
    "Warehouses": "Places that hold stock.",
    "Inventory items": "One SKU in one warehouse.",
    "Stock operations": "The only way to change stock, and the ledger of every change.",
    "Reservations": "Units promised to a cart or order.",
    "Products": "Totals over a product's items.",
    "Service": "Health, and what errors mean.",
}
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# Whatever the vendored page might try, the browser asks nobody but us.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


_WITHOUT_BODY = ("confirmReservation",)
_BODY_OPTIONAL = ("extendReservation", "fulfilReservation", "releaseReservation")


class DocsPlugin(InitPlugin, ReceiveRoutePlugin):
    """Serves the OpenAPI document and its page under ``/schema``."""

    def __init__(self, version: str) -> None:
        """Document this ``version`` of the service."""
        self._version = version

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Turn Litestar's OpenAPI on, with our page."""
        app_config.openapi_config = OpenAPIConfig(
            title="Inventory Service",
            version=self._version,
            description=DESCRIPTION,
            use_handler_docstrings=True,
            tags=[Tag(name=name, description=text) for name, text in _TAGS.items()],
            components=Components(
                security_schemes={"token": SecurityScheme(type="http", scheme="bearer", bearer_format="JWT")}
            ),
            render_plugins=[_Page(path="/")],
            openapi_router=Router(
                "/schema",
                route_handlers=[],
                include_in_schema=False,
                after_request=_no_other_pages,
                response_headers=[ResponseHeader(name="content-security-policy", value=_POLICY)],
            ),
        )
        app_config.route_handlers.append(asset)
        return app_config

    def receive_route(self, route: BaseRoute) -> None:
        """Add to each handler's documentation what it shares with the others."""
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.resolve_include_in_schema():
                    handler.operation_class = _Documented
                    named = bool(route.path_parameters)
                    handler.responses = {**_problems(handler, named=named), **(handler.responses or {})}


@get("/schema/assets/{name:str}", include_in_schema=False)
async def asset(name: FromPath[str]) -> Reply:
    """Return a vendored file of the page."""
    if name not in _ASSETS:
        raise NotFound("There is no such file.")
    return Reply(_read(name), media_type=_ASSETS[name].encode(), headers=[(b"cache-control", b"max-age=86400")])


@lru_cache
def _read(name: str) -> bytes:
    return (resources.files("entrypoints.api") / "static" / "swagger-ui" / name).read_bytes()


class _Page(OpenAPIRenderPlugin):
    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(openapi_schema["info"]["title"])}</title>
<link rel="icon" href="data:,"><link rel="stylesheet" href="/schema/assets/swagger-ui.css">
</head>
<body>
<div id="page"></div>
<script src="/schema/assets/swagger-ui-bundle.js"></script>
<script>SwaggerUIBundle({{
  url: "/schema/openapi.json", dom_id: "#page", deepLinking: true, validatorUrl: null, persistAuthorization: true,
  defaultModelsExpandDepth: 0, tryItOutEnabled: true
}})</script>
</body>
</html>""".encode()


async def _no_other_pages(response: Response[Any]) -> Response[Any]:
    """Litestar answers unknown paths under ``/schema`` with a page of its own; errors have one shape here."""
    if response.status_code == 404:
        raise NotFound("There is nothing at this path; GET /schema lists what there is.")
    return response


def _problems(handler: HTTPRouteHandler, *, named: bool) -> dict[int, ResponseSpec]:
    statuses = {400: "The request is not valid.", 503: "Try again shortly."}
    if handler.security:
        statuses |= {401: "No acceptable token.", 403: "The token's roles do not allow this."}
    if "POST" in handler.http_methods and "data" not in handler.parsed_fn_signature.parameters:
        statuses |= {409: "The state of the stock refuses it; `code` says why.", 422: "The key was used before."}
    if "data" in handler.parsed_fn_signature.parameters:
        named = True
        statuses |= {
            409: "The state of the stock refuses it; `code` says why.",
            413: "The body is too large.",
            415: "The body is not plain JSON.",
            422: "The idempotency key came before with another request.",
        }
    if "PATCH" in handler.http_methods:
        statuses[412] = "If-Match does not name the current version."
    if named:
        statuses[404] = "Something named does not exist."
    return {
        status: ResponseSpec(Problem, description=text, media_type=MEDIA_TYPE, generate_examples=False)
        for status, text in statuses.items()
    }


@dataclass
class _Documented(Operation):
    def __post_init__(self) -> None:
        headers = [_header("X-Correlation-Id", "The caller's name for what it does; echoed.", "checkout-4711")]
        if isinstance(self.request_body, RequestBody) or self.operation_id in _WITHOUT_BODY:
            headers.append(_header("Idempotency-Key", "Repeats with the same key get the first answer.", "9f4c1e"))
        if isinstance(self.request_body, RequestBody):
            examples = EXAMPLES.get(self.operation_id or "", {})
            self.request_body.required = self.operation_id not in _BODY_OPTIONAL
            for media_type in self.request_body.content.values():
                media_type.examples = {name: Example(value=value) for name, value in examples.items()}
        if self.operation_id in ("updateWarehouse", "updateInventoryItem"):
            headers.append(_header("If-Match", "Only if this is still the version.", '"7"'))
        if self.operation_id in ("getWarehouse", "getInventoryItem"):
            headers.append(_header("If-None-Match", "304 if this is still the version.", '"7"'))
        # A docstring's first sentence stands in the list, the rest with the details.
        first, _, rest = (self.description or "").partition(". ")
        self.summary, self.description = first.rstrip("."), rest or None
        self.parameters = [*(self.parameters or []), *headers]


def _header(name: str, description: str, example: str) -> Parameter:
    schema = Schema(type=OpenAPIType.STRING, examples=[example])
    return Parameter(name=name, param_in="header", description=description, schema=schema, required=False)
