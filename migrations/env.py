"""How Alembic reaches the database: through the connection that `app.db.schema` hands in."""

from alembic import context
from sqlalchemy import text

from app.db.schema import apply_functions, is_compared
from app.metadata import metadata


def run() -> None:
    """Run the requested migrations on the given connection, never waiting long for a lock."""
    connection = context.config.attributes["connection"]
    # A migration that waits behind a long transaction makes everybody queue behind it; fail and try again instead.
    connection.execute(text("SET lock_timeout = '5s'"))
    connection.execute(text("SET statement_timeout = '10min'"))
    context.configure(
        connection=connection, target_metadata=metadata, include_object=is_compared, compare_server_default=False
    )
    with context.begin_transaction():
        context.run_migrations()
        # After the last step, because the file may name tables that came later than the step which asked for it.
        if context.config.attributes.get("apply_functions"):
            apply_functions(connection)


run()
