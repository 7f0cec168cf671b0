"""The service's role owns its database and nothing else; databases of earlier versions are handed to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

from app.admin.service.access import create_key
from app.admin.store.keys import NewKey
from app.db import retention, schema
from app.db.database import Database
from app.kernel.access import Role
from app.postgres import roles
from app.postgres.accounts import choose_account, give
from app.postgres.binaries import Binaries
from app.postgres.cluster import Cluster
from app.postgres.errors import ClusterUnusable
from app.postgres.server import Server

FORBIDDEN = (
    "COPY (SELECT 1) TO PROGRAM 'id'",
    "CREATE TEMPORARY TABLE t (x text); COPY t FROM PROGRAM 'id'",
    "CREATE TEMPORARY TABLE t (x text); COPY t FROM '/etc/passwd'",
    "COPY (SELECT 1) TO '/tmp/x'",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_read_binary_file('PG_VERSION')",
    "SELECT pg_ls_dir('.')",
    "SELECT pg_stat_file('PG_VERSION')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT lo_export(1, '/tmp/x')",
    "SELECT pg_reload_conf()",
    "SELECT pg_hba_file_rules()",
    "SELECT rolpassword FROM pg_authid",
    "ALTER SYSTEM SET archive_command = 'id'",
    "ALTER ROLE convener SUPERUSER",
    "ALTER ROLE convener CREATEROLE",
    "ALTER ROLE postgres PASSWORD 'x'",
    "SET ROLE postgres",
    "SET SESSION AUTHORIZATION postgres",
    "GRANT pg_execute_server_program TO convener",
    "GRANT pg_read_server_files TO convener",
    "CREATE ROLE other",
    "CREATE DATABASE other",
    "CREATE EXTENSION adminpack",
    "CREATE FUNCTION f() RETURNS int LANGUAGE c AS 'libc', 'system'",
    "LOAD '/tmp/x'",
    "CREATE TABLESPACE other LOCATION '/tmp'",
    "SET session_replication_role = replica",
)
# Everything in a database that a role can own.
FOREIGN = """
SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relowner = 10)
     + (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace AND proowner = 10)
     + (SELECT count(*) FROM pg_type WHERE typnamespace = 'public'::regnamespace AND typowner = 10)
"""


@pytest.fixture
async def owner(server: Server) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of the service's role."""
    await server.start()
    connection = await asyncpg.connect(server.url)
    yield connection
    await connection.close()


@pytest.fixture
async def earlier(state: Path, binaries: Binaries) -> Cluster:
    """A cluster as earlier versions made it: the service is its superuser, who owns everything."""
    old = Cluster(directory=state, binaries=binaries, settings={"fsync": "off"})
    with old.lock():
        account = choose_account(state, binaries)
        old.data.mkdir(parents=True)
        give(state, account)
        form = ("--username=convener", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync")
        old._run(account, "initdb", f"--pgdata={old.data}", *form)
        with (old.data / "postgresql.conf").open("a") as file:
            file.write("\ninclude_if_exists = 'convener.conf'\n")
        old.maintain(account, "ALTER ROLE convener PASSWORD 'earlier';\nCREATE DATABASE convener;\n")
        old.password_file.write_text("earlier")
        server = Server(cluster=old)
        await server.start()
        await _fill(server.url)
        await server.stop()
        old.password_file.rename(old.data.parent / "password")
    return old


async def _fill(url: str) -> None:
    database = Database(url)
    await schema.migrate(database.engine)
    async with database.transaction() as connection:
        await create_key(connection, NewKey(role=Role.READER, label="kept"))
    await database.close()
    superuser = await asyncpg.connect(url)
    assert await superuser.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    assert await superuser.fetchval(FOREIGN) > 0
    await superuser.execute("CREATE DOMAIN mine AS int; CREATE SEQUENCE alone; CREATE VIEW seen AS SELECT 1 AS one")
    await superuser.close()


@pytest.mark.parametrize("statement", FORBIDDEN)
async def test_the_service_cannot_do_what_a_superuser_can(
    owner: "asyncpg.Connection[asyncpg.Record]", statement: str
) -> None:
    with pytest.raises((asyncpg.InsufficientPrivilegeError, asyncpg.FeatureNotSupportedError)):
        await owner.execute(statement)


async def test_the_role_has_no_attribute_and_is_in_no_role(owner: "asyncpg.Connection[asyncpg.Record]") -> None:
    row = await owner.fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
    assert row is not None
    attributes = ("rolsuper", "rolcreaterole", "rolcreatedb", "rolreplication", "rolbypassrls")
    assert [row[name] for name in attributes] == [False] * 5
    assert await owner.fetchval("SELECT count(*) FROM pg_auth_members WHERE member = $1", row["oid"]) == 0
    assert await owner.fetchval("SELECT array_agg(rolname) FROM pg_roles WHERE rolcanlogin") == ["convener"]


@pytest.mark.parametrize(
    ("user", "database"),
    [("postgres", "postgres"), ("postgres", "convener"), ("convener", "postgres"), ("convener", "template1")],
)
async def test_nobody_else_comes_in_and_nowhere_else(server: Server, user: str, database: str) -> None:
    await server.start()
    for url in (server.cluster.url, server.cluster.socket_url):
        with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError, match="no pg_hba"):
            await asyncpg.connect(url, user=user, database=database)


async def test_a_database_of_an_earlier_version_is_handed_over_with_all_its_data(earlier: Cluster) -> None:
    server = Server(cluster=earlier)
    with earlier.lock():
        await server.start()
        try:
            assert not (earlier.data.parent / "password").exists()
            assert "earlier" not in server.url
            await _check_owner(server.url)
            await _check_service(server.url)
            first_url = server.url
            await server.stop()
            await server.start()
            assert server.url == first_url, "once is enough"
            with pytest.raises(asyncpg.InvalidPasswordError):
                await asyncpg.connect(server.url, password="earlier")
        finally:
            await server.stop()


async def test_a_crash_amid_the_handover_is_mended_by_the_next_start(
    earlier: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with earlier.lock(), monkeypatch.context() as patch:
        patch.setattr(roles, "handover", lambda: "SELECT 1/0;\n")
        with pytest.raises(ClusterUnusable):
            await Server(cluster=earlier).start()
    assert not earlier.password_file.exists()
    server = Server(cluster=earlier)
    with earlier.lock():
        await server.start()
        try:
            await _check_owner(server.url)
        finally:
            await server.stop()


async def _check_owner(url: str) -> None:
    connection = await asyncpg.connect(url)
    assert not await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
    assert await connection.fetchval("SELECT rolname FROM pg_roles WHERE oid = 10") == "postgres"
    assert await connection.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'convener_renaming'") == 0
    assert await connection.fetchval(FOREIGN) == 0
    owner = "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'convener'"
    assert await connection.fetchval(owner) == "convener"
    assert await connection.fetchval("SELECT label FROM keys") == "kept"
    await connection.close()


async def _check_service(url: str) -> None:
    """All that the service does to its schema, down to nothing and up again."""
    database = Database(url)
    async with database.engine.connect() as connection:
        await retention.create_ahead(connection)
        await connection.execute(text("ANALYZE"))
        await connection.rollback()
    await schema.downgrade(database.engine)
    old_revision, new_revision = await schema.migrate(database.engine)
    assert (old_revision, new_revision) == (None, schema.head())
    await database.close()
