"""The classes of the resources that submitted tasks ask for."""

import time
from collections.abc import Collection

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.shared_objects import shared_by
from app.kernel.resources import MAX_CLASSES
from app.queue.errors import TooManyResourceClasses
from app.queue.store import resource_classes as store

# To look for unused classes reads all live tasks, so nobody may cause that with every submit.
_LOOK_SECONDS = 30.0


class _LastLook:
    """When this process has last looked for classes of which there are no tasks."""

    def __init__(self) -> None:
        self.at = -_LOOK_SECONDS


async def classes(connection: AsyncConnection, requests: Collection[str]) -> dict[str, int]:
    """Request -> its class, which stays until the transaction ends. Raises TooManyResourceClasses."""
    class_ids = await store.find(connection, requests)
    new_requests = set(requests) - class_ids.keys()
    if not new_requests:
        return class_ids
    await store.lock(connection)
    class_ids = await store.find(connection, requests)
    if new_requests := set(requests) - class_ids.keys():
        class_ids |= await store.add(connection, new_requests)
    if new_requests := new_requests - class_ids.keys():
        last_look = shared_by(connection, _LastLook)
        if time.monotonic() - last_look.at >= _LOOK_SECONDS:
            last_look.at = time.monotonic()
            await store.drop_unused(connection)
            class_ids |= await store.add(connection, new_requests)
    if new_requests - class_ids.keys():
        raise TooManyResourceClasses(
            f"tasks that are not over ask for {MAX_CLASSES} different amounts of resources already, and the "
            "queue keeps no more apart: ask for what others ask for too, such as whole cores and memory in powers of "
            f"two (this asks for {min(new_requests)})"
        )
    return class_ids
