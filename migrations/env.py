"""How Alembic reaches the database: through the connection that `app.db.schema` hands in."""

from alembic import context

from app.db.schema import apply_functions, is_compared
from app.metadata import metadata


def run() -> None:
    """Run the requested migrations, and what belongs into their transaction, on the given connection."""
    attributes = context.config.attributes
    connection = attributes["connection"]
    context.configure(
        connection=connection, target_metadata=metadata, include_object=is_compared, compare_server_default=False
    )
    with context.begin_transaction():
        for action in attributes.get("at_begin", ()):
            action(connection)
        context.run_migrations()
        # After the last step, because the file may name tables that came later than the step which asked for it.
        if attributes.get("apply_functions") and attributes.get("is_last", True):
            apply_functions(connection)
        for action in attributes.get("before_commit", ()):
            action(connection)


run()
