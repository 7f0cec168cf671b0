"""Rights of our role on the server of the database, which should be none beyond its own database."""

import logging

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from app.db.database import Database
from app.kernel.errors import DatabaseUnavailable

log = logging.getLogger(__name__)
# Attributes and predefined roles by which somebody who has our password gets hold of the server, or of its machine.
_EXCESS = text("""
SELECT name FROM pg_roles, LATERAL (VALUES
    ('superuser', rolsuper), ('createrole', rolcreaterole), ('createdb', rolcreatedb), ('replication', rolreplication),
    ('bypassrls', rolbypassrls)) AS attributes (name, is_set)
WHERE rolname = current_user AND is_set
UNION ALL
SELECT rolname FROM pg_roles
WHERE rolname IN ('pg_execute_server_program', 'pg_read_server_files', 'pg_write_server_files')
  AND pg_has_role(current_user, oid, 'MEMBER')
""")
REMEDY = (
    "connect as a role that only owns its database: CREATE ROLE convener LOGIN PASSWORD '...'; "
    "ALTER DATABASE ... OWNER TO convener; and give it the tables of an existing one (REASSIGN OWNED)"
)


async def excess_rights(connection: AsyncConnection) -> list[str]:
    """Names of rights that the service does not need; `superuser` alone where the role is one."""
    rights = list((await connection.execute(_EXCESS)).scalars())
    return ["superuser"] if "superuser" in rights else rights


async def warn_of_excess_rights(database: Database) -> None:
    """Log a warning where our role has rights that it does not need; does nothing while the database is away."""
    try:
        async with database.transaction() as connection:
            rights = await excess_rights(connection)
    except DatabaseUnavailable:
        return
    if rights:
        log.warning("the role of the database has more rights than it needs (%s); %s", ", ".join(rights), REMEDY)
