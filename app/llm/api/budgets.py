"""Routes of the budgets of agent types and API keys for calls of language models."""

from typing import Annotated, Any, Literal, Self

from fastapi import Path, Query
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy.ext.asyncio import AsyncConnection
from typing_extensions import TypeAliasType

from app.http.fields import Body, Limit, Moment, ReasonQuery
from app.http.guard import Caller, requires
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import Reading, Writing
from app.kernel.access import Scope
from app.kernel.agents import agent_type
from app.llm.errors import BudgetNotFound, BudgetOwnerNotFound
from app.llm.rules.spending import BudgetOwner, BudgetPeriod, BudgetScope
from app.llm.service import budgets as service
from app.llm.store import budgets
from app.llm.store.budgets import BudgetLimits, StoredBudget

router = Router(prefix="/llm/budgets", tags=["language models"])


# What has a budget beside goals, which have theirs from the start.
BudgetSubject = TypeAliasType("BudgetSubject", Literal["agent", "key"])


class BudgetIn(Body):
    """Limits of a budget, of which one at least is given."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"money_budget": 25, "period": "day"}]})

    money_budget: Annotated[float, Field(ge=1e-6, le=1e9)] | None = Field(None, description="US dollars")
    token_budget: Annotated[int, Field(ge=1, le=10**15)] | None = Field(
        None, description="questions and answers together"
    )
    period: BudgetPeriod = Field(
        BudgetPeriod.TOTAL, description="at its end, by UTC, the budget is whole again; total: for ever"
    )

    @model_validator(mode="after")
    def _limit_something(self) -> Self:
        if self.money_budget is None and self.token_budget is None:
            raise ValueError("give a money_budget or a token_budget; DELETE removes a budget")
        return self


_EXAMPLE: dict[str, Any] = {
    "money_budget": 25,
    "token_budget": None,
    "period": "day",
    "scope": "agent",
    "name": "ranking",
    "spent_usd": 3.5,
    "spent_tokens": 410_000,
    "reserved_usd": 0.02,
    "reserved_tokens": 6000,
    "calls": 1,
    "until": "2026-11-25T00:00:00Z",
    "is_used_up": False,
}


class BudgetOut(BudgetIn):
    """A budget, and what its calls have cost in this period and reserve now."""

    model_config = ConfigDict(json_schema_extra={"examples": [_EXAMPLE]})

    scope: BudgetSubject
    name: str = Field(description="agent type, or id of a key; `launched`: of workers that the service starts")
    spent_usd: float
    spent_tokens: int
    reserved_usd: float = Field(description="of calls under way, which may cost so much")
    reserved_tokens: int
    calls: int = Field(description="under way")
    until: Moment | None = Field(description="the end of this period; null: it has none")
    is_used_up: bool = Field(description="permits are refused until then, or until it is raised")


class BudgetPage(BaseModel):
    """By scope and name; pass `next` as `after` for what follows."""

    items: list[BudgetOut]
    next: str | None


ScopePath = Annotated[BudgetSubject, Path()]
NamePath = Annotated[str, Path(max_length=200, description="agent type, or id of a key")]


@router.get(
    "", operation_id="list_budgets", summary="List budgets of agent types and keys", dependencies=[requires(Scope.READ)]
)
async def page(
    connection: Reading,
    after: Annotated[str, Query(max_length=300, description="`next` of the page before")] = "",
    limit: Limit = 100,
) -> BudgetPage:
    """With what is spent and reserved. Budgets of goals are parts of their goals."""
    stored = await budgets.page(connection, after=after, limit=limit)
    return BudgetPage(items=[_out(item) for item in stored.items], next=stored.next(lambda item: ":".join(item.owner)))


@router.get(
    "/{scope}/{name}",
    operation_id="get_budget",
    summary="Read the budget of an agent type or a key",
    dependencies=[requires(Scope.READ)],
    responses=responses_for(BudgetNotFound),
)
async def read(scope: ScopePath, name: NamePath, connection: Reading) -> BudgetOut:
    """With what is spent and reserved."""
    return await _read(connection, _owner(scope, name))


@router.put(
    "/{scope}/{name}",
    operation_id="set_budget",
    summary="Set the budget of an agent type or a key",
    dependencies=[requires(Scope.CONFIGURE)],
    responses=responses_for(BudgetOwnerNotFound),
)
async def put(
    scope: ScopePath, name: NamePath, body: BudgetIn, connection: Writing, caller: Caller, reason: ReasonQuery = ""
) -> BudgetOut:
    """In force from the next permit on; calls count from now on if there was none. What was spent counts on unless the
    period is another. A worker's calls are for the key by which it registered. Safe to repeat.
    """
    owner = _owner(scope, name)
    limits = BudgetLimits(**body.model_dump())
    await service.set_limits(connection, owner, limits, by=caller.key_id, reason=reason)
    return await _read(connection, owner)


@router.delete(
    "/{scope}/{name}",
    operation_id="remove_budget",
    summary="Remove the budget of an agent type or a key",
    status_code=204,
    dependencies=[requires(Scope.CONFIGURE)],
    responses=responses_for(BudgetNotFound),
)
async def remove(
    scope: ScopePath, name: NamePath, connection: Writing, caller: Caller, reason: ReasonQuery = ""
) -> None:
    """It is limited no longer, and what was counted is forgotten."""
    await service.remove(connection, _owner(scope, name), by=caller.key_id, reason=reason)


def _owner(scope: str, name: str) -> BudgetOwner:
    if scope == BudgetScope.AGENT:
        try:
            return BudgetOwner(BudgetScope.AGENT, agent_type(name))
        except ValueError as error:
            raise BudgetOwnerNotFound(str(error)) from None
    return BudgetOwner(BudgetScope.KEY, name)


async def _read(connection: AsyncConnection, owner: BudgetOwner) -> BudgetOut:
    stored = await budgets.read(connection, owner)
    if stored is None:
        raise BudgetNotFound
    return _out(stored)


def _out(stored: StoredBudget) -> BudgetOut:
    limits, budget = stored.limits, stored.budget
    return BudgetOut(
        scope="agent" if stored.owner.scope is BudgetScope.AGENT else "key",
        name=stored.owner.name,
        money_budget=limits.money_budget,
        token_budget=limits.token_budget,
        period=limits.period,
        spent_usd=budget.spent.usd,
        spent_tokens=budget.spent.tokens,
        reserved_usd=budget.reserved.usd,
        reserved_tokens=budget.reserved.tokens,
        calls=budget.calls,
        until=budget.ends_at,
        is_used_up=budget.is_used_up,
    )
