"""`convener key`, through the service and on the database."""

import asyncio
import os
import pwd
import re
import socket
from pathlib import Path

import httpx
import pytest

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service
from tests.support.service import registration
from worker_agent.connections.clients import default_socket


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
    for label in ("", "x" * 201):
        assert (await offline("key", "create", "reader", "--label", label, "--database", **direct)).code == 2


async def test_the_log_names_whoever_runs_the_command_and_nobody_of_the_environment(
    convener: CommandLine, offline: CommandLine, live_service: Service
) -> None:
    direct = {"CONVENER_DATABASE_URL": live_service.database_url}
    await offline("key", "create", "reader", "--label", "x", "--database", LOGNAME="alice", USER="alice", **direct)
    (entry,) = (await convener("audit", "ls", "--limit", "1", "-o", "json")).json["items"]
    user = pwd.getpwuid(os.getuid()).pw_name
    assert entry["by"] == f"convener key ... --database by {user}@{socket.gethostname()}"


async def test_the_admin_key_of_this_machine_is_used(
    offline: CommandLine, live_service: Service, tmp_path: Path
) -> None:
    (tmp_path / "url").write_text(live_service.url)
    (tmp_path / "operator.key").write_text(live_service.keys[Role.OPERATOR])
    address = httpx.URL(live_service.url)

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        service = await asyncio.open_connection(address.host, address.port)
        await asyncio.gather(_copy(reader, service[1]), _copy(service[0], writer))

    # Programs of the machine talk over a socket.
    async with await asyncio.start_unix_server(forward, default_socket(tmp_path)):
        assert (await offline("key", "ls")).code == 4
        (tmp_path / "admin.key").write_text(live_service.keys[Role.ADMIN])
        assert (await offline("key", "ls")).code == 0


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while chunk := await reader.read(65_536):
        writer.write(chunk)
    writer.close()


async def test_unknown_keys_roles_and_databases(
    convener: CommandLine, offline: CommandLine, live_service: Service
) -> None:
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    assert (await convener("key", "revoke", "nothing", **admin)).code == 5
    assert (await convener("key", "create", "king", "--label", "x", **admin)).code == 2
    done = await offline("key", "ls", "--database")
    assert done.code == 2
    assert "CONVENER_DATABASE_URL is not set" in done.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("create reader --label x --expires-in 0s", "--expires-in: 0s is not 1s to 3660d"),
        ("create reader --label x --expires-in 99999999d", "--expires-in: 99999999d is not 1s to 3660d"),
        ("enrol --label x --expires-in 25h", "--expires-in: 25h is not 1s to 1d"),
        ("rotate {key} --overlap 31d", "--overlap: 31d is not 0s to 30d"),
        ("rotate {key} --expires-in 0s", "--expires-in: 0s is not 1s to 3660d"),
        (f"rotate {{key}} --reason {'x' * 2001}", "has 2001 characters, more than 2000"),
    ],
)
async def test_the_bounds_of_the_service_hold_on_the_database_too(
    offline: CommandLine, live_service: Service, words: str, sentence: str
) -> None:
    key = live_service.keys[Role.READER].split("_")[1]
    environment = {"CONVENER_DATABASE_URL": live_service.database_url}
    before = (await offline("key", "ls", "-o", "json", **environment)).json
    done = await offline("key", *words.format(key=key).split(), COLUMNS="120", **environment)
    assert (done.code, done.out) == (2, "")
    assert sentence in done.err
    assert (await offline("key", "ls", "-o", "json", **environment)).json == before


@pytest.mark.parametrize("is_direct", [False, True])
async def test_keys_are_rotated_and_workers_enrolled(
    convener: CommandLine, offline: CommandLine, live_service: Service, is_direct: bool
) -> None:
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    database = {"CONVENER_DATABASE_URL": live_service.database_url}
    run, where = (offline, database) if is_direct else (convener, admin)
    made = await run("key", "create", "reader", "--label", "x", "--expires-in", "30d", "-o", "json", **where)
    rotated = await run("key", "rotate", made.json["id"], "--overlap", "0s", **where)
    assert rotated.out.startswith(f"cvn_{made.json['id']}_")
    assert "until" in rotated.err
    assert (await convener("status", CONVENER_KEY=rotated.out.strip())).code == 0
    assert (await convener("status", CONVENER_KEY=made.json["key"])).code == 4
    enrolled = await run("key", "enrol", "--label", "node 7", "--uses", "2", **where)
    assert (enrolled.code, enrolled.out.startswith("cvn_")) == (0, True)
    assert "for 2 registrations" in enrolled.err
    assert "for 1 registration, until" in (await run("key", "enrol", "--label", "node 8", **where)).err
    async with httpx.AsyncClient(base_url=live_service.url, trust_env=False) as http:
        headers = {"Authorization": f"Bearer {enrolled.out.strip()}"}
        codes = [(await http.post("/workers", json=registration(), headers=headers)).status_code for _ in range(3)]
    assert codes == [201, 201, 401]


@pytest.mark.parametrize("is_direct", [False, True])
async def test_workers_go_with_their_key_where_they_are_to(
    convener: CommandLine, offline: CommandLine, live_service: Service, is_direct: bool
) -> None:
    """Who had only the database could not shut out a stolen key of a worker."""
    admin = {"CONVENER_KEY": live_service.keys[Role.ADMIN]}
    database = {"CONVENER_DATABASE_URL": live_service.database_url}
    run, where = (offline, database) if is_direct else (convener, admin)
    token = (await run("key", "enrol", "--label", "x", "--uses", "2", "-o", "json", **where)).json
    async with httpx.AsyncClient(base_url=live_service.url, trust_env=False) as http:
        headers = {"Authorization": f"Bearer {token['key']}"}
        first, second = [await http.post("/workers", json=registration(), headers=headers) for _ in range(2)]
    assert (first.status_code, second.status_code) == (201, 201)
    key_id = first.json()["key"].split("_")[1]
    revoked = await run("key", "revoke", key_id, "--reason", "stolen", **where)
    assert (revoked.code, revoked.out) == (0, f"revoked {key_id}\n")
    ended = (await convener("workers", "get", first.json()["worker_id"], "-o", "json")).json
    assert (ended["state"], ended["ended_reason"]) == ("lost", "evicted: stolen")
    revoked = await run("key", "revoke", token["id"], "--evict-workers", **where)
    assert revoked.out == f"revoked {token['id']} and evicted 1 worker\n"


async def test_a_workers_key_is_not_for_people(convener: CommandLine, live_service: Service) -> None:
    refused = await convener("key", "create", "worker", "--label", "x", CONVENER_KEY=live_service.keys[Role.ADMIN])
    assert refused.code == 2
    assert "make a `pool` key" in refused.err
    shown = await convener("key", "create", "--help")
    words = re.findall(r"\w+", shown.out.partition("Options")[0])
    assert {role.value for role in Role} - {*words} == {"worker"}
