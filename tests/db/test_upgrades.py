"""An existing database keeps its data when it is brought up to date."""

from app.db import schema
from app.db.database import Database
from tests.support.sql import execute, fetch, value


async def test_keys_without_a_worker_become_those_of_pools(own_database: Database) -> None:
    await schema.downgrade(own_database.engine, "2026_11_28_functions")
    insert = "INSERT INTO keys (id, role, label, secret_hash, worker_id) VALUES ($1, $2, 'x', '', {})"
    for role in ("worker", "reader", "admin"):
        await execute(own_database, insert.format("NULL"), role, role)
    await execute(own_database, insert.format("gen_random_uuid()"), "its own", "worker")
    await schema.migrate(own_database.engine)
    roles = {row["id"]: row["role"] for row in await fetch(own_database, "SELECT id, role FROM keys")}
    assert roles == {"worker": "pool", "reader": "reader", "admin": "admin", "its own": "worker"}
    await schema.downgrade(own_database.engine, "2026_11_28_functions")
    assert await value(own_database, "SELECT role FROM keys WHERE id = 'worker'") == "worker"
