"""Registry of the objects that routes work with, found by their type; the entry point fills it once."""

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from app.db.database import Database

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadLimit:
    """Bytes of JSON that a payload, result, checkpoint or context value may have."""

    max_bytes: int


class Services:
    """The objects of one process by their type: `services[Broker]` is its broker.

    An object is also found by its base classes, so that a feature can use what another one implements.
    """

    def __init__(self, database: Database, *parts: object) -> None:
        self.database = database
        self.stopping = False
        # Not ready any more, and serving as ever.
        self.is_draining = False
        # By type instead of by name, so that mypy knows what each look-up returns.
        self._parts: dict[type, Any] = {
            kind: part for part in parts for kind in type(part).__mro__ if kind is not object
        }

    def put(self, part: object) -> None:
        """Keep this object in place of the one of the same type."""
        self._parts[type(part)] = part

    def __getitem__(self, kind: type[Part]) -> Part:
        """The object of this type. Raises KeyError when there is none."""
        part: Part = self._parts[kind]
        return part


async def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


ServicesDep = Annotated[Services, Depends(_services)]
