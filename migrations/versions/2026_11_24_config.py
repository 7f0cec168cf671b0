"""The deployment configuration with its history, and the audit log."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "2026_11_24_config"
down_revision = "2026_11_24_context_memory"
branch_labels = None
depends_on = None

_TABLES = ("config_versions", "audit")
_REFUSE = """
CREATE FUNCTION convener_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are only added, never changed or deleted', TG_TABLE_NAME;
END $$
"""


def upgrade() -> None:
    """Two tables that nothing else refers to, and triggers that keep their rows as they are."""
    _create_versions()
    _create_audit()
    op.execute(_REFUSE)
    for table in _TABLES:
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
            "FOR EACH STATEMENT EXECUTE FUNCTION convener_append_only()"
        )


def downgrade() -> None:
    """Forget both."""
    for table in reversed(_TABLES):
        op.drop_table(table)
    op.execute("DROP FUNCTION convener_append_only()")


def _create_versions() -> None:
    op.create_table(
        "config_versions",
        sa.Column("version", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("document", postgresql.JSONB(), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_by", sa.Text(), nullable=False, comment="id of the key that was shown"),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.CheckConstraint(
            "mode IN ('development', 'production', 'trusted_tester')", name=op.f("config_versions_mode_check")
        ),
        sa.CheckConstraint(
            "action IN ('initial', 'mode', 'patch', 'rollback', 'set')", name=op.f("config_versions_action_check")
        ),
        sa.PrimaryKeyConstraint("version", name=op.f("config_versions_pkey")),
    )


def _create_audit() -> None:
    op.create_table(
        "audit",
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False, comment="without gaps"),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("by", sa.Text(), nullable=False, comment="id of the key that was shown"),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("before", sa.JSON(), nullable=False),
        sa.Column("after", sa.JSON(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column(
            "digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the digest before and of this content"
        ),
        sa.PrimaryKeyConstraint("seq", name=op.f("audit_pkey")),
    )
    op.create_index("audit_by_action", "audit", ["action", "seq"])
