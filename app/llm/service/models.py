"""The list of language models: their limits, by compare-and-set on a version, and resets, each with an audit entry."""

import asyncio
import logging
from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.service import audit
from app.db.database import Database
from app.kernel.errors import VersionStale
from app.kernel.events import SystemEvent
from app.llm.errors import ModelNotAllowed
from app.llm.rules.models import Model, ModelLimits
from app.llm.store import models
from app.queue.store import events

log = logging.getLogger(__name__)
_RETRY_SECONDS = 1.0


async def set_limits(
    connection: AsyncConnection, name: str, expected_version: int, limits: ModelLimits, *, by: str, reason: str = ""
) -> None:
    """List a model with these limits, in force from the next permit on. Raises VersionStale. Safe to repeat."""
    is_new = False
    while (model := (await models.lock(connection, [name])).get(name)) is None:
        # Again where somebody has removed, since it was looked for, the one that another has listed.
        is_new = await models.add(connection, [name]) > 0
    # At the next version with the same limits, a first attempt has succeeded and its answer was lost. Next to 0 may be
    # any, as a model that was removed goes on where it was.
    if not is_new and model.limits == limits and expected_version in (0, model.version, model.version - 1):
        return
    if model.version != expected_version:
        raise VersionStale(f"the limits of this model are at version {model.version} now")
    version = await models.set_limits(connection, name, limits)
    audit.record(
        connection,
        "llm_model.set",
        by=by,
        old_state=None if is_new else {"model": name, "version": model.version, **asdict(model.limits)},
        new_state={"model": name, "version": version, **asdict(limits)},
        reason=reason,
    )


async def remove(connection: AsyncConnection, name: str, *, by: str, reason: str = "") -> None:
    """Take a model from the list: no permits are granted for it any more. Raises ModelNotAllowed."""
    model = await _locked(connection, name)
    await models.remove(connection, name)
    old_state = {"model": name, "version": model.version, **asdict(model.limits)}
    audit.record(connection, models.REMOVAL, by=by, old_state=old_state, reason=reason)


async def reset(connection: AsyncConnection, name: str, *, by: str, reason: str = "") -> None:
    """Lift the cool-down of a model, close its breaker, and forget what was measured. Raises ModelNotAllowed."""
    model = await _locked(connection, name)
    await models.reset(connection, name)
    await events.append_system(connection, SystemEvent.MODEL_RESET.value, {"model": name, "by": by})
    old_state = {
        "model": name,
        "limit": model.concurrency.limit,
        "cooldown_until": _text(model.concurrency.cooldown_until),
        "open_until": _text(model.breaker.open_until),
        "callers": sorted(model.callers),
    }
    audit.record(connection, "llm_model.reset", by=by, old_state=old_state, reason=reason)


async def list_models(database: Database, names: Collection[str]) -> None:
    """List the models that the settings name, where they are not listed yet; wait for a database that is away."""
    while names:
        try:
            async with database.transaction() as connection:
                await models.add(connection, names)
            return
        except Exception:
            log.exception("could not list the language models of the settings, trying again")
            await asyncio.sleep(_RETRY_SECONDS)


async def _locked(connection: AsyncConnection, name: str) -> Model:
    model = (await models.lock(connection, [name])).get(name)
    if model is None:
        raise ModelNotAllowed("nobody has listed this model")
    return model


def _text(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
