"""What the live pool needs: limits of workers, hosts that start them, sums of what became of tasks, and rosters."""

import sqlalchemy as sa
from alembic import op

revision = "2026_11_24_scaling"
down_revision = "2026_11_24_utilisation"
branch_labels = None
depends_on = None

_LIMITS = ("assigned_memory_gb", "assigned_cpu_cores", "assigned_compute_seconds")


def upgrade() -> None:
    """New tables, and columns without defaults, which rewrite nothing."""
    for name in _LIMITS:
        op.add_column("workers", sa.Column(name, sa.Float(), nullable=True))
    _create_hosts()
    _create_totals()
    _create_rosters()


def downgrade() -> None:
    """Forget them."""
    op.drop_index("decisions_roster", "decisions")
    op.drop_index("decisions_changes", "decisions")
    op.drop_column("decisions", "roster_id")
    for table in ("rosters", "queue_totals", "hosts"):
        op.drop_table(table)
    for name in reversed(_LIMITS):
        op.drop_column("workers", name)


def _create_hosts() -> None:
    op.create_table(
        "hosts",
        sa.Column("provisioner", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False, comment="workers that it is to keep running"),
        sa.Column("usual_size", sa.Integer(), nullable=False, comment="its setting: where it starts, or stays"),
        sa.Column("memory_gb", sa.Float(), nullable=False),
        sa.Column("memory_used_gb", sa.Float(), nullable=False),
        sa.Column("cpu_cores", sa.Float(), nullable=False),
        sa.Column("cpu_share", sa.Float(), nullable=True, comment="of all its cores, null until measured"),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("provisioner", "host", name="hosts_pkey"),
    )


def _create_totals() -> None:
    op.create_table(
        "queue_totals",
        sa.Column("agent_type", sa.Text(), nullable=False),
        sa.Column("priority", sa.SmallInteger(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("tasks", sa.BigInteger(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False, comment="sum of the seconds that the events tell"),
        sa.PrimaryKeyConstraint("agent_type", "priority", "kind", name="queue_totals_pkey"),
    )


def _create_rosters() -> None:
    op.create_table(
        "rosters",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False, comment="SHA-256 of the content"),
        sa.Column("content", sa.JSON(), nullable=False, comment="who the workers are and what they can run"),
        sa.PrimaryKeyConstraint("id", name=op.f("rosters_pkey")),
        sa.UniqueConstraint("digest", name=op.f("rosters_digest_key")),
    )
    op.add_column("decisions", sa.Column("roster_id", sa.BigInteger(), nullable=True))
    op.create_index("decisions_roster", "decisions", ["roster_id"])
    op.create_index("decisions_changes", "decisions", ["id"], postgresql_where=sa.text("decision_type <> 'maintain'"))
