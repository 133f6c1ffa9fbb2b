"""What schemathesis must know of this service beside its document: loaded by it, see ``test_schemathesis.py``."""

from typing import Any

import schemathesis
from schemathesis.core import NotSet
from schemathesis.core.failures import AcceptedNegativeData, Failure
from schemathesis.generation import GenerationMode


@schemathesis.hook
def before_call(_: Any, case: schemathesis.Case, __: dict[str, Any]) -> None:
    """Make a request that is meant to be good mean something, where JSON Schema cannot say what does.

    A cursor is only ever one that a page gave; an entity tag is quoted; an integer is written without a fraction; no
    text holds NUL, metadata included; a range has its smaller end first; what happened lies in the past, and nothing at
    the edge of the calendar; strategies are those installed; goods move to *another* warehouse;
    an event is of a version that is read, and names a SKU, and no variant twice.
    """
    if case.meta is None or case.meta.generation.mode is not GenerationMode.POSITIVE:
        return
    if case.query:
        case.query.pop("cursor", None)
        for name in {"asOf", "by", "since", "until", "confirmedBefore"} & case.query.keys():
            if str(case.query[name])[:4] in {"0001", "9999"}:
                case.query[name] = "2026-01-01T00:00:00Z"
    if case.headers and "If-Match" in case.headers:
        case.headers["If-Match"] = '"7"'
    if case.path == "/events":  # from the beginning, and of everything: a stream of nothing would never end
        case.headers = {"Last-Event-ID": "0"}
        case.query = {}
    case.body = _meaningful(case.body)


def _meaningful(node: Any) -> Any:
    if isinstance(node, list):
        return [_meaningful(part) for part in node]
    if isinstance(node, float) and node.is_integer():
        return int(node)
    if isinstance(node, str):
        return node.replace("\0", "")
    if not isinstance(node, dict):
        return node
    node = {_meaningful(name): _meaningful(part) for name, part in node.items()}
    if node.keys() == {"min", "max"}:
        node["min"], node["max"] = sorted(node.values())
    for name in {"occurredAt", "expectedAt"} & node.keys():
        node[name] = node[name] and "2026-01-01T00:00:00Z"
    if "sourcing" in node:
        node["sourcing"] = "MOST_STOCK"
    if "toWarehouseId" in node:
        node["toWarehouseId"] = "wh_other"
    if "eventVersion" in node:
        payload = node["payload"]
        payload = payload | {"variants": payload.get("variants", [])[:1], "sku": payload.get("sku") or "WIDGET-3"}
        node |= {"eventVersion": "1.0.0", "timestamp": "2026-01-01T00:00:00Z", "payload": payload}
    return node


@schemathesis.serializer("text/csv", "application/x-ndjson")
def send_file(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """Send a file as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")


@schemathesis.hook
def filter_failure(_: Any, failure: Failure, case: schemathesis.Case, __: schemathesis.Response) -> bool:
    """Keep a failure, but for two false alarms: leaving out a body that may be left out violates nothing, and any bytes
    are a file, whose rows are judged later.
    """
    optional = not case.operation.definition.raw.get("requestBody", {}).get("required")
    harmless = (isinstance(case.body, NotSet) and optional) or (case.method == "POST" and case.path == "/imports")
    return not (isinstance(failure, AcceptedNegativeData) and harmless)


@schemathesis.check
def documented_code(_: Any, response: schemathesis.Response, case: schemathesis.Case) -> None:
    """A refusal's ``code`` is one of those shown for this status of this operation, and its status its own."""
    if response.status_code < 400 or response.status_code == 405:
        return
    problem = response.json()
    shown = case.operation.definition.raw["responses"][str(response.status_code)]["content"]
    codes = shown["application/problem+json"]["examples"].keys()
    if problem["code"] not in codes or problem["status"] != response.status_code:
        told = f"{problem['code']} ({problem['status']}) came with {response.status_code}; shown are {', '.join(codes)}"
        raise Failure(operation=case.operation.label, title="Undocumented code", message=told)
