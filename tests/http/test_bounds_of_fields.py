"""Every list, map, string and number that a request may hold has a bound, so that no field is as long as one likes."""

from collections.abc import Iterator
from typing import Any

from app import application
from app.http.bodies import CONTENT_BYTES, SMALL_BYTES
from app.http.fast_routes import LeanRoute
from app.http.routing import GuardedRoute
from tests.support.description import DESCRIPTION
from tests.support.routes import routes

_APP = application.build()
_SCHEMAS = DESCRIPTION["components"]["schemas"]
_LENGTH_BY_FORMAT = {"uuid", "date-time"}
# JSON of callers, which is bounded in bytes, values and depth instead.
_FREE = {"payload", "result", "checkpoint", "detail", "answer", "value"}


def _operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in DESCRIPTION["paths"].items():
        for method, operation in operations.items():
            yield f"{method} {path}", operation


def _unbounded(schema: dict[str, Any], place: str) -> Iterator[str]:
    """Places below a schema that have no bound."""
    if "$ref" in schema:
        yield from _unbounded(_SCHEMAS[schema["$ref"].rpartition("/")[2]], place)
        return
    for part in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        yield from _unbounded(part, place)
    if "enum" in schema or "const" in schema:
        return
    kind = schema.get("type")
    if kind == "object":
        yield from _unbounded_object(schema, place)
    elif kind == "array":
        yield from _unbounded(schema.get("items", {}), f"{place}[]")
    if not _is_bounded(kind, schema, place):
        yield f"{place}: {kind or 'anything at all'} without a bound"


def _is_bounded(kind: str | None, schema: dict[str, Any], place: str) -> bool:
    match kind:
        case "string":
            return "maxLength" in schema or schema.get("format") in _LENGTH_BY_FORMAT
        case "integer" | "number":
            low, high = {"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"}
            return bool(low & schema.keys() and high & schema.keys())
        case "array":
            return "maxItems" in schema
        case None:
            return bool({"anyOf", "oneOf", "allOf"} & schema.keys()) or place.rpartition(".")[2] in _FREE
        case _:
            return True


def _unbounded_object(schema: dict[str, Any], place: str) -> Iterator[str]:
    names = place.rpartition(".")[2]
    additional = schema.get("additionalProperties")
    if "properties" in schema and additional is not False:
        yield f"{place}: takes unknown keys"
    if "properties" not in schema and "maxProperties" not in schema and names not in _FREE:
        yield f"{place}: map without maxProperties"
    for name, part in schema.get("properties", {}).items():
        yield from _unbounded(part, f"{place}.{name}")
    if isinstance(additional, dict):
        yield from _unbounded(additional, f"{place}{{}}")


def test_every_field_of_a_request_is_bounded() -> None:
    places: list[str] = []
    for name, operation in _operations():
        for parameter in operation.get("parameters", ()):
            places += _unbounded(parameter["schema"], f"{name}?{parameter['name']}")
        for content in operation.get("requestBody", {}).get("content", {}).values():
            place = f"{name}.value" if name == "put /context/{namespace}/{key}" else name
            places += _unbounded(content["schema"], place)
    assert places == []


def test_the_walk_finds_what_has_no_bound() -> None:
    fields = {
        "list": {"type": "array", "items": {"type": "string"}},
        "map": {"type": "object", "additionalProperties": {"type": "integer"}},
        "any": {},
    }
    places = list(_unbounded({"type": "object", "properties": fields}, "body"))
    assert sorted(place.partition(":")[0] for place in places) == [
        "body", "body.any", "body.list", "body.list[]", "body.map", "body.map{}"
    ]  # fmt: skip


def test_every_body_says_how_many_bytes_it_may_have() -> None:
    limits = {n: operation.get("x-max-body-bytes") for n, operation in _operations() if "requestBody" in operation}
    assert all(limits.values()), limits
    large = {name for name, limit in limits.items() if limit == CONTENT_BYTES}
    assert large == {
        "post /tasks",
        "post /tasks/batch",
        "post /leases/exchange",
        "post /leases/{task_id}/progress",
        "post /leases/{task_id}/complete",
        "post /leases/{task_id}/fail",
        "put /context/{namespace}/{key}",
        "post /llm/permits/{permit_id}/settle",
    }
    for name in ("/lease", "/leases/{task_id}/start", "/workers/{worker_id}/heartbeat", "/llm/permits", "/workers"):
        assert limits[f"post {name}"] == SMALL_BYTES, name


def test_free_json_is_taken_only_where_the_bytes_are_declared() -> None:
    for name, operation in _operations():
        for content in operation.get("requestBody", {}).get("content", {}).values():
            reference = content["schema"].get("$ref", "").rpartition("/")[2]
            fields = _SCHEMAS.get(reference, {}).get("properties", {})
            free = [field for field in fields if field in _FREE and fields[field].get("type") == "object"]
            assert not free or operation["x-max-body-bytes"] == CONTENT_BYTES, name


def test_every_route_admits_its_caller_before_it_reads_a_body() -> None:
    assert [route.path for route in routes(_APP) if not isinstance(route, GuardedRoute | LeanRoute)] == []
