"""Sessions: who gets one, what it is good for, when it ends, and which forms are taken."""

from urllib.parse import urlsplit

import pytest

from app.admin.service import sessions
from app.admin.service.keyring import Keyring
from app.db.database import Database
from app.kernel.access import Role
from tests.dashboard.browsers import browser
from tests.support.service import Service
from tests.support.sql import execute, fetch, until

LOOKING = (Role.MONITOR, Role.READER, Role.SUPERVISOR, Role.OPERATOR, Role.ADMIN)
_NAME = "convener_session_default"


async def test_browsers_are_led_to_the_login_and_programs_nowhere(service: Service) -> None:
    async with browser(service) as anybody:
        root = await anybody.get("/", headers={"Accept": "text/html,*/*"})
        assert (root.status_code, root.headers["location"]) == (303, "/dashboard")
        assert (await anybody.get("/dashboard")).headers["location"] == "/dashboard/login"
        tasks = await anybody.get("/dashboard/stream?a=b%26c")
        assert tasks.headers["location"] == "/dashboard/login?back=%2Fdashboard%2Fstream%3Fa%3Db%2526c"
        problem = await anybody.get("/", headers={"Accept": "application/json"})
        assert (problem.status_code, problem.json()["code"]) == (404, "not_found")


@pytest.mark.parametrize("role", LOOKING)
async def test_a_key_begins_a_session_that_is_not_the_key(service: Service, role: Role) -> None:
    async with browser(service) as somebody:
        answer = await somebody.log_in(service.keys[role])
        assert (answer.status_code, answer.headers["location"]) == (303, "/dashboard")
        cookies = answer.headers.get_list("set-cookie")
        (cookie,) = [cookie for cookie in cookies if cookie.startswith(_NAME)]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Secure" not in cookie
        assert service.keys[role] not in str(answer.headers)
        assert service.keys[role].split("_", 2)[2] not in str(answer.headers)
        assert (await somebody.get("/dashboard")).status_code == 200


async def test_the_session_is_for_tls_alone_where_there_is_tls(service: Service) -> None:
    async with browser(service) as somebody:
        somebody.client.base_url = "https://convener"
        answer = await somebody.log_in(service.keys[Role.READER])
        assert all("Secure" in cookie for cookie in answer.headers.get_list("set-cookie") if "Max-Age=0" not in cookie)


@pytest.mark.parametrize("role", [Role.POOL, Role.WORKER])
async def test_who_may_look_at_nothing_gets_no_session(service: Service, role: Role) -> None:
    key = (await service.worker()).key if role is Role.WORKER else service.keys[role]
    async with browser(service) as somebody:
        answer = await somebody.log_in(key)
        assert answer.status_code == 403
        assert f"the key of a {role} may not look at anything" in answer.text
        assert _NAME not in somebody.client.cookies


@pytest.mark.parametrize("key", ["", "nonsense", "cvn_000000000000_guess", "cvs_000000000000_guess", "<script>"])
async def test_a_wrong_key_is_refused_and_not_shown(service: Service, key: str) -> None:
    async with browser(service) as somebody:
        answer = await somebody.log_in(key)
        assert answer.status_code == 401
        assert not key or f'value="{key}"' not in answer.text
        assert _NAME not in somebody.client.cookies


async def test_a_session_does_not_prolong_itself(service: Service) -> None:
    async with browser(service, Role.READER) as somebody, browser(service) as other:
        assert (await other.log_in(somebody.client.cookies[_NAME])).status_code == 401


async def test_forms_without_the_word_of_their_page_change_nothing(service: Service, database: Database) -> None:
    async with browser(service, Role.OPERATOR) as operator, browser(service, Role.OPERATOR) as other:
        path, reason = "/dashboard/do/pause-queue", {"agent": "ranking", "reason": "x"}
        for word in ("", "guess", await other.word()):
            answer = await operator.client.post(path, data={"csrf": word} | reason)
            assert answer.status_code == 403, word
        word = await operator.word()
        for headers in ({"Origin": "http://elsewhere"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            answer = await operator.client.post(path, data={"csrf": word} | reason, headers=headers)
            assert answer.status_code == 403, headers
        assert (await operator.client.post("/dashboard/login", data={"key": "x"})).status_code == 403
        assert (await operator.client.post("/dashboard/logout", data={})).status_code == 403
        assert await fetch(database, "SELECT FROM pauses") == []
        headers = {"Origin": "http://convener", "Sec-Fetch-Site": "same-origin"}
        answer = await operator.client.post(path, data={"csrf": word} | reason, headers=headers)
        assert answer.status_code == 303
        assert len(await fetch(database, "SELECT FROM pauses")) == 1


async def test_what_was_typed_is_not_lost_with_the_session_or_at_a_refusal(service: Service) -> None:
    task_id = await service.submitted()
    typed = {"payload": '{"typed": "for an <hour>"}', "labels": "{}", "agent_type": "ranking"}
    async with browser(service, Role.OPERATOR) as somebody:
        path, word = f"/dashboard/tasks/{task_id}/submit", await somebody.word()
        refused = await somebody.send("/dashboard/do/set-model", model="argo:x", window_seconds="soon", version="0")
        assert refused.status_code == 422
        assert ">soon</pre>" in refused.text
        stale = await somebody.client.post(path, data=typed | {"csrf": "of a former session"})
        assert stale.status_code == 403
        somebody.client.cookies.clear()
        ended = await somebody.client.post(path, data=typed | {"csrf": word})
        assert ended.status_code == 401
        for answer in (stale, ended):
            assert "&#34;for an &lt;hour&gt;&#34;}</pre>" in answer.text
            assert word not in answer.text.partition("<main")[2]
        # Another site has no say in what our pages show.
        for headers in ({"Origin": "http://elsewhere"}, {"Sec-Fetch-Site": "cross-site"}):
            foreign = await somebody.client.post(path, data=typed, headers=headers)
            assert foreign.status_code == 401
            assert "typed" not in foreign.text


async def test_a_session_ends_when_its_holder_leaves(service: Service, database: Database) -> None:
    async with browser(service, Role.READER) as somebody:
        session = somebody.client.cookies[_NAME]
        assert (await service.ask("GET", "/tasks", key=session)).status_code == 200
        answer = await somebody.send("/dashboard/logout")
        assert answer.headers["location"] == "/dashboard/login"
        assert (await somebody.get("/dashboard")).status_code == 303
        await until(lambda: _is_refused(service, session))
    key_id = service.keys[Role.READER].split("_")[1]
    rows = await fetch(database, 'SELECT "by", action FROM audit WHERE action LIKE $1 ORDER BY seq', "session.%")
    assert [tuple(row) for row in rows] == [(key_id, "session.open"), (key_id, "session.end")]


async def _is_refused(service: Service, session: str) -> bool:
    return (await service.ask("GET", "/tasks", key=session)).status_code == 401


@pytest.mark.parametrize("how", ["revoked", "rotated", "expired"])
async def test_a_session_ends_with_its_key(service: Service, database: Database, how: str) -> None:
    made = await service.post("/keys", {"role": "reader", "label": "x"})
    async with browser(service, made["key"]) as somebody:
        session = somebody.client.cookies[_NAME]
        if how == "revoked":
            await service.ask("DELETE", f"/keys/{made['id']}")
        elif how == "rotated":
            await service.post(f"/keys/{made['id']}/rotate", {"overlap_seconds": 0})
        else:
            await execute(database, "UPDATE sessions SET expires_at = now() - interval '1 s'")
            # Else it is believed for as long as it was good when it was looked up.
            service.app.state.services[Keyring]._entries.clear()
        await until(lambda: _is_refused(service, session))
        assert (await somebody.get("/dashboard")).status_code == 303


async def test_a_link_opens_one_session_and_is_no_session(service: Service, database: Database) -> None:
    key_id = service.keys[Role.OPERATOR].split("_")[1]
    async with database.transaction() as connection:
        link = await sessions.create_link(connection, key_id)
    assert await _is_refused(service, link)
    async with browser(service) as first, browser(service) as second:
        answer = await first.get(f"/dashboard/login?link={link}")
        assert answer.status_code == 200
        # Not by a redirect, after which a strict cookie would stay away.
        assert 'http-equiv="refresh"' in answer.text
        assert (await first.get("/dashboard")).status_code == 200
        late = await second.get(f"/dashboard/login?link={link}")
        assert late.status_code == 401
        assert "has been used" in late.text
        assert (await second.get("/dashboard")).status_code == 303


async def test_a_link_of_a_revoked_key_leads_nowhere(service: Service, database: Database) -> None:
    made = await service.post("/keys", {"role": "reader", "label": "x"})
    async with database.transaction() as connection:
        link = await sessions.create_link(connection, made["id"])
    await service.ask("DELETE", f"/keys/{made['id']}")
    async with browser(service) as somebody:
        await somebody.get(f"/dashboard/login?link={link}")
        assert (await somebody.get("/dashboard")).status_code == 303


async def test_sessions_do_not_pile_up(service: Service, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_MAX_SESSIONS", 3)
    async with browser(service) as somebody:
        for _ in range(5):
            await somebody.log_in(service.keys[Role.READER])
    assert len(await fetch(database, "SELECT FROM sessions")) == 3


@pytest.mark.parametrize(
    "back", ["//elsewhere", "http://elsewhere", "/tasks", "/dashboardx", "/dashboard\\..", "javascript:alert(1)", ""]
)
async def test_after_the_login_nobody_is_led_elsewhere(service: Service, back: str) -> None:
    async with browser(service) as somebody:
        login = {"key": service.keys[Role.READER], "back": back}
        answer = await somebody.send("/dashboard/login", of="/dashboard/login", **login)
        assert urlsplit(answer.headers["location"]) == urlsplit("/dashboard")


@pytest.mark.parametrize("host", ["[", "x:99999", "x:", "x:0x", "[::1]:8", "a b", "%ff", ""])
async def test_no_host_breaks_a_page(service: Service, host: str) -> None:
    async with browser(service, Role.READER) as somebody:
        for path in ("/dashboard", "/dashboard/login", "/dashboard/tasks?after=x", "/"):
            answer = await somebody.get(path, headers={"Host": host, "Accept": "text/html"})
            assert answer.status_code < 500, (path, answer.text[:300])


@pytest.mark.parametrize(
    ("headers", "is_taken"),
    [
        # Behind a proxy that names the service otherwise.
        ({"Origin": "https://outside:8443", "Sec-Fetch-Site": "same-origin"}, True),
        ({"Origin": "http://["}, False),
        ({"Origin": "https://convener.elsewhere"}, False),
        ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, False),
        ({"Sec-Fetch-Site": "same-site"}, False),
        ({}, True),
    ],
)
async def test_forms_come_from_our_own_pages(service: Service, headers: dict[str, str], is_taken: bool) -> None:
    async with browser(service, Role.OPERATOR) as operator:
        fields = {"csrf": await operator.word(), "agent": "ranking", "reason": "x"}
        answer = await operator.client.post("/dashboard/do/pause-queue", data=fields, headers=headers)
        assert answer.status_code == (303 if is_taken else 403)


@pytest.mark.parametrize("text", ["[" * 100_000, "NaN", "1e999", "9" * 5000, "\x00", "{", '{"a": "\\u0000"}'])
async def test_no_text_of_a_form_breaks_a_page(service: Service, text: str) -> None:
    task_id = await service.submitted()
    async with browser(service, Role.OPERATOR) as operator:
        for path, fields in (
            (f"/dashboard/tasks/{task_id}/submit", {"payload": text, "agent_type": "ranking", "priority": "high"}),
            ("/dashboard/config/apply", {"patch": text, "version": "1"}),
            ("/dashboard/config/apply", {"patch": "{}", "version": text[:2000]}),
            ("/dashboard/config", {"worker_pool.max_workers": text}),
            ("/dashboard/do/override-weights", {"agent": "ranking", "percent": text, "minutes": text}),
            ("/dashboard/do/start-workers", {"count": text, "reason": text}),
            ("/dashboard/decisions/1/try", {"decision_id": text, "min_workers": text}),
            ("/dashboard/tasks/order", {"order": "cancel", "goal_id": text[:2000]}),
        ):
            answer = await operator.send(path, **fields)
            assert answer.status_code < 500, (path, answer.text[:300])
