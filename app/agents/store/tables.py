"""Tables of the agents' results, of later ratings of these, and of the weights that follow."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Float,
    Identity,
    Index,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB, UUID

from app.agents.rules.steering import Cause, Heading
from app.db.columns import EVENT_TRANSACTION, metadata, moment, one_of
from app.kernel.agents import AgentType

# Sums of results and ratings by minute, folded by a duty.
agent_minutes = Table(
    "agent_minutes",
    metadata,
    moment("minute", nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("results", BigInteger, nullable=False, comment="completed, and failed by the agent's own fault"),
    Column("successes", BigInteger, nullable=False),
    Column("judged", BigInteger, nullable=False, comment="qualities that were told, with the result or later"),
    Column("quality", Float, nullable=False, comment="sum of these"),
    Column("seconds", Float, nullable=False, comment="sum of how long the results took"),
    PrimaryKeyConstraint("minute", "agent_type", name="agent_minutes_pkey"),
)

# The last few hundred results of each agent; older ones have decayed to next to nothing.
agent_results = Table(
    "agent_results",
    metadata,
    Column("agent_type", Text, primary_key=True),
    Column("counted", BigInteger, nullable=False, comment="results and judgements ever, to tell how many are new"),
    Column("recent", JSONB, nullable=False, comment="newest last: task, time, seconds, succeeded, quality"),
    Column("gain", Float, comment="of quality by each doubling of a task's time; null: not known"),
    one_of("agent_type", AgentType),
)

# Ratings of results after they were handed in; the last one of a task counts.
judgements = Table(
    "judgements",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("transaction", BigInteger, nullable=False, server_default=EVENT_TRANSACTION),
    Column("request_id", UUID, nullable=False),
    Column("place", SmallInteger, nullable=False, comment="in the request"),
    Column("request_hash", LargeBinary, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("task_id", UUID, comment="null: of the agent as such"),
    Column("quality", Float, nullable=False),
    Column("basis", Text, comment="how it was judged, in the words of who did"),
    Column("judged_by", Text, nullable=False, comment="id of the key that was shown"),
    moment("judged_at", nullable=False, server_default=func.now()),
    one_of("agent_type", AgentType),
    CheckConstraint("quality BETWEEN 0 AND 1", name="quality"),
    UniqueConstraint("request_id", "place", name="judgements_request_key"),
    Index("judgements_transaction", "transaction", "id"),
    Index("judgements_judged", "judged_at"),
)

# Every step of the weights and every order; the last is in force. A trigger refuses all but inserts, and the primary
# key lets one of two rivals write the next version.
weights = Table(
    "weights",
    metadata,
    Column("version", BigInteger, primary_key=True, autoincrement=False),
    moment("at", nullable=False, server_default=func.now()),
    Column("cause", Text, nullable=False),
    Column("weights", JSONB, nullable=False, comment="in force from now on"),
    Column("target", JSONB, nullable=False, comment="where they are headed"),
    Column("adjustments", JSONB, nullable=False, comment="what changed just now, and why; empty: only the heading did"),
    Column("configured", JSONB, nullable=False, comment="what the configuration said"),
    Column("base", JSONB, nullable=False, comment="that, or what was commanded since"),
    Column("heading", Text, nullable=False),
    Column("override", JSONB, nullable=False, comment="{} without one"),
    moment("expires_at", comment="of the override"),
    Column("results", BigInteger, nullable=False, comment="counted until the weights last changed"),
    moment("stepped_at", comment="when they last changed"),
    Column("reason", Text, nullable=False),
    Column("changed_by", Text, nullable=False, comment="id of the key that was shown; `convener` for a duty"),
    one_of("cause", Cause),
    one_of("heading", Heading),
)
Index("weights_steps", weights.c.version, postgresql_where=text("adjustments <> '{}'::jsonb"))
