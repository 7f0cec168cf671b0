"""What agents achieve: quality of results, minutes and last results of each agent, judgements, and the weights."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_agents"
down_revision = "2026_11_24_alerts"
branch_labels = None
depends_on = None

_AGENTS = "('evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection')"
_NOW = sa.text("now()")


def upgrade() -> None:
    """Two columns without a default, which rewrite nothing, and tables that nothing else refers to."""
    op.add_column(
        "task_history",
        sa.Column("quality", sa.Float(), nullable=True, comment="of the result, as its worker judged it: 0 to 1"),
    )
    op.add_column(
        "events",
        sa.Column(
            "quality",
            sa.Float(),
            nullable=True,
            comment="of the result (completed); 0 for a failure that is the agent's own",
        ),
    )
    _create_performance()
    _create_judgements()
    _create_weights()
    # Achievements begin now: what was before has no quality, and may be long.
    op.execute(
        "INSERT INTO folds (name, transaction) "
        "SELECT 'performance', (pg_snapshot_xmin(pg_current_snapshot())::text)::bigint + convener_transaction_offset()"
    )


def downgrade() -> None:
    """Forget them."""
    op.execute("DELETE FROM folds WHERE name IN ('performance', 'judgements')")
    for table in ("weights", "judgements", "agent_results", "agent_minutes"):
        op.drop_table(table)
    op.drop_column("events", "quality")
    op.drop_column("task_history", "quality")


def _create_performance() -> None:
    op.create_table(
        "agent_minutes",
        sa.Column("minute", sa.DateTime(timezone=True), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("results", sa.BigInteger(), nullable=False, comment="completed, and failed by the agent's own fault"),
        sa.Column("successes", sa.BigInteger(), nullable=False),
        sa.Column(
            "judged", sa.BigInteger(), nullable=False, comment="qualities that were told, with the result or later"
        ),
        sa.Column("quality", sa.Float(), nullable=False, comment="sum of these"),
        sa.Column("seconds", sa.Float(), nullable=False, comment="sum of how long the results took"),
        sa.PrimaryKeyConstraint("minute", "agent_type", name="agent_minutes_pkey"),
    )
    op.create_table(
        "agent_results",
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column(
            "counted",
            sa.BigInteger(),
            nullable=False,
            comment="results and judgements ever, to tell how many are new",
        ),
        sa.Column(
            "recent",
            postgresql.JSONB(),
            nullable=False,
            comment="newest last: task, time, seconds, succeeded, quality",
        ),
        sa.CheckConstraint(f"agent_type IN {_AGENTS}", name=op.f("agent_results_agent_type_check")),
        sa.PrimaryKeyConstraint("agent_type", name=op.f("agent_results_pkey")),
    )


def _create_judgements() -> None:
    op.create_table(
        "judgements",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column(
            "transaction", sa.BigInteger(), server_default=sa.text("convener_event_transaction()"), nullable=False
        ),
        sa.Column("request_id", sa.UUID(), nullable=False),
        sa.Column("place", sa.SmallInteger(), nullable=False, comment="in the request"),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("task_id", sa.UUID(), nullable=True, comment="null: of the agent as such"),
        sa.Column("quality", sa.Float(), nullable=False),
        sa.Column("basis", sa.Text(), nullable=True, comment="how it was judged, in the words of who did"),
        sa.Column("judged_by", sa.Text(), nullable=False, comment="id of the key that was shown"),
        sa.Column("judged_at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.CheckConstraint(f"agent_type IN {_AGENTS}", name=op.f("judgements_agent_type_check")),
        sa.CheckConstraint("quality BETWEEN 0 AND 1", name=op.f("judgements_quality_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("judgements_pkey")),
        sa.UniqueConstraint("request_id", "place", name="judgements_request_key"),
    )
    op.create_index("judgements_transaction", "judgements", ["transaction", "id"])
    op.create_index("judgements_judged", "judgements", ["judged_at"])


def _create_weights() -> None:
    op.create_table(
        "weights",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=_NOW, nullable=False),
        sa.Column("cause", sa.Text(), nullable=False),
        sa.Column("weights", postgresql.JSONB(), nullable=False, comment="in force from now on"),
        sa.Column("target", postgresql.JSONB(), nullable=False, comment="where they are headed"),
        sa.Column(
            "adjustments",
            postgresql.JSONB(),
            nullable=False,
            comment="what changed just now, and why; empty: only the heading did",
        ),
        sa.Column("configured", postgresql.JSONB(), nullable=False, comment="what the configuration said"),
        sa.Column("base", postgresql.JSONB(), nullable=False, comment="that, or what was commanded since"),
        sa.Column("heading", sa.Text(), nullable=False),
        sa.Column("override", postgresql.JSONB(), nullable=False, comment="{} without one"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True, comment="of the override"),
        sa.Column("results", sa.BigInteger(), nullable=False, comment="counted until the weights last changed"),
        sa.Column("stepped_at", sa.DateTime(timezone=True), nullable=True, comment="when they last changed"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "changed_by", sa.Text(), nullable=False, comment="id of the key that was shown; `convener` for a duty"
        ),
        sa.CheckConstraint(
            "cause IN ('command', 'config', 'expiry', 'override', 'release', 'tick')",
            name=op.f("weights_cause_check"),
        ),
        sa.CheckConstraint("heading IN ('earning', 'ordered', 'returning')", name=op.f("weights_heading_check")),
        sa.PrimaryKeyConstraint("version", name=op.f("weights_pkey")),
    )
    op.execute(
        "CREATE TRIGGER weights_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON weights "
        "FOR EACH STATEMENT EXECUTE FUNCTION convener_append_only()"
    )
