"""Objects that all users of a database share in a process, for whoever has only a connection of it as well."""

from typing import Any, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

Kind = TypeVar("Kind")
SharedObjects = dict[type, Any]
_SHARED = "convener_shared"


def share(info: dict[Any, Any], objects: SharedObjects) -> None:
    """Let the holder of a connection find the objects that its process shares."""
    info[_SHARED] = objects


def shared_by(connection: AsyncConnection, kind: type[Kind]) -> Kind:
    """As `Database.shared`, for whoever has only a connection of that database."""
    return get_or_create(connection.info.setdefault(_SHARED, {}), kind)


def get_or_create(objects: SharedObjects, kind: type[Kind]) -> Kind:
    """The one object of this kind, made when first needed."""
    if kind not in objects:
        objects[kind] = kind()
    shared: Kind = objects[kind]
    return shared
