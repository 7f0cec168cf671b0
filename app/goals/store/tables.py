"""Tables of research goals: goals, iterations, compute, and holds on their tasks."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

from app.db.columns import metadata, moment, one_of
from app.goals.rules.goals import GoalState
from app.goals.rules.stopping import StoppingRule, Unit
from app.kernel.agents import AgentType
from app.queue.rules.holds import Hold
from app.queue.rules.status import TOTALS

# A goal that was given a weight but never created has no state. Where a limit or rule is null, the configuration in
# force decides.
goals = Table(
    "goals",
    metadata,
    Column("id", Text, primary_key=True),
    Column("weight", Float, nullable=False, server_default="1", comment="share of its tasks against other goals"),
    moment("created_at", nullable=False, server_default=func.now()),
    Column("state", Text),
    Column("objective", Text),
    Column("time_limit_seconds", Float),
    Column("compute_budget_seconds", Float),
    Column("money_budget", Float),
    Column("token_budget", BigInteger),
    # Between two reports money is what the later one says, or what calls have cost if that is more.
    Column("money_base", Float, nullable=False, server_default="0", comment="spent until the last report"),
    Column("money_since", Float, nullable=False, server_default="0", comment="cost of all calls until then"),
    Column("is_budget_low", Boolean, nullable=False, server_default=text("false"), comment="an event has told of it"),
    Column("min_iterations", Integer),
    Column("max_iterations", Integer),
    Column("improvement_threshold", Float),
    Column("improvement_unit", Text),
    Column("rule", Text),
    Column("patience", Integer),
    Column("created_by", Text, comment="id of the key that was shown"),
    Column("request_hash", LargeBinary, comment="of the body that created it"),
    moment("started_at"),
    moment("ended_at"),
    Column("reason", Text, comment="why it is in this state"),
    one_of("state", GoalState),
    one_of("improvement_unit", Unit),
    one_of("rule", StoppingRule),
)
Index("goals_by_state", goals.c.state, goals.c.id, postgresql_where=text("state IS NOT NULL"))

# Rows are only added; a decision can be made again from those up to its own.
goal_iterations = Table(
    "goal_iterations",
    metadata,
    Column("goal_id", Text, nullable=False),
    Column("number", Integer, nullable=False),
    moment("reported_at", nullable=False, server_default=func.now()),
    Column("claimed_seconds", Float, comment="compute, by the word of the client"),
    Column("tasks", Integer),
    Column("request_hash", LargeBinary, nullable=False),
    # Not JSONB: a replay is compared with the very text of the numbers.
    Column("report", JSON, nullable=False, comment="the iteration as the rule takes it"),
    Column("inputs", JSON, nullable=False, comment="what was used by then, and the policy"),
    Column("decision", JSON, nullable=False),
    PrimaryKeyConstraint("goal_id", "number", name="goal_iterations_pkey"),
)

# Seconds on workers of attempts that have ended, and numbers of tasks, folded from the events like those of the queue.
goal_compute = Table(
    "goal_compute",
    metadata,
    Column("goal_id", Text, nullable=False),
    Column("agent_type", Text, nullable=False),
    Column("attempts", BigInteger, nullable=False),
    Column("seconds", Float, nullable=False),
    *(Column(name, BigInteger, nullable=False, server_default="0") for name in TOTALS),
    PrimaryKeyConstraint("goal_id", "agent_type", name="goal_compute_pkey"),
    one_of("agent_type", AgentType),
)

# Goals whose tasks are held back, and only those: claims read this table, and skip tasks of a closed goal. Skipping
# many would be slow, so a duty then moves its tasks out of the claim index (`run_at` infinity), and back when the goal
# is open again; then the row is deleted.
holds = Table(
    "holds",
    metadata,
    Column("goal_id", Text, primary_key=True),
    Column("reason", Text, nullable=False),
    Column("is_closed", Boolean, nullable=False, server_default=text("true")),
    Column("is_swept", Boolean, nullable=False, server_default=text("false"), comment="its tasks are out of the way"),
    Column("swept_seq", BigInteger, nullable=False, server_default="0", comment="its tasks up to here are"),
    Column("shifts", JSONB, comment="lane -> by how much its tags move when its tasks come back"),
    Column(
        "is_metered",
        Boolean,
        nullable=False,
        server_default=text("false"),
        comment="only so many of its tasks are let through as its budget has room for",
    ),
    Column("released", BigInteger, nullable=False, server_default="0", comment="tasks let through since it is metered"),
    Column("base", BigInteger, nullable=False, server_default="0", comment="attempts that there were before"),
    Column(
        "released_ids",
        ARRAY(UUID),
        nullable=False,
        server_default="{}",
        comment="tasks let through, of which those that still live and wait take room",
    ),
    moment("since", nullable=False, server_default=func.now()),
    one_of("reason", Hold),
)
# Claims ask whether any goal is closed, and read those that are not swept yet. Entries of one value lie in the order of
# the pages they lead to: each is read once where thousands are not swept, or an old snapshot keeps the dead ones.
Index("holds_closed", holds.c.is_swept, postgresql_where=text("is_closed"))
