"""What generators of clients read in the document: without it their code is wrong, or has a type for each field."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from tests.support.description import DESCRIPTION

_SCHEMAS = DESCRIPTION["components"]["schemas"]
# Of JSON Schema (2020-12) and OpenAPI 3.1, as far as they are used here.
_KEYWORDS = {
    *("$ref", "additionalProperties", "anyOf", "const", "default", "description", "enum", "examples", "format"),
    *("items", "maxItems", "maxLength", "maxProperties", "maximum", "minItems", "minLength", "minimum"),
    *("exclusiveMaximum", "exclusiveMinimum", "minProperties", "multipleOf", "oneOf", "pattern", "patternProperties"),
    *(
        "prefixItems",
        "properties",
        "propertyNames",
        "required",
        "title",
        "type",
        "uniqueItems",
        "allOf",
        "not",
        "discriminator",
    ),
}
_PARTS = ("additionalProperties", "items", "propertyNames", "not")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")


def _below(schema: Any, place: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(schema, dict):
        return
    yield place, schema
    for name, part in (schema.get("properties", {}) | schema.get("patternProperties", {})).items():
        yield from _below(part, f"{place}.{name}")
    for keyword in _PARTS:
        yield from _below(schema.get(keyword), f"{place} {keyword}")
    for keyword in _LISTS:
        for number, part in enumerate(schema.get(keyword, ())):
            yield from _below(part, f"{place} {keyword} {number}")


def _schemas() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema of the document and its place."""
    for name, schema in _SCHEMAS.items():
        yield from _below(schema, name)
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            place = f"{method} {path}"
            for parameter in operation.get("parameters", ()):
                yield from _below(parameter["schema"], f"{place} {parameter['name']}")
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for content in (content for body in bodies for content in body.get("content", {}).values()):
                yield from _below(content["schema"], place)


def test_schemas_have_only_words_that_mean_something() -> None:
    strange = {place: sorted(schema.keys() - _KEYWORDS) for place, schema in _schemas()}
    assert {place: words for place, words in strange.items() if words} == {}


def test_an_object_of_the_caller_may_hold_anything() -> None:
    """Where a schema is silent about it, TypeScript gets an object that holds nothing."""
    silent = [
        place
        for place, schema in _schemas()
        if schema.get("type") == "object"
        and not schema.keys() & {"properties", "additionalProperties", "patternProperties"}
    ]
    assert silent == []


def test_each_set_of_words_is_one_type() -> None:
    """A client had 21 types for the six types of agents, none of which it could use in place of another."""
    places = defaultdict(list)
    for place, schema in _schemas():
        if "enum" in schema:
            places[tuple(schema["enum"])].append(place)
    assert {words: found for words, found in places.items() if len(found) > 1} == {}


def _validated(schema: dict[str, Any], value: Any) -> bool:
    return bool(jsonschema_rs.is_valid({**schema, "components": DESCRIPTION["components"]}, value))


def test_defaults_are_values_of_their_schemas() -> None:
    """A client that sends the default of a payload, which was a text, had its task refused."""
    wrong = [place for place, schema in _schemas() if "default" in schema and not _validated(schema, schema["default"])]
    assert wrong == []


@pytest.mark.parametrize("name", [name for name, schema in _SCHEMAS.items() if "examples" in schema])
def test_examples_are_values_of_their_schemas(name: str) -> None:
    for example in _SCHEMAS[name]["examples"]:
        jsonschema_rs.validate({**_SCHEMAS[name], "components": DESCRIPTION["components"]}, example)


def test_every_operation_says_whether_it_needs_a_key_and_what_it_answers_with() -> None:
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            assert "security" in operation, f"{method} {path}"
            for status in ("200", "201"):
                assert operation["responses"].get(status, {"content": 1}).get("content"), f"{method} {path} {status}"
