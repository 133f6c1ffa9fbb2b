"""The API's own documentation: an OpenAPI document, and a page to read and try it that works without the internet."""

from functools import lru_cache
from html import escape
from importlib import resources
from typing import Any

import msgspec
from litestar import Request, Router, get
from litestar.config.app import AppConfig
from litestar.datastructures import ResponseHeader
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin, OpenAPIRenderPlugin
from litestar.openapi.spec import Components, SecurityScheme, Tag
from litestar.params import FromPath
from litestar.plugins import InitPlugin
from litestar.response import Response

from core.errors import NotFound
from entrypoints.api.openapi import complete
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
    "Expected receipts": "Units that are to come, such as the lines of a purchase order.",
    "Products": "Totals over a product's items.",
    "Dead letters": "Messages that could not be dealt with; operators look at them, administrators mend them.",
    "Outbox": "Events on their way out: what waits, what no broker takes, and publishing again.",
    "Service": "Health, and what errors mean.",
}
_ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}
# Whatever the vendored page might try, the browser asks nobody but us.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


class DocsPlugin(InitPlugin):
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
            render_plugins=[_Page(path="/"), _Document()],
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


@get("/schema/assets/{name:str}", include_in_schema=False)
async def asset(name: FromPath[str]) -> Reply:
    """Return a vendored file of the page."""
    if name not in _ASSETS:
        raise NotFound("There is no such file.")
    return Reply(_read(name), media_type=_ASSETS[name].encode(), headers=[(b"cache-control", b"max-age=86400")])


@lru_cache
def _read(name: str) -> bytes:
    return (resources.files("entrypoints.api") / "static" / "swagger-ui" / name).read_bytes()


class _Document(JsonRenderPlugin):
    def __init__(self) -> None:
        super().__init__()
        self._encoded = b""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        if not self._encoded:
            self._encoded = msgspec.json.encode(complete(request.app, openapi_schema))
        return self._encoded


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
