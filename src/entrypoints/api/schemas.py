"""JSON Schema of what comes in and goes out: msgspec's, in the words of the wire."""

import re
from collections.abc import Iterable
from inspect import cleandoc
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import msgspec
from msgspec import NODEFAULT, UNSET, inspect

_REFERENCE = "#/components/schemas/{name}"


def _none(*names: str) -> dict[str, Any]:
    return {"properties": {name: {"type": "null"} for name in names}}


def _both(*names: str) -> dict[str, Any]:
    return {"required": [*names], "properties": {name: {"not": {"type": "null"}} for name in names}}


# What fields together must not be, which stands in no type: a line names exactly one thing, a policy at least one.
_RULES: dict[str, list[dict[str, Any]]] = {
    "ReserveLine": [
        _none("inventoryItemId", "sku", "productId"),
        _both("inventoryItemId", "sku"),
        _both("inventoryItemId", "productId"),
        _both("sku", "productId"),
        _both("inventoryItemId", "warehouseId"),
    ],
    "Expect": [
        _none("inventoryItemId", "sku"),
        _none("inventoryItemId", "warehouseId"),
        _both("inventoryItemId", "sku"),
        _both("inventoryItemId", "warehouseId"),
    ],
    "ReplayBody": [_none("fromPosition", "toPosition", "since", "until", "productId")],
    "RetryMany": [_none("ids", "filter"), _both("ids", "filter")],
    "SetPolicy": [_none("safetyStock", "reorderThreshold", "targetStockLevel")],
}
_CODE = re.compile(r"``([^`]+)``")


class Schemas:
    """The schemas of types that are ``asked`` for in bodies and ``told`` in answers.

    What is told holds every field that is not left out on purpose, default or not.
    """

    def __init__(self, *, asked: Iterable[Any], told: Iterable[Any]) -> None:
        asked_kinds, told_kinds = ([kind for one in some for kind in _alternatives(one)] for some in (asked, told))
        kinds = list(dict.fromkeys((*asked_kinds, *told_kinds)))
        schemas, self.components = msgspec.json.schema_components(kinds, ref_template=_REFERENCE)
        self._schemas = dict(zip(kinds, schemas, strict=True))
        incoming, structs = _structs(asked_kinds), _structs(kinds)
        for cls, struct in structs.items():
            _describe(self.components[cls.__name__], struct, told=cls not in incoming)
        for name, component in self.components.items():
            _plain(component)
            if name in _RULES:
                component["not"] = {"anyOf": _RULES[name]}

    def of(self, declared: Any) -> dict[str, Any]:
        """Return the schema of a type that was asked for or is told."""
        found = [self._schemas[kind] for kind in _alternatives(declared)]
        return found[0] if len(found) == 1 else {"anyOf": found}


def _alternatives(declared: Any) -> list[Any]:
    """Return the types of a union, which msgspec takes apart by tag only: those without one each on its own."""
    if get_origin(declared) not in (Union, UnionType):
        return [declared]
    members = [member for member in get_args(declared) if member is not NoneType]
    tagged = tuple(member for member in members if member.__struct_config__.tag is not None)
    alone = [member for member in members if member not in tagged]
    return [Union[tagged], *alone] if tagged else alone  # noqa: UP007


def _structs(kinds: Iterable[Any]) -> dict[type, inspect.StructType]:
    """Return every Struct that is part of ``kinds``."""
    found: dict[type, inspect.StructType] = {}
    layer: list[Any] = list(inspect.multi_type_info(kinds))
    while layer:
        node = layer.pop()
        if isinstance(node, inspect.StructType):
            if node.cls not in found:
                found[node.cls] = node
                layer += [field.type for field in node.fields]
        else:
            layer += getattr(node, "types", ())
            layer += [getattr(node, part) for part in ("type", "item_type", "value_type") if hasattr(node, part)]
    return found


def _describe(schema: dict[str, Any], struct: inspect.StructType, *, told: bool) -> None:
    """Say of a Struct's schema what msgspec leaves out: instants, and what is always there."""
    for field in struct.fields:
        if any(isinstance(part, inspect.DateTimeType) for part in (field.type, *getattr(field.type, "types", ()))):
            of_field = schema["properties"][field.encode_name]
            next(part for part in (of_field, *of_field.get("anyOf", ())) if part.get("type") == "string").update(
                format="date-time"
            )
        if told:
            schema["properties"][field.encode_name].pop("default", None)
    if told and not struct.cls.__struct_config__.omit_defaults:
        schema["required"] = [
            *([struct.tag_field] if struct.tag_field else []),
            *(field.encode_name for field in struct.fields if field.required or _has_default(field)),
        ]


def _has_default(field: inspect.Field) -> bool:
    """Tell whether a field that may be left out has a value then; one that may be UNSET has none."""
    return field.default is not NODEFAULT or field.default_factory is not NODEFAULT


def _plain(schema: Any) -> None:
    """Write a schema and all that is in it as generators of clients read it best."""
    for part in schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ():
        _plain(part)
    if not isinstance(schema, dict):
        return
    if isinstance(text := schema.get("description"), str):
        schema["description"] = _CODE.sub(lambda code: f"`{_camel(code[1])}`", cleandoc(text))
    if isinstance(values := schema.get("enum"), list):
        schema["type"] = "boolean" if isinstance(values[0], bool) else "string"
        if len(values) == 1:
            schema["const"] = schema.pop("enum")[0]
    if schema.get("default", UNSET) is None:
        del schema["default"]


def _camel(name: str) -> str:
    return re.sub(r"(?<=[a-z])_([a-z])", lambda letter: letter[1].upper(), name)
