"""Transactions of requests, committed before the response is sent, so that a failed commit becomes the response."""

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
    async with services.database.reading() as connection:
        yield connection


# scope="function" runs the code after `yield`, and so the commit, before the response is sent. With the default scope a
# client would get its 200 and only then the commit might fail.
Writing = Annotated[AsyncConnection, Depends(_writing, scope="function")]
Reading = Annotated[AsyncConnection, Depends(_reading, scope="function")]
# For work on so many rows that one transaction would hold up others: the operation opens one for each batch.
InBatches = Annotated[Database, Depends(_batches)]
