"""The gate before the permits: what is in use and who waits, read and written while nobody else grants any."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import ResourceLimits
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority
from app.llm.rules.permits import AskId, PermitRequest, Reservation, Turns, Usage
from app.llm.store import permits
from app.llm.store.permits import ids_of, plain_ask


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Live permits by model at one moment, and how many there may be of all models together."""

    at: datetime
    most: int
    usage: Mapping[str, Usage]


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """That, and those who were refused and may come back; whether somebody asks who has asked before."""

    measured: Measured
    claims: Sequence[Reservation]
    is_repeated: bool


_USUAL = {"usual": ResourceLimits().max_concurrent_llm_calls}

_CLOSE = text("SELECT turns FROM llm_gate FOR UPDATE")

_BUILD = text("INSERT INTO llm_gate (turns) VALUES ('{}') ON CONFLICT DO NOTHING")

_TURN = text("UPDATE llm_gate SET turns = CAST(:turns AS jsonb)")

_MOST = """
coalesce((SELECT (document #>> '{resource_limits,max_concurrent_llm_calls}')::int FROM config_versions
          ORDER BY version DESC LIMIT 1), :usual)
"""

_LIVE = "SELECT model, count(*) AS permits, count(*) FILTER (WHERE is_probe) AS probes FROM llm_permits"

MEASURE = text(f"""
SELECT clock_timestamp() AS at, {_MOST} AS most,
    (SELECT jsonb_agg(live) FROM ({_LIVE} WHERE ended_at IS NULL GROUP BY model) live) AS usage
""")

# One round trip, as all others wait for it. What expires here is live in the statement's own view, so it is taken off;
# a permit whose renewal is under way is waited for, not ended, and so counted.
SURVEY = text(f"""
WITH ended AS MATERIALIZED ({permits.EXPIRE} RETURNING p.id)
SELECT clock_timestamp() AS at, {_MOST} AS most,
    (SELECT jsonb_agg(live) FROM (
        {_LIVE} WHERE ended_at IS NULL AND id NOT IN (SELECT id FROM ended) GROUP BY model) live) AS usage,
    (SELECT jsonb_agg(claim) FROM (
        SELECT key_id, request_id, model, agent_type, priority, task_id, tokens, since, due, lapses FROM llm_claims
        WHERE lapses > clock_timestamp()) claim) AS claims,
    EXISTS (SELECT FROM llm_permits
        JOIN unnest(CAST(:keys AS text[]), CAST(:requests AS uuid[])) AS asked (key_id, request_id)
        USING (key_id, request_id)) AS is_repeated
""")

_UNCLAIM = text("""
DELETE FROM llm_claims c USING unnest(CAST(:keys AS text[]), CAST(:requests AS uuid[])) AS gone (key_id, request_id)
WHERE c.key_id = gone.key_id AND c.request_id = gone.request_id
""")

_CLAIM = text("""
INSERT INTO llm_claims (key_id, request_id, model, agent_type, priority, task_id, tokens, since, due, lapses)
SELECT * FROM jsonb_to_recordset(CAST(:claims AS jsonb)) AS new (
    key_id text, request_id uuid, model text, agent_type text, priority smallint, task_id uuid, tokens bigint,
    since timestamptz, due timestamptz, lapses timestamptz)
ON CONFLICT (key_id, request_id) DO UPDATE SET model = excluded.model, agent_type = excluded.agent_type,
    priority = excluded.priority, task_id = excluded.task_id, tokens = excluded.tokens, since = excluded.since,
    due = excluded.due, lapses = excluded.lapses
""")

_PRUNE = text("DELETE FROM llm_claims WHERE lapses < now()")


async def close(connection: AsyncConnection) -> Turns:
    """Let nobody else grant permits until the transaction ends; returns where the agent types stand."""
    found = (await connection.execute(_CLOSE)).scalar_one_or_none()
    if found is None:
        await connection.execute(_BUILD)
        found = (await connection.execute(_CLOSE)).scalar_one()
    finish = {agent: found[agent] for agent in AgentType if agent in found}
    return Turns(finish=finish, virtual=found.get("virtual", 0.0))


async def turn(connection: AsyncConnection, turns: Turns) -> None:
    """Remember where the agent types stand."""
    values = {agent.value: finish for agent, finish in turns.finish.items()}
    await connection.execute(_TURN, {"turns": json.dumps({**values, "virtual": turns.virtual})})


async def measure(connection: AsyncConnection) -> Measured:
    """What is in use and what may be. Somebody who does not hold the gate may get a permit in the next moment."""
    return _measured((await connection.execute(MEASURE, _USUAL)).mappings().one())


async def survey(connection: AsyncConnection, asked: Collection[AskId]) -> Survey:
    """End what has expired, and look at all that a decision needs, with the gate locked."""
    row = (await connection.execute(SURVEY, {**_USUAL, **ids_of(asked)})).mappings().one()
    claims = [_claim(claim) for claim in row["claims"] or ()]
    return Survey(measured=_measured(row), claims=claims, is_repeated=row["is_repeated"])


async def replace_claims(connection: AsyncConnection, gone: Sequence[AskId], new: Sequence[Reservation]) -> None:
    """Forget claims, and keep others, with the gate locked."""
    kept = {claim.ask.id for claim in new}
    if forgotten := [ask_id for ask_id in gone if ask_id not in kept]:
        await connection.execute(_UNCLAIM, ids_of(forgotten))
    if new:
        rows = [
            {
                **plain_ask(claim.ask),
                "tokens": claim.ask.tokens,
                "since": claim.since.isoformat(),
                "due": claim.due.isoformat(),
                "lapses": claim.lapses.isoformat(),
            }
            for claim in new
        ]
        await connection.execute(_CLAIM, {"claims": json.dumps(rows)})


async def prune(connection: AsyncConnection) -> int:
    """Forget claims that have lapsed; returns how many."""
    return (await connection.execute(_PRUNE)).rowcount


def _measured(row: Any) -> Measured:
    usage = {one["model"]: Usage(permits=one["permits"], probes=one["probes"]) for one in row["usage"] or ()}
    return Measured(at=row["at"], most=row["most"], usage=usage)


def _claim(row: dict[str, Any]) -> Reservation:
    since, due, lapses = (datetime.fromisoformat(row[name]) for name in ("since", "due", "lapses"))
    ask = PermitRequest(
        id=AskId(row["key_id"], UUID(row["request_id"])),
        model=row["model"],
        agent_type=AgentType(row["agent_type"]),
        priority=Priority(row["priority"]),
        tokens=row["tokens"],
        task_id=None if row["task_id"] is None else UUID(row["task_id"]),
    )
    return Reservation(ask=ask, since=since, due=due, lapses=lapses)
