"""`convener key`, through the service and on the database."""

from pathlib import Path

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service


async def test_the_first_key_is_made_on_the_database(offline: CommandLine, live_service: Service) -> None:
    database = {"CONVENER_DATABASE_URL": live_service.database_url}
    made = await offline("key", "create", "admin", "--label", "me", **database)
    key = made.out.strip()
    assert key.startswith("cvn_")
    assert key not in made.err
    listed = await offline("key", "ls", "-o", "json", CONVENER_KEY=key, CONVENER_URL=live_service.url)
    mine = next(item for item in listed.json["items"] if item["id"] == key.split("_")[1])
    assert (mine["role"], mine["label"], mine["revoked_at"]) == ("admin", "me", None)
    assert key.split("_", 2)[2] not in listed.out


async def test_a_key_lives_until_it_is_revoked(convener: CommandLine, live_service: Service) -> None:
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    made = (await convener("key", "create", "reader", "--label", "guest", "-o", "json", **admin)).json
    assert made["role"] == "reader"
    assert (await convener("status", CONVENER_KEY=made["key"])).code == 0
    assert (await convener("key", "revoke", made["id"], **admin)).out == f"revoked {made['id']}\n"
    assert (await convener("status", CONVENER_KEY=made["key"])).code == 4
    table = (await convener("key", "ls", **admin)).out
    assert "guest" in table
    assert "ago" in next(line for line in table.splitlines() if made["id"] in line)


async def test_on_the_database_the_same_things_happen(offline: CommandLine, live_service: Service) -> None:
    direct = {"CONVENER_DATABASE_URL": live_service.database_url}
    made = (await offline("key", "create", "reader", "--label", "x", "--database", "-o", "json", **direct)).json
    assert made["id"] in (await offline("key", "ls", **direct)).out
    revoked = await offline("key", "revoke", made["id"], "--database", "-o", "json", **direct)
    assert revoked.json == {"id": made["id"], "revoked": True}
    items = (await offline("key", "ls", "-o", "json", **direct)).json["items"]
    assert next(item for item in items if item["id"] == made["id"])["revoked_at"] is not None
    unknown = await offline("key", "revoke", "nothing", **direct)
    assert unknown.code == 5


async def test_the_admin_key_of_this_machine_is_used(
    offline: CommandLine, live_service: Service, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(live_service.url)
    (tmp_path / "operator.key").write_text(live_service.keys[Role.OPERATOR])
    assert (await offline("key", "ls")).code == 4
    (tmp_path / "admin.key").write_text(live_service.keys[Role.ADMIN])
    assert (await offline("key", "ls")).code == 0


async def test_unknown_keys_roles_and_databases(
    convener: CommandLine, offline: CommandLine, live_service: Service
) -> None:
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    assert (await convener("key", "revoke", "nothing", **admin)).code == 5
    assert (await convener("key", "create", "king", "--label", "x", **admin)).code == 2
    done = await offline("key", "ls", "--database")
    assert done.code == 2
    assert "CONVENER_DATABASE_URL is not set" in done.err
