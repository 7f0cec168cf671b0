"""What a worker reports of a model binds that worker first; only listed models are called; answers stay in a goal."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_28_callers"
down_revision = "2026_11_28_namespaces"
branch_labels = None
depends_on = None

offline = "builds the key of llm_minutes anew"

_MINUTES_KEY = ["minute", "model", "agent_type", "goal_id", "outcome"]


def upgrade() -> None:
    """Rows of `llm_models` are the list of models from now on: those called within a day stay on it."""
    op.add_column(
        "llm_models",
        sa.Column(
            "callers",
            postgresql.JSONB(),
            server_default="{}",
            nullable=False,
            comment="what single callers report of the service",
        ),
    )
    # Callers could make up names.
    op.execute("DELETE FROM llm_models WHERE version = 0 AND (length(model) > 200 OR model ~ '[[:cntrl:]]')")
    # One that somebody reported alone, for up to an hour.
    op.execute("UPDATE llm_models SET cooldown_until = NULL")
    op.add_column(
        "llm_permits",
        sa.Column("cache_key", sa.LargeBinary(), nullable=True, comment="under which the answer may be cached"),
    )
    op.add_column("llm_claims", sa.Column("worker_id", sa.UUID(), nullable=True))
    # Their keys were chosen by whoever stored them, and nobody knows who that was.
    op.execute("DELETE FROM llm_cache")
    op.add_column(
        "llm_cache",
        sa.Column("written_by", sa.Text(), nullable=False, comment="worker or key whose answer it is"),
    )
    op.alter_column(
        "llm_cache",
        "key",
        comment="SHA-256 of model, scope and canonical request",
        existing_comment="SHA-256 of model and canonical request",
    )
    op.add_column(
        "llm_minutes",
        sa.Column("key_id", sa.Text(), server_default="", nullable=False, comment="empty: of a worker"),
    )
    _rekey_minutes([*_MINUTES_KEY[:-1], "key_id", "outcome"])


def downgrade() -> None:
    """As before; minutes of different keys cannot be told apart, so one of each stays."""
    op.execute("""
        DELETE FROM llm_minutes m USING llm_minutes other
        WHERE (m.minute, m.model, m.agent_type, m.goal_id, m.outcome)
            = (other.minute, other.model, other.agent_type, other.goal_id, other.outcome) AND m.key_id > other.key_id
    """)
    _rekey_minutes(_MINUTES_KEY)
    op.drop_column("llm_minutes", "key_id")
    op.execute("DELETE FROM llm_cache")
    op.alter_column(
        "llm_cache",
        "key",
        comment="SHA-256 of model and canonical request",
        existing_comment="SHA-256 of model, scope and canonical request",
    )
    op.drop_column("llm_cache", "written_by")
    op.drop_column("llm_claims", "worker_id")
    op.drop_column("llm_permits", "cache_key")
    op.drop_column("llm_models", "callers")


def _rekey_minutes(columns: list[str]) -> None:
    op.drop_constraint("llm_minutes_pkey", "llm_minutes", type_="primary")
    op.create_primary_key("llm_minutes_pkey", "llm_minutes", columns)
