"""Operations of migrations that take long, beside which the service goes on."""

from alembic import context, op
from sqlalchemy import Connection, text

from app.db.migration_steps import ONLINE, StepLimits, set_limits

# An index that is built beside writers waits for their transactions, and keeps nobody waiting meanwhile.
_BUILD = StepLimits(lock_seconds=60.0, transaction_seconds=0.0, patience_seconds=0.0)
_HAS_WRITTEN = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")
_IS_VALID = text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)")
_PARTITIONS = text("""
SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = CAST(:table AS regclass) ORDER BY 1
""")
_ATTACHED = text("SELECT EXISTS (SELECT FROM pg_inherits WHERE inhrelid = to_regclass(:name))")


def create_index(name: str, table: str, definition: str) -> None:
    """Create an index without keeping writers out: `definition` is what follows the table, such as `(id) WHERE ...`.

    It leaves the transaction of the migration, so a migration creates its indexes before anything else, and may find
    them from an attempt that was interrupted. Within a transaction of others, where nobody waits, it does not leave it.
    """
    connection = context.config.attributes["connection"]
    if not context.config.attributes.get("is_online"):
        op.execute(f"CREATE INDEX {name} ON {table} {definition}")
        return
    if connection.execute(_HAS_WRITTEN).scalar_one():
        raise ValueError(f"create {name} before anything else or in another migration: it stays if the rest is undone")
    with op.get_context().autocommit_block():
        own = op.get_bind()
        set_limits(own, _BUILD)
        try:
            _build(own, name, table, definition)
        finally:
            set_limits(own, ONLINE)


def _build(connection: Connection, name: str, table: str, definition: str) -> None:
    partitions = list(connection.execute(_PARTITIONS, {"table": table}).scalars())
    if not partitions:
        _build_beside_writers(connection, name, table, definition)
        return
    # One on the partitioned table alone takes a moment, and is valid as soon as each partition has its own; partitions
    # that are made meanwhile have one from the beginning.
    connection.execute(text(f"CREATE INDEX IF NOT EXISTS {name} ON ONLY {table} {definition}"))
    for partition in partitions:
        part = f"{partition}_{name.removeprefix(f'{table}_')}"
        if connection.execute(_ATTACHED, {"name": part}).scalar_one():
            continue
        _build_beside_writers(connection, part, partition, definition)
        connection.execute(text(f"ALTER INDEX {name} ATTACH PARTITION {part}"))


def _build_beside_writers(connection: Connection, name: str, table: str, definition: str) -> None:
    is_valid = connection.execute(_IS_VALID, {"name": name}).scalar_one_or_none()
    if is_valid:
        return
    if is_valid is False:
        connection.execute(text(f"DROP INDEX CONCURRENTLY {name}"))
    connection.execute(text(f"CREATE INDEX CONCURRENTLY {name} ON {table} {definition}"))
