"""Setting the limits of a language model: by compare-and-set, and audited."""

from dataclasses import asdict

from sqlalchemy.ext.asyncio import AsyncConnection

from app.domain.errors import VersionStale
from app.domain.llm_models import Limits
from app.operations import audit
from app.store import llm_models


async def set_limits(connection: AsyncConnection, name: str, expected: int, limits: Limits, *, by: str) -> None:
    """Give a model these limits, in force from the next permit on. Raises VersionStale.

    Safe to repeat: the same limits by somebody who builds on the same version are accepted again.
    """
    before = (await llm_models.lock(connection, [name]))[name]
    if before.limits == limits and before.version in (expected, expected + 1):
        return
    if before.version != expected:
        raise VersionStale(f"the limits of this model are at version {before.version} now")
    await llm_models.set_limits(connection, name, limits)
    await audit.record(
        connection,
        "llm_model.set",
        by=by,
        before={"model": name, "version": before.version, **_plain(before.limits)},
        after={"model": name, "version": before.version + 1, **_plain(limits)},
    )


def _plain(limits: Limits) -> dict[str, object]:
    return {**asdict(limits), "fallback_models": list(limits.fallback_models)}
