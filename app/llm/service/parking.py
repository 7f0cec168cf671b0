"""Tasks that wait for a language model are woken when its service answers again, and one by one to try it.

Those that wait for a budget are woken when there is something left of it.
"""

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from app.llm.rules.conditions import TRY_SECONDS, is_awaited, may_try
from app.llm.rules.spending import BudgetOwner
from app.llm.store import budgets, models
from app.queue.store import parking


async def wake_parked(connection: AsyncConnection) -> dict[str, Any]:
    """Wake the tasks of models that answer, and one task of each model that may be tried; return the numbers."""
    names = await parking.awaited_models(connection)
    if not names:
        return {}
    troubled = {model.name: (model, at) for model, at in await models.read_troubled(connection)}
    broken = {name for name in names if name in troubled and is_awaited(*troubled[name])}
    owners = [owner for name in names if (owner := BudgetOwner.awaited(name)) is not None]
    broken_budgets = {owner.waits_for for owner in await budgets.used_up(connection, owners)} if owners else set()
    woken_count = await parking.wake_all(connection, set(names) - broken - broken_budgets)
    tried_count = 0
    for name in sorted(broken):
        if may_try(*troubled[name]):
            tried_count += await parking.wake_one(connection, name, TRY_SECONDS)
    return {"woken": woken_count, "tried": tried_count}
