"""Roles of a bundled server: the service's, which is no superuser, and the superuser, which nobody can log in as."""

# Name of the role of the service, and of the database that it owns.
NAME = "convener"
SUPERUSER = "postgres"
_BOOTSTRAP = 10  # oid of the role that initdb makes

# A session cannot rename its own user, so another one does it.
_SEPARATION = """
DO $$ BEGIN
  IF (SELECT rolname FROM pg_roles WHERE oid = {bootstrap}) = '{name}' THEN
    CREATE ROLE convener_renaming SUPERUSER;
    SET SESSION AUTHORIZATION convener_renaming;
    ALTER ROLE {name} RENAME TO {superuser};
    SET SESSION AUTHORIZATION {superuser};
    DROP ROLE convener_renaming;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{name}') THEN CREATE ROLE {name}; END IF;
END $$;
ALTER ROLE {superuser} NOLOGIN PASSWORD NULL;
ALTER ROLE {name} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD '{password}';
ALTER DATABASE {name} OWNER TO {name};
"""

# REASSIGN OWNED refuses, because the superuser owns the catalogue as well. Sequences of columns follow their tables.
_HANDOVER = """
DO $$ DECLARE statement text; BEGIN
  FOR statement IN
    SELECT format('ALTER TABLE %s OWNER TO {name}', c.oid::regclass) FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = {bootstrap}
      AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
    UNION ALL
    SELECT format('ALTER ROUTINE %s OWNER TO {name}', oid::regprocedure) FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND proowner = {bootstrap}
    UNION ALL
    SELECT format('ALTER TYPE %s OWNER TO {name}', oid::regtype) FROM pg_type
    WHERE typnamespace = 'public'::regnamespace AND typowner = {bootstrap} AND typtype IN ('d', 'e')
  LOOP EXECUTE statement; END LOOP;
END $$;
"""


def separation(password: str) -> str:
    """Return statements, one a line, that make the service's role what it should be, whatever there was before."""
    return _in_lines(_SEPARATION, password)


def handover() -> str:
    """Return a statement that gives the service's role all that is in the schema `public` of a database."""
    return _in_lines(_HANDOVER)


def _in_lines(script: str, password: str = "") -> str:
    filled = script.format(name=NAME, superuser=SUPERUSER, bootstrap=_BOOTSTRAP, password=password)
    # A server without clients takes the end of a line for the end of a statement.
    return filled.replace("\n  ", " ").replace("\nEND", " END").lstrip()
