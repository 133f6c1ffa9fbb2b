"""The HTTP API, put together: the outermost layer, the features in order, and whatever plugins are installed."""

from collections.abc import Sequence
from importlib.metadata import entry_points, version

from dishka import AsyncContainer
from litestar import Litestar
from litestar.plugins import InitPlugin

from entrypoints.api.access import AccessPlugin
from entrypoints.api.bodies import BODY_MAX, StrictRequest
from entrypoints.api.correlation import Correlation
from entrypoints.api.dead_letters import DeadLettersPlugin
from entrypoints.api.docs import DocsPlugin
from entrypoints.api.health import HealthPlugin
from entrypoints.api.imports import ImportsPlugin
from entrypoints.api.management import ManagementPlugin
from entrypoints.api.movements import MovementsPlugin
from entrypoints.api.outbox import OutboxPlugin
from entrypoints.api.parameters import ParametersPlugin
from entrypoints.api.problems import ProblemsPlugin
from entrypoints.api.product_events import ProductEventsPlugin
from entrypoints.api.product_service import ProductServicePlugin
from entrypoints.api.queries import QueriesPlugin
from entrypoints.api.receipts import ReceiptsPlugin
from entrypoints.api.reconciliation import ReconciliationPlugin
from entrypoints.api.reservations import ReservationsPlugin
from entrypoints.api.stream import StreamPlugin


def create_app(container: AsyncContainer, *, docs: bool = True, plugins: Sequence[InitPlugin] = ()) -> Litestar:
    """Return the application over an APP-scope ``container`` of Store, Writer, Inventory, KeyWatch and Broker.

    Starts and stops nothing: whoever made the container runs what is in it. ``plugins`` and those of the entry-point
    group ``inventory.http`` (classes or functions returning an InitPlugin) come after our own; their handlers may take
    APP-scope things by dishka's DishkaRouter, and must declare ``opt={"roles": (…)}``.

    Args:
        container: where handlers get what they ask for.
        docs: whether to serve ``/schema``.
        plugins: further features.

    Raises:
        ValidationFailed: a route declares no roles.
    """
    app = Litestar(
        plugins=[
            ProblemsPlugin(),
            AccessPlugin(),
            ParametersPlugin(),
            *([DocsPlugin(version("inventory-service"))] if docs else []),
            HealthPlugin(),
            QueriesPlugin(),
            StreamPlugin(),
            ManagementPlugin(),
            MovementsPlugin(),
            ReservationsPlugin(),
            ReceiptsPlugin(),
            ProductServicePlugin(),
            ProductEventsPlugin(),
            DeadLettersPlugin(),
            OutboxPlugin(),
            ImportsPlugin(),
            ReconciliationPlugin(),
            *plugins,
            *(entry.load()() for entry in entry_points(group="inventory.http")),
        ],
        openapi_config=None,
        request_class=StrictRequest,
        request_max_body_size=BODY_MAX,
        logging_config=None,
    )
    # Not dishka's setup: that opens a container per request, which costs more than the rest of a query together.
    # Nothing here lives shorter than the application, so its container serves, where dishka's own injection looks.
    app.asgi_handler = Correlation(app.asgi_handler, dishka_container=container)
    return app
