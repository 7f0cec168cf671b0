#!/bin/sh
# Makes the role of the service, which owns its database and is no superuser. PostgreSQL's image runs this on a new
# volume; for one of an earlier version, whose service was the superuser, run it once: README.md. Safe to repeat.
set -eu

by=postgres
psql --username="$by" --dbname=template1 --command='' 2>/dev/null || by=convener

psql --username="$by" --dbname=convener --no-psqlrc --quiet --set=ON_ERROR_STOP=1 <<'SQL'
\set password `cat "${SERVICE_PASSWORD_FILE:-/run/secrets/service_password}"`
SET client_min_messages = warning;
BEGIN;
DO $$ BEGIN
  -- A session cannot rename its own user, so another one does it.
  IF (SELECT rolname FROM pg_roles WHERE oid = 10) = 'convener' THEN
    CREATE ROLE renaming SUPERUSER;
    SET SESSION AUTHORIZATION renaming;
    ALTER ROLE convener RENAME TO postgres;
    SET SESSION AUTHORIZATION postgres;
    DROP ROLE renaming;
  END IF;
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'convener') THEN CREATE ROLE convener; END IF;
END $$;
ALTER ROLE convener LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'password';
-- So that the alert `database_trouble` also sees the snapshots of whoever logs in as the superuser.
GRANT pg_read_all_stats TO convener;
ALTER DATABASE convener OWNER TO convener;
DO $$ DECLARE statement text; BEGIN
  FOR statement IN
    SELECT format('ALTER TABLE %s OWNER TO convener', c.oid::regclass) FROM pg_class c
    WHERE c.relnamespace = 'public'::regnamespace AND c.relowner = 10 AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i') AND c.relkind = 'S')
    UNION ALL
    SELECT format('ALTER ROUTINE %s OWNER TO convener', oid::regprocedure) FROM pg_proc
    WHERE pronamespace = 'public'::regnamespace AND proowner = 10
  LOOP EXECUTE statement; END LOOP;
END $$;
COMMIT;
SQL
