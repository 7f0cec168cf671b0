"""A permit of a large batch costs the database no more than one of a small batch."""

from uuid import uuid4

import pytest

from app.db.database import Database
from app.kernel.agents import AgentType
from app.llm.rules.concurrency import ConcurrencyPolicy
from app.llm.rules.outcomes import Outcome
from app.llm.rules.permits import PermitPolicy, RequestId
from app.llm.service.grant import AcquiredPermit, grant_all
from app.llm.service.settle import SettlementResult, settle_all
from app.queue.rules.fair_queueing import EQUAL_WEIGHTS
from tests.support.permit_callers import allow_calls, request, settlement
from tests.support.plans import Costs, explained_database
from tests.support.sql import execute

_BATCHES = (8, 64, 256)


@pytest.mark.slow
@pytest.mark.parametrize("statistics", ["never analysed", "analysed"])
@pytest.mark.parametrize("plan_cache_mode", ["force_custom_plan", "force_generic_plan"])
async def test_permits_and_settlements(
    own_database: Database, plan_cache_mode: str, statistics: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await allow_calls(own_database, 1000, service_bears=1000)
    await execute(
        own_database,
        "INSERT INTO llm_budgets (scope, name, token_budget, period, max_tokens)"
        " SELECT 'agent', name, 1e12, 'day', 1 FROM unnest($1::text[]) name"
        " UNION ALL SELECT 'key', 'key ' || n, 1e12, 'day', 1 FROM generate_series(0, 9999) n",
        list(AgentType),
    )
    if statistics == "analysed":
        await execute(own_database, "ANALYZE")
    async with explained_database(own_database, monkeypatch, plan_cache_mode) as (database, log):
        costs = Costs(log)
        for batch in (min(_BATCHES), *_BATCHES):
            requests = [request(id=RequestId(f"key {n}", uuid4())) for n in range(batch)]
            async with database.transaction() as connection:
                with costs.of("permits", batch):
                    granted = await grant_all(connection, requests, EQUAL_WEIGHTS, PermitPolicy(), ConcurrencyPolicy())
            permits = [result.permit for result in granted if isinstance(result, AcquiredPermit)]
            assert len(permits) == batch
            ends = [settlement(permit, Outcome.SUCCESS, latency_seconds=1.0) for permit in permits]
            async with database.transaction() as connection:
                with costs.of("settlements", batch):
                    settled = await settle_all(connection, ends, ConcurrencyPolicy())
            assert {type(result) for result in settled} == {SettlementResult}
    costs.check()
