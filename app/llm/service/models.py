"""Setting the limits of a language model, by compare-and-set on their version, with an audit entry."""

from dataclasses import asdict

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.kernel.errors import VersionStale
from app.llm.rules.models import ModelLimits
from app.llm.store import models


async def set_limits(
    connection: AsyncConnection, name: str, expected_version: int, limits: ModelLimits, *, by: str
) -> None:
    """Set the limits of a model, in force from the next permit on. Raises VersionStale. Safe to repeat."""
    model = (await models.lock(connection, [name]))[name]
    # At the next version with the same limits, a first attempt has succeeded and its answer was lost.
    if model.limits == limits and model.version in (expected_version, expected_version + 1):
        return
    if model.version != expected_version:
        raise VersionStale(f"the limits of this model are at version {model.version} now")
    await models.set_limits(connection, name, limits)
    await audit.record(
        connection,
        "llm_model.set",
        by=by,
        old_state={"model": name, "version": model.version, **asdict(model.limits)},
        new_state={"model": name, "version": model.version + 1, **asdict(limits)},
    )
