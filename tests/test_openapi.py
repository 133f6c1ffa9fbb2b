"""The OpenAPI document leaves nothing to guess: every answer has a type, headers and an example that is one."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, NamedTuple

import jsonschema_rs
import pytest
from in_process import Api, serving

from core.errors import KINDS
from entrypoints.api.examples import ANSWERS, PROBLEMS
from entrypoints.api.problems import ContentTooLarge, RequestTimeout, UnsupportedMediaType

FILES = {"exportStock", "downloadImportErrors"}
ANYTHING = {"CreateItem.metadata", "ItemPatch.metadata", "Item.metadata", "Event.payload"}


@pytest.fixture(scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """A service to ask for its document."""
    async with serving(tmp_path_factory.mktemp("openapi")) as api:
        yield api


@pytest.fixture(scope="module")
async def document(api: Api) -> Any:
    """The document as it is served."""
    async with api.client() as client:
        return (await client.get("/schema/openapi.json")).json()


class Told(NamedTuple):
    """An answer of an operation as documented."""

    operation: str
    status: str
    answer: dict[str, Any]


def answers(document: Any) -> Iterator[Told]:
    """Every documented answer there is."""
    for ways in document["paths"].values():
        for operation in ways.values():
            for status, answer in operation["responses"].items():
                yield Told(operation["operationId"], status, answer)


def test_every_answer_has_a_type_and_an_example(document: Any) -> None:
    """But for 304, which has no body; what a type's example is stands in ``examples.py``."""
    for told in answers(document):
        if told.status == "304":
            assert "content" not in told.answer
            continue
        if told.operation in FILES and told.status < "300":
            assert told.answer["content"].keys() <= {"text/csv", "application/x-ndjson"}, told
            continue
        ((media_type, content),) = told.answer["content"].items()
        good = "text/event-stream" if told.operation == "streamEvents" else "application/json"
        assert media_type == (good if told.status < "300" else "application/problem+json"), told
        shape = content["schema"]
        if told.operation == "streamEvents" and told.status < "300":
            shape = shape["properties"]["data"]["contentSchema"]
        assert shape.keys() <= {"$ref", "anyOf"}, told
        assert content.get("examples"), f"{told.operation} {told.status}: add an example of its type to ANSWERS"


def test_every_body_has_an_example(document: Any) -> None:
    """What to send is shown, for every operation that takes a body."""
    for ways in document["paths"].values():
        for operation in ways.values():
            for content in operation.get("requestBody", {"content": {}})["content"].values():
                assert content.get("examples"), operation["operationId"]


def test_every_example_is_one(document: Any) -> None:
    """Each example of a body, an answer or a refusal is valid by its own schema."""
    contents = [told.answer.get("content", {}) for told in answers(document)]
    contents += [
        operation["requestBody"]["content"]
        for ways in document["paths"].values()
        for operation in ways.values()
        if "requestBody" in operation
    ]
    checked = 0
    for content in contents:
        for shape in content.values():
            validator = jsonschema_rs.validator_for(shape["schema"] | {"components": document["components"]})
            for example in shape["examples"].values():
                validator.validate(example["value"])
                checked += 1
    assert checked > 200


def test_every_code_is_shown(document: Any) -> None:
    """A caller finds every ``code`` the service can answer with, where it can."""
    shown = {name for told in answers(document) if told.status >= "400" for name in _problems(told)}
    kinds = [*KINDS.values(), RequestTimeout, ContentTooLarge, UnsupportedMediaType]
    assert shown == {kind.code for kind in kinds}
    assert {kind for kind in kinds if kind.__name__ != "Busy"} <= PROBLEMS.keys()


def _problems(told: Told) -> Any:
    return told.answer["content"]["application/problem+json"]["examples"]


def test_every_answer_names_its_headers(document: Any) -> None:
    """The correlation id always; the challenge with 401, the pause with 503, the path of what was created."""
    for told in answers(document):
        headers = told.answer["headers"]
        assert "X-Correlation-Id" in headers, told
        assert ("WWW-Authenticate" in headers) == (told.status == "401"), told
        assert ("Retry-After" in headers) == (told.status == "503"), told
        located = told.status in ("201", "202") and told.operation != "changeStock"
        assert ("Location" in headers) == located, told


def test_every_field_has_a_type(document: Any) -> None:
    """No field is left to guess, but for metadata, which is the caller's own; what is asked takes nothing else."""
    for name, schema in document["components"]["schemas"].items():
        for field, shape in schema["properties"].items():
            typed = shape.keys() & {"type", "$ref", "anyOf"}
            assert typed or f"{name}.{field}" in ANYTHING, f"{name}.{field}"
            for part in (shape, *shape.get("anyOf", ())):
                assert part.get("type") != "array" or part["items"], f"{name}.{field}"


def test_examples_are_of_types_that_are_told(document: Any) -> None:
    """No example is left over from a type that no answer holds any more."""
    told = [each for each in answers(document) if each.status < "300" and each.operation not in FILES]
    shown = {name for each in told for name in _examples(each)}
    assert {kind.__name__ for kind in ANSWERS} == shown


def _examples(told: Told) -> Any:
    (content,) = told.answer["content"].values()
    return content["examples"]
