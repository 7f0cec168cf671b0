"""All routes of the application, those of included routers too."""

from collections.abc import Iterable, Iterator

from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

DOCUMENTATION = frozenset({"/docs", "/docs/files", "/openapi.json"})


def routes(app: FastAPI) -> list[APIRoute]:
    """Every route of ours: all but the documentation itself."""
    found = [route for route in _flat(app.routes) if getattr(route, "path", "") not in DOCUMENTATION]
    return [route for route in found if isinstance(route, APIRoute)]


def others(app: FastAPI) -> set[str]:
    """Paths of what is no route of ours."""
    return {getattr(route, "path", "") for route in _flat(app.routes)} - {route.path for route in routes(app)}


def _flat(found: Iterable[BaseRoute]) -> Iterator[BaseRoute]:
    for route in found:
        # FastAPI keeps an included router whole, as one route.
        original = getattr(route, "original_router", None)
        if original is None:
            yield route
        else:
            yield from _flat(original.routes)
