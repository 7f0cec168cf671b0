"""Pages: what browsers may run in them, what others wrote as mere text, and what the holder of which key sees."""

import re

import pytest

from app.dashboard import attention
from app.dashboard.actions import ACTIONS
from app.dashboard.rendering import PAGES
from app.kernel.access import SCOPES, Role
from tests.dashboard.browsers import Browser, browser
from tests.dashboard.test_login import LOOKING
from tests.http.access_table import TABLE
from tests.support.service import Service

_HOSTILE = "<img src=x onerror=alert(1)>\"'</script>"
_STRICT = {"default-src 'none'", "script-src 'self'", "style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"}


async def _check(somebody: Browser, path: str) -> None:
    """Nothing that a strict policy forbids, and the policy itself."""
    answer = await somebody.get(path)
    policies = answer.headers.get_list("content-security-policy")
    assert len(policies) == 1, path
    assert set(policies[0].split("; ")) >= _STRICT, path
    assert "unsafe" not in policies[0]
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:|//cdn", answer.text), path
    for form in re.findall(r"<form.*?</form>", answer.text, re.DOTALL):
        assert 'method="get"' in form or 'name="csrf"' in form, f"{path}: {form[:200]}"


async def test_pages_keep_to_a_strict_policy(service: Service) -> None:
    await service.post("/queues/ranking/pause", {"reason": "x"})
    async with browser(service, Role.ADMIN) as admin, browser(service) as nobody:
        for path, *_ in PAGES:
            await _check(admin, f"/dashboard{path}")
        await _check(nobody, "/dashboard/login")
        await _check(nobody, "/dashboard/login?link=x")


async def test_styles_and_scripts_are_ours_and_kept(service: Service) -> None:
    async with browser(service, Role.READER) as somebody:
        page = await somebody.page("/dashboard")
        addresses = re.findall(r'(?:src|href)="([^"]+\.(?:js|css|svg))"', page)
        assert len(addresses) >= 5
        for address in addresses:
            assert address.startswith("/dashboard/static/")
            answer = await somebody.get(address)
            assert answer.status_code == 200
            assert "immutable" in answer.headers["cache-control"]
            assert answer.headers["content-type"].split(";")[0] in ("text/css", "text/javascript", "image/svg+xml")
        for wrong in ("/dashboard/static/0000000000000000/dashboard.css", "/dashboard/static/x/..%2f..%2f__init__.py"):
            assert (await somebody.get(wrong)).status_code == 404


async def test_words_of_others_are_text(service: Service) -> None:
    await service.post("/queues/ranking/pause", {"reason": _HOSTILE})
    await service.submitted(agent_type="ranking")
    async with browser(service, Role.ADMIN) as admin:
        for path, *_ in PAGES:
            assert "<img" not in await admin.page(f"/dashboard{path}"), path
        page = await admin.page("/dashboard")
        assert "&lt;img src=x" in page
        answer = await admin.send("/dashboard/do/pause-queue", agent="../../keys", reason=_HOSTILE)
        assert answer.status_code == 404
        assert "<img" not in answer.text


@pytest.mark.parametrize("role", LOOKING)
async def test_each_role_finds_the_pages_that_it_may_see(service: Service, role: Role) -> None:
    async with browser(service, role) as somebody:
        links = re.findall(
            r'<a href="([^"]+)"', (await somebody.page("/dashboard")).split("<nav")[1].split("</nav>")[0]
        )
        for path, _, scopes in PAGES:
            status = (await somebody.get(f"/dashboard{path}")).status_code
            assert status == (200 if set(scopes) <= SCOPES[role] else 403), path
            assert (f"/dashboard{path}" in links) == (status == 200), path


@pytest.mark.parametrize("name", ACTIONS)
def test_a_button_is_shown_to_those_whom_the_api_lets_do_it(name: str) -> None:
    action = ACTIONS[name]
    shape = re.sub(r"{\w+}", "{}", f"{action.method} {action.path}")
    rows = {re.sub(r"{[\w:]+}", "{}", route): row for route, row in TABLE.items()}
    assert set(rows[shape].scopes) == set(action.scopes)


@pytest.mark.parametrize("role", LOOKING)
async def test_who_may_not_act_sees_no_button_and_is_refused(service: Service, role: Role) -> None:
    await service.post("/queues/ranking/pause", {"reason": "x"})
    async with browser(service, role) as somebody:
        may = set(ACTIONS["resume-queue"].scopes) <= SCOPES[role]
        assert ("/dashboard/do/resume-queue" in await somebody.page("/dashboard")) == may
        sentence = await somebody.do("resume-queue", agent="ranking", reason="")
        assert (sentence == "ranking is leased again.") == may
        assert may or "does not include queue:manage" in sentence


def test_every_button_of_an_advice_is_an_action() -> None:
    assert {button.action for buttons in attention._BUTTONS.values() for button in buttons} <= ACTIONS.keys()


async def test_what_somebody_does_is_recorded_as_through_the_api(service: Service) -> None:
    async with browser(service, Role.OPERATOR) as operator:
        await operator.do("pause-queue", agent="ranking", reason="an experiment")
    entry = (await service.get("/audit", action="queues.pause"))["items"][0]
    assert (entry["by"], entry["reason"]) == (service.keys[Role.OPERATOR].split("_")[1], "an experiment")


async def test_the_modes_that_want_reasons_want_them_here_too(service: Service) -> None:
    config = await service.ask("GET", "/config")
    trusted = {"mode": "trusted_tester", "reason": "x"}
    await service.ask("POST", "/config/mode", trusted, headers={"If-Match": config.headers["etag"]})
    async with browser(service, Role.OPERATOR) as operator:
        assert "wants a reason" in await operator.do("pause-queue", agent="ranking", reason=" ")
        assert "is paused" in await operator.do("pause-queue", agent="ranking", reason="x")


async def test_what_goes_wrong_unexpectedly_is_told_on_a_page_and_logged(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("bad luck")

    async with browser(service, Role.OPERATOR) as somebody, browser(service) as nobody:
        monkeypatch.setattr("app.dashboard.goals.page", fail)
        monkeypatch.setattr("app.dashboard.routes.sessions.open_session", fail)
        for answer in (await somebody.get("/dashboard/goals"), await nobody.log_in(service.keys[Role.OPERATOR])):
            assert answer.status_code == 500
            assert answer.headers["content-type"].startswith("text/html")
            assert "Something went wrong here" in answer.text
            assert "bad luck" not in answer.text
            assert service.keys[Role.OPERATOR] not in answer.text
    assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["bad luck"] * 2


async def test_keys_of_a_namespace_see_only_its_own(service: Service) -> None:
    await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "theirs"})
    ours = await service.post("/keys", {"role": "supervisor", "label": "x", "namespace": "ours"})
    async with browser(service, ours["key"]) as somebody:
        assert (await somebody.get("/dashboard")).headers["location"] == "/dashboard/tasks"
        assert (await somebody.get("/dashboard/stream")).status_code == 403
        assert "belongs to the namespace ours" in await somebody.do("pause-queue", agent="ranking", reason="x")


async def test_what_came_of_an_action_is_told_on_the_page_that_it_leads_to_alone(service: Service) -> None:
    """A cookie is that of all tabs, and another may load its page, or act, in between."""
    sentence = "ranking is paused"
    async with browser(service, Role.OPERATOR) as somebody:
        acted = await somebody.send("/dashboard/do/pause-queue", agent="ranking", back="/dashboard/workers?show=all")
        assert sentence not in await somebody.page("/dashboard/tasks")
        await somebody.send("/dashboard/do/pause-queue", agent="evolution")
        assert sentence in await somebody.page(acted.headers["location"])
        assert sentence not in await somebody.page(acted.headers["location"])
        assert "evolution is paused" in await somebody.page("/dashboard")
