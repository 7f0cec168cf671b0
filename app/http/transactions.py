"""Transactions of requests: committed before the response leaves, or an error is the response."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.http.services import ServicesDep
from app.kernel.errors import ShuttingDown


async def _writing(services: ServicesDep) -> AsyncIterator[AsyncConnection]:
    # By now the body has been read, which may have taken until after the shutdown began.
    if services.stopping:
        raise ShuttingDown
    async with services.database.transaction() as connection:
        yield connection


async def _batches(services: ServicesDep) -> Database:
    if services.stopping:
        raise ShuttingDown
    return services.database


async def _reading(services: ServicesDep) -> AsyncIterator[AsyncConnection]:
    async with services.database.transaction() as connection:
        yield connection


# With the default scope the code after `yield` runs once the response has left, and a failed commit would be a 200.
Writing = Annotated[AsyncConnection, Depends(_writing, scope="function")]
Reading = Annotated[AsyncConnection, Depends(_reading, scope="function")]
# For work on so many rows that one transaction would be in everybody's way: the operation makes its own, one a batch.
InBatches = Annotated[Database, Depends(_batches)]
