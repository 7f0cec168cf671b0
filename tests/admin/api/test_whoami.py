"""The caller's own key: every good key may read it, and learns of no other."""

import pytest

from app.db.database import Database
from app.kernel.access import SCOPES, Role
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute


@pytest.mark.parametrize("role", Role)
async def test_every_key_learns_what_it_is(service: Service, role: Role) -> None:
    key = (await service.worker()).key if role is Role.WORKER else service.keys[role]
    answer = (await service.ask("GET", "/whoami", key=key)).json()
    assert (answer["role"], answer["id"] in key, answer["expires_at"]) == (role, True, None)
    assert set(answer["scopes"]) == SCOPES[role] - {"public", "self:read"}


async def test_it_tells_what_a_key_was_made_without_and_where_it_is_confined(service: Service) -> None:
    body = {"role": "reader", "label": "board", "namespace": "lab-a", "withheld": ["content:read"]}
    made = await service.post("/keys", body | {"expires_in_seconds": 3600})
    answer = (await service.ask("GET", "/whoami", key=made["key"])).json()
    assert (answer["label"], answer["namespace"], answer["withheld"]) == ("board", "lab-a", ["content:read"])
    assert answer["expires_at"] == made["expires_at"]
    assert "content:read" not in answer["scopes"]


async def test_without_a_good_key_it_tells_nothing(service: Service, database: Database) -> None:
    for key in (None, "cvn_000000000000_x"):
        is_problem(await service.ask("GET", "/whoami", key=key), 401, "unauthenticated")
    made = await service.post("/keys", {"role": "reader", "label": "board"})
    assert (await service.ask("GET", "/whoami", key=made["key"])).status_code == 200
    await execute(database, "DELETE FROM keys WHERE id = $1", made["id"])
    is_problem(await service.ask("GET", "/whoami", key=made["key"]), 401, "unauthenticated")
