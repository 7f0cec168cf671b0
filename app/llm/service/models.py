"""Setting the limits of a language model: by compare-and-set, and audited."""

from dataclasses import asdict

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.kernel.errors import VersionStale
from app.llm.rules.models import Limits
from app.llm.store import models


async def set_limits(connection: AsyncConnection, name: str, expected: int, limits: Limits, *, by: str) -> None:
    """Give a model these limits, in force from the next permit on. Raises VersionStale.

    Safe to repeat: the same limits by somebody who builds on the same version are accepted again.
    """
    before = (await models.lock(connection, [name]))[name]
    if before.limits == limits and before.version in (expected, expected + 1):
        return
    if before.version != expected:
        raise VersionStale(f"the limits of this model are at version {before.version} now")
    await models.set_limits(connection, name, limits)
    await audit.record(
        connection,
        "llm_model.set",
        by=by,
        before={"model": name, "version": before.version, **_plain(before.limits)},
        after={"model": name, "version": before.version + 1, **_plain(limits)},
    )


def _plain(limits: Limits) -> dict[str, object]:
    return {**asdict(limits), "fallback_models": list(limits.fallback_models)}
