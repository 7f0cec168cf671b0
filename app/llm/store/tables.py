"""Tables of language models, their permits and reservations, cached answers, and sums of finished calls."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from app.db.columns import metadata, moment, one_of
from app.kernel.agents import AgentType
from app.llm.rules.permits import Ending
from app.llm.rules.spending import BudgetPeriod

# Rows that are updated with every call. Half-empty pages let an update stay on its page, without touching an index, and
# vacuum runs by the number of dead rows, whatever the size of the table.
_BUSY = {"fillfactor": "50", "autovacuum_vacuum_scale_factor": "0", "autovacuum_vacuum_threshold": "500"}

# One row, locked by whoever grants permits, so that no two transactions count the live permits of all models at once.
llm_gate = Table(
    "llm_gate",
    metadata,
    Column("is_only", Boolean, primary_key=True, server_default="true"),
    Column("turns", JSONB, nullable=False, comment="virtual times of the agent types"),
    CheckConstraint("is_only", name="is_only"),
    postgresql_with=_BUSY,
)

# A row's lock guards everything that calls of the model change: both meters move, or neither does.
llm_models = Table(
    "llm_models",
    metadata,
    Column("model", Text, primary_key=True),
    Column("version", BigInteger, nullable=False, server_default="0", comment="of what people have set"),
    Column("requests_per_window", BigInteger, comment="null: unlimited"),
    Column("tokens_per_window", BigInteger, comment="null: unlimited"),
    Column("window_seconds", Float, nullable=False, server_default="60"),
    Column("burst", BigInteger, comment="requests at once"),
    Column("token_burst", BigInteger, comment="tokens at once"),
    Column("max_concurrency", Integer),
    Column("fallback_models", ARRAY(Text), nullable=False, server_default="{}"),
    Column("input_price", Float, comment="US dollars for a million tokens"),
    Column("output_price", Float, comment="US dollars for a million tokens"),
    Column("concurrency", Float, nullable=False, comment="calls at once that the service has been seen to bear"),
    Column("ramping", Boolean, nullable=False, server_default="true", comment="no loss so far"),
    moment("shrunk_at"),
    Column("latency_seconds", Float, comment="decayed mean"),
    moment("cooldown_until"),
    Column("failures", Integer, nullable=False, server_default="0", comment="one after the other"),
    moment("open_until", comment="of the circuit breaker; null: closed"),
    Column("cause", Text, comment="the condition for which the breaker is open; null: failures"),
    moment("until", comment="the end of the condition, where it is known"),
    moment("key_expires_at", comment="the earliest that callers know of"),
    Column("key_reported_by", Text, comment="worker, or key of somebody who is none"),
    moment("key_reported_at"),
    Column("callers", JSONB, nullable=False, server_default="{}", comment="what single callers report of the service"),
    moment("requests_tat", comment="when all admitted requests will have been paid for"),
    moment("tokens_tat", comment="when all admitted tokens will have been paid for"),
    Column("worker_tats", JSONB, nullable=False, server_default="{}", comment="the same of single workers"),
    moment("used_at"),
    postgresql_with=_BUSY,
)

# A permit lives until `ended_at` is set. Its row stays for an hour more, to answer late and repeated settlements.
llm_permits = Table(
    "llm_permits",
    metadata,
    Column("id", UUID, primary_key=True),
    Column("key_id", Text, nullable=False),
    Column("request_id", UUID, nullable=False),
    Column("token", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("goal_id", Text),
    Column("task_id", UUID),
    Column("worker_id", UUID),
    Column("estimated_tokens", BigInteger, nullable=False),
    Column("is_probe", Boolean, nullable=False, comment="tries a model whose breaker was open"),
    moment("granted_at", nullable=False),
    moment("expires_at", nullable=False),
    moment("ended_at"),
    Column("ending", Text),
    Column("digest", LargeBinary, comment="SHA-256 of the settlement"),
    Column("cache_key", LargeBinary, comment="under which the answer may be cached"),
    Column("principal", Text, comment="who vouches for the caller; null: the key"),
    Column("reserved_usd", Float, nullable=False, server_default="0", comment="of the goal's budget, for this call"),
    Column("reserved_tokens", BigInteger, nullable=False, server_default="0"),
    one_of("agent_type", AgentType),
    one_of("ending", Ending),
    CheckConstraint("(ended_at IS NULL) = (ending IS NULL)", name="ending_with_end"),
    Index("llm_permits_request", "key_id", "request_id", unique=True),
    postgresql_with=_BUSY,
)
_LIVE = text("ended_at IS NULL")
Index("llm_permits_live", llm_permits.c.expires_at, postgresql_where=_LIVE)
Index("llm_permits_live_worker", llm_permits.c.worker_id, postgresql_where=_LIVE)
Index("llm_permits_ended", llm_permits.c.ended_at, postgresql_where=text("ended_at IS NOT NULL"))

# Reservations: the places in the queue that refused requests keep until they are repeated.
llm_claims = Table(
    "llm_claims",
    metadata,
    Column("key_id", Text, nullable=False),
    Column("request_id", UUID, nullable=False),
    Column("model", Text, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("priority", SmallInteger, nullable=False),
    Column("task_id", UUID),
    Column("worker_id", UUID),
    Column("tokens", BigInteger, nullable=False),
    moment("since", nullable=False),
    moment("due", nullable=False),
    moment("lapses", nullable=False, comment="its holder has given up"),
    PrimaryKeyConstraint("key_id", "request_id", name="llm_claims_pkey"),
    Index("llm_claims_lapses", "lapses"),
    one_of("agent_type", AgentType),
    postgresql_with=_BUSY,
)

llm_cache = Table(
    "llm_cache",
    metadata,
    Column("key", LargeBinary, primary_key=True, comment="SHA-256 of model, scope and canonical request"),
    Column("written_by", Text, nullable=False, comment="worker or key whose answer it is"),
    Column("model", Text, nullable=False),
    Column("answer", JSONB, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    moment("stored_at", nullable=False),
    moment("expires_at", nullable=False),
    Index("llm_cache_expires", "expires_at"),
    Index("llm_cache_stored", "stored_at"),
)

# What the ended calls of each goal have cost, for as long as the goal is there.
llm_spending = Table(
    "llm_spending",
    metadata,
    Column("goal_id", Text, primary_key=True),
    Column("cost_usd", Float, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("max_cost_usd", Float, nullable=False, comment="of one call"),
    Column("max_tokens", BigInteger, nullable=False, comment="of one call"),
    Column("calls", BigInteger, nullable=False, server_default="0", comment="those that cost something"),
    moment("updated_at", nullable=False, server_default=func.now()),
    postgresql_with=_BUSY,
)

# Budgets of agent types and API keys, and what calls have cost in the period under way.
llm_budgets = Table(
    "llm_budgets",
    metadata,
    Column("scope", Text, nullable=False),
    Column("name", Text, nullable=False, comment="agent type, or id of a key"),
    Column("money_budget", Float, comment="US dollars; null: no limit"),
    Column("token_budget", BigInteger, comment="null: no limit"),
    Column("period", Text, nullable=False),
    moment("ends_at", comment="of the period that the amounts are of; null: they are for ever"),
    Column("cost_usd", Float, nullable=False, server_default="0"),
    Column("tokens", BigInteger, nullable=False, server_default="0"),
    Column("max_cost_usd", Float, nullable=False, server_default="0", comment="of one call in the period"),
    Column("max_tokens", BigInteger, nullable=False, server_default="0", comment="of one call in the period"),
    Column("calls", BigInteger, nullable=False, server_default="0", comment="those in the period that cost something"),
    Column("is_low", Boolean, nullable=False, server_default=text("false"), comment="an event has told of it"),
    PrimaryKeyConstraint("scope", "name", name="llm_budgets_pkey"),
    CheckConstraint("scope IN ('agent', 'key')", name="scope"),
    one_of("period", BudgetPeriod),
    postgresql_with=_BUSY,
)

# Sums of finished calls by minute; percentiles come from the histogram.
llm_minutes = Table(
    "llm_minutes",
    metadata,
    moment("minute", nullable=False),
    Column("model", Text, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("goal_id", Text, nullable=False, comment="empty: of no goal"),
    Column("key_id", Text, nullable=False, server_default="", comment="empty: of a worker"),
    Column("outcome", Text, nullable=False),
    Column("calls", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("cost_usd", Float, nullable=False),
    Column("held_seconds", Float, nullable=False, comment="for which the permits were held"),
    Column("task_seconds", Float, nullable=False, comment="the part of it that tasks held them for"),
    Column("timed", BigInteger, nullable=False, comment="calls whose latency is known"),
    Column("seconds", Float, nullable=False, comment="sum of these latencies"),
    Column("longest", Float, nullable=False, comment="the largest of them"),
    Column("histogram", ARRAY(BigInteger), nullable=False, comment="how many fell into each bucket of seconds"),
    PrimaryKeyConstraint("minute", "model", "agent_type", "goal_id", "key_id", "outcome", name="llm_minutes_pkey"),
    one_of("agent_type", AgentType),
)
