"""What a new connection asks the server before it serves."""

from typing import Any

import pytest
from sqlalchemy import text

from app.db.connections import Connections, LimitedConnection, Limits
from app.db.database import Database


async def test_a_type_of_postgresql_is_asked_for_once_in_a_process(emptied_url: str) -> None:
    connections, asked = Connections(emptied_url), list[str]()
    for _ in range(2):
        connection = await connections.open(Limits())
        asked.clear()
        with connection.query_logger(lambda query: asked.append(query.query)):
            assert await connection.fetchval("SELECT $1::float8[]", [1.5]) == [1.5]
            # Twice: the plan is kept under its name.
            assert await connection.fetchval("SELECT $1::float8[]", [2.5]) == [2.5]
        await connection.close()
    assert asked == ["SELECT $1::float8[]"] * 2


async def test_a_type_of_one_database_is_not_taken_for_that_of_another(database_url: str) -> None:
    """Their numbers may be the same: each connection asks for them."""
    connections, asked = Connections(database_url), list[str]()
    for labels in (["small", "large"], None):
        connection = await connections.open(Limits())
        if labels:
            await connection.execute("DROP TYPE IF EXISTS kind")
            await connection.execute(f"CREATE TYPE kind AS ENUM ({', '.join(map(repr, labels))})")
        asked.clear()
        with connection.query_logger(lambda query: asked.append(query.query)):
            assert await connection.fetchval("SELECT enum_range(NULL::kind)") == ["small", "large"]
        assert len(asked) == 2
        if not labels:
            await connection.execute("DROP TYPE kind")
        await connection.close()


async def test_a_first_connection_serves_at_once(emptied_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, prepare = list[str](), LimitedConnection.prepare

    async def note(connection: LimitedConnection, query: str, **options: Any) -> Any:
        asked.append(query)
        return await prepare(connection, query, **options)

    monkeypatch.setattr(LimitedConnection, "prepare", note)
    database = Database(emptied_url)
    async with database.transaction() as connection:
        version = (await connection.execute(text("SHOW server_version_num"))).scalar_one()
        dialect = connection.dialect
        assert dialect.server_version_info == (int(version) // 10_000, int(version) % 10_000)
        literal = text("SELECT :text").bindparams(text=r"a\b")
        written = literal.compile(dialect=dialect, compile_kwargs={"literal_binds": True})
        assert (await connection.exec_driver_sql(str(written))).scalar_one() == r"a\b"
    await database.close()
    assert asked == ["SHOW server_version_num", r"SELECT 'a\b'"]
