"""`convener db` on databases that are empty, migrated, and away."""

from uuid import uuid4

from app.db import schema
from tests.conftest import named, run_on
from tests.support.command_line import CommandLine


async def test_an_empty_database_is_migrated_once(offline: CommandLine, server_url: str) -> None:
    name = f"convener_db_{uuid4().hex[:8]}"
    await run_on(server_url, f"CREATE DATABASE {name}")
    url = {"CONVENER_DATABASE_URL": named(server_url, name)}
    try:
        assert "convener db migrate" in (await offline("db", "status", **url)).out
        first = await offline("db", "migrate", "-o", "json", **url)
        assert first.json == {"before": None, "after": schema.head()}
        assert "nothing to do" in (await offline("db", "migrate", **url)).out
        status = await offline("db", "status", "-o", "json", **url)
        assert status.json == {"revision": schema.head(), "expected": schema.head(), "current": True}
        unknown = await offline("db", "migrate", "--to", "nowhere", **url)
        assert (unknown.code, unknown.out) == (1, "")
        assert "nowhere" in unknown.err
    finally:
        await run_on(server_url, f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_database_that_is_away_or_not_named(offline: CommandLine, server_url: str) -> None:
    away = await offline("db", "status", CONVENER_DATABASE_URL="postgresql://me:hidden@127.0.0.1:1/x")
    assert away.code == 3
    assert "hidden" not in away.err
    missing = await offline("db", "migrate", CONVENER_DATABASE_URL=named(server_url, "convener_missing"))
    assert (missing.code, missing.out) == (1, "")
    assert "convener_missing" in missing.err
    unset = await offline("db", "migrate")
    assert unset.code == 2
    assert "convener up" in unset.err
    wrong = await offline("db", "migrate", CONVENER_DATABASE_URL="mysql://x")
    assert wrong.code == 2
    assert "CONVENER_DATABASE_URL" in wrong.err
