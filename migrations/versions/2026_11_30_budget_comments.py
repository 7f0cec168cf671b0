"""What calls of a budget cost is learned anew in each period, as the comments of these columns say now."""

from alembic import op

revision = "2026_11_30_budget_comments"
down_revision = "2026_11_30_registrations"
branch_labels = None
depends_on = None

_COMMENTS = {
    "max_cost_usd": ("of one call, ever", "of one call in the period"),
    "max_tokens": ("of one call, ever", "of one call in the period"),
    "calls": ("those that cost something, ever", "those in the period that cost something"),
}


def upgrade() -> None:
    """Comments alone."""
    for name, (former, comment) in _COMMENTS.items():
        op.alter_column("llm_budgets", name, existing_comment=former, comment=comment)


def downgrade() -> None:
    """The former comments."""
    for name, (former, comment) in _COMMENTS.items():
        op.alter_column("llm_budgets", name, existing_comment=comment, comment=former)
