"""The audit log: its pages, what each entry has changed, and the verdict on its chain."""

import re

from app.dashboard.audit import changes
from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.support.service import Service

_HOSTILE = "<img src=x onerror=alert(1)>\"'"
_PATH = "/dashboard/audit"


def _numbers(page: str) -> list[int]:
    return [int(number) for number in re.findall(r'<th scope="row" class="n">(\d+)</th>', page)]


async def test_pages_lead_through_the_log_and_a_filter_selects(service: Service) -> None:
    for number in range(30):
        await service.post(f"/queues/ranking/{'resume' if number % 2 else 'pause'}", {"reason": f"{_HOSTILE} {number}"})
    async with browser(service, Role.READER) as reader:
        pauses = await reader.page(f"{_PATH}?action=queues.pause")
        assert len(_numbers(pauses)) == 15
        assert "queues.resume" not in pauses
        assert "<img" not in pauses
        assert "&lt;img src=x" in pauses
        for _ in range(15):
            await service.post("/queues/ranking/pause", {"reason": "x"})
            await service.post("/queues/ranking/resume", {"reason": "x"})
        last = (await service.get("/audit", limit=1))["items"][0]["seq"]
        first = await reader.page(_PATH)
        following = re.search(r'href="([^"]+)" rel="next"', first)
        assert following
        second = await reader.page(following[1].replace("&amp;", "&"))
        assert _numbers(first) + _numbers(second) == list(range(last, 0, -1))
        assert (await reader.get(f"{_PATH}?after=x")).status_code == 422
        assert "No entry of this action" in await reader.page(f"{_PATH}?action={_HOSTILE}")


async def test_the_chain_is_checked_on_demand(service: Service, database: Database) -> None:
    await service.post("/queues/ranking/pause", {"reason": "one"})
    async with browser(service, Role.READER) as reader:
        answer = await reader.send(f"{_PATH}/verify", of=_PATH)
        end = (await service.get("/audit", limit=1))["items"][0]
        assert f"All {end['seq']} entries are as they were written." in answer.text
        assert end["digest"] in answer.text
        noted = {"seq": str(end["seq"]), "digest": end["digest"]}
        assert "as they were written" in (await reader.send(f"{_PATH}/verify", of=_PATH, **noted)).text
        other = await reader.send(f"{_PATH}/verify", of=_PATH, **noted | {"digest": "0" * 64})
        assert "<strong>The log was changed</strong>" in other.text
        wrong = await reader.send(f"{_PATH}/verify", of=_PATH, seq="x")
        assert (wrong.status_code, "must be a whole number" in wrong.text) == (422, True)
        async with (await database.pool()).acquire() as connection, connection.transaction():
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute("UPDATE audit SET reason = 'another' WHERE action = 'queues.pause'")
        forged = await reader.send(f"{_PATH}/verify", of=_PATH)
        assert "<strong>The log was changed</strong>" in forged.text
        assert (await reader.client.post(f"{_PATH}/verify", data={"csrf": "guess"})).status_code == 403


async def test_no_text_turns_the_direction_of_what_stands_beside_it(service: Service) -> None:
    label = "\N{RIGHT-TO-LEFT OVERRIDE}nimda :elor"
    await service.post("/keys", {"role": "supervisor", "label": label})
    async with browser(service, Role.ADMIN) as admin:
        assert f"<bdi>{label}</bdi>" in await admin.page("/dashboard/audit?action=key.create")


def test_what_differs_is_told_by_its_path() -> None:
    old_state = {"pool": {"max": 4, "min": 1}, "gone": "x", "same": [1]}
    new_state = {"pool": {"max": 9, "min": 1}, "same": [1], "new": {"a": True}}
    assert changes(old_state, new_state) == [("pool.max", 4, 9), ("new.a", None, True), ("gone", "x", None)]
    assert changes(None, {"step": 1}) == [("step", None, 1)]
    assert changes("0001", "0002") == [("", "0001", "0002")]
    assert changes(None, None) == []
