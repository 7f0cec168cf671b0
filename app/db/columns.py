"""Metadata of all tables, and shorthands for columns that many of them have."""

from typing import Any

from sqlalchemy import CheckConstraint, Column, DateTime, MetaData, text

metadata = MetaData(
    naming_convention={
        "ix": "%(table_name)s_%(column_0_N_name)s_ix",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "pk": "%(table_name)s_pkey",
    }
)

# The number under which readers find the row. A restored database counts transactions anew; the offset, which the
# restore sets, keeps these numbers growing for clients that store them.
EVENT_TRANSACTION = text("convener_event_transaction()")


def one_of(column: str, values: Any) -> CheckConstraint:
    """A check that a text column holds one of these values."""
    words = ", ".join(f"'{value}'" for value in sorted(values))
    return CheckConstraint(f"{column} IN ({words})", name=column)


def moment(name: str, **options: Any) -> Column[Any]:
    """A point in time."""
    return Column(name, DateTime(timezone=True), **options)
