"""Reconciliation for operators: the runs, what they found and did, asking for one, ending one."""

from typing import Annotated, Any, TypeAlias

from dishka.integrations.litestar import DishkaRouter, FromDishka
from litestar import Request, get, post
from litestar.config.app import AppConfig
from litestar.params import QueryParameter
from litestar.plugins import InitPlugin
from msgspec import Struct

from core.errors import NotFound
from core.fields import Text
from core.findings import Finding, Repair, Repairs, Run, Tally
from core.ids import new_id
from entrypoints.api.bodies import Strict
from entrypoints.api.dead_letters import Decision, act
from entrypoints.api.parameters import Id, Limit
from entrypoints.api.replies import Reply, answers, ok, page
from ports.store import Page, Store

AnyRequest = Request[Any, Any, Any]
Shown: TypeAlias = Annotated[int, QueryParameter(ge=1, le=200, description="How many findings and repairs at most.")]
_RUN = answers(Run, name="ReconciliationSuccess")


class RunReport(Struct, frozen=True, rename="camel"):
    """A run; how much of what stood while it was on there is, by kind and age; and the first of that and of repairs."""

    run: Run
    tallies: list[Tally]
    findings: list[Finding]
    repairs: list[Repair]


class RunBody(Struct, frozen=True, rename="camel", kw_only=True, forbid_unknown_fields=True):
    """Why; whether to look at everything (``deep``) or only at how things stand; and what may be repaired.

    ``plan`` repairs nothing and says what would be, ``safe`` all but what takes stock away or off sale.
    """

    reason: Text
    deep: bool = True
    repairs: Repairs = "plan"


class ReconciliationPlugin(InitPlugin):
    """Reconciliation, in the hands of operators."""

    def on_app_init(self, app_config: AppConfig) -> AppConfig:
        """Add the routes."""
        handlers = [list_runs, start, show, cancel]
        router = DishkaRouter("/admin/reconciliation", route_handlers=handlers, tags=["Reconciliation"])
        app_config.route_handlers.append(router)
        return app_config


@get(operation_id="listReconciliations", responses=answers(Run, name="ReconciliationList", listed=True))
async def list_runs(store: FromDishka[Store], limit: Limit = 50) -> Reply:
    """List the last runs, newest first."""
    return page(Page(tuple(await store.reconciliations(limit)), None))


@post(operation_id="reconcile", status_code=202, responses=answers(Run, name="ReconciliationRequested", status=202))
async def start(request: AnyRequest, data: Strict[RunBody], store: FromDishka[Store]) -> Reply:
    """Ask for a run of whoever reconciles: a reconciler, or a service that does everything, within a second or two."""
    run = await store.request_reconciliation(
        new_id("rec"), deep=data.deep, repairs=data.repairs, act=act(request, data.reason)
    )
    return ok(run, status=202, location=f"/admin/reconciliation/{run.id}")


@get(
    "/{id:str}",
    operation_id="getReconciliation",
    responses=answers(RunReport, name="ReconciliationReport"),
)
async def show(reconciliation_id: Id, store: FromDishka[Store], limit: Shown = 100) -> Reply:
    """Return how far a run is, or what it found and did; `inventory reconcile show --json` has all of it."""
    if (run := await store.reconciliation(reconciliation_id)) is None:
        raise NotFound(f"There is no reconciliation {reconciliation_id}.")
    findings, repairs = await store.findings(run, limit=limit), await store.repairs(run, limit=limit)
    return ok(RunReport(run, await store.tallies(run), findings, repairs))


@post("/{id:str}/cancel", operation_id="cancelReconciliation", status_code=200, responses=_RUN)
async def cancel(request: AnyRequest, reconciliation_id: Id, data: Strict[Decision], store: FromDishka[Store]) -> Reply:
    """End a run that is asked for, going on or broken off; what it has repaired stays."""
    return ok(await store.cancel_reconciliation(reconciliation_id, act(request, data.reason)))
