"""`convener llm` against the real service."""

from uuid import uuid4

import httpx

from app.kernel.access import Role
from tests.support.command_line import CommandLine, Service


async def _called(live_service: Service, *, settle: bool) -> str:
    """The name of a model that somebody has called, or is calling."""
    model = f"model-{uuid4().hex[:6]}"
    request = {"request_id": str(uuid4()), "model": model, "agent_type": "ranking", "estimated_tokens": 10}
    headers = {"Authorization": f"Bearer {live_service.keys[Role.SUPERVISOR]}"}
    operator = {"Authorization": f"Bearer {live_service.keys[Role.OPERATOR]}", "If-Match": '"0"'}
    async with httpx.AsyncClient(base_url=live_service.url, headers=headers, trust_env=False) as client:
        assert (await client.put(f"/llm/models/{model}", json={}, headers=operator)).is_success
        permit = (await client.post("/llm/permits", json=request)).json()
        if settle:
            body = {"token": permit["token"], "outcome": "success", "prompt_tokens": 1200, "latency_ms": 250}
            assert (await client.post(f"/llm/permits/{permit['permit_id']}/settle", json=body)).is_success
    return model


async def test_a_model_that_nobody_has_listed_is_not_said_to_work(convener: CommandLine) -> None:
    model = f"vendor/model-{uuid4().hex[:6]}"
    shown = await convener("llm", "models", "get", model, COLUMNS="160")
    assert shown.code == 0
    assert "works" not in shown.out
    assert f"not listed, so nobody may call it: convener llm models add {model}" in shown.out
    await convener("llm", "models", "add", model)
    shown = await convener("llm", "models", "get", model, COLUMNS="160")
    assert "works" in shown.out
    assert " ago" not in shown.out


async def test_limits_are_set_and_shown(convener: CommandLine) -> None:
    model = f"vendor/model-{uuid4().hex[:6]}"
    done = await convener("llm", "models", "set", model, "burst=5", "fallback_models=small,smaller")
    assert (done.code, done.err) == (0, "")
    assert "small, smaller" in done.out
    await convener("llm", "models", "set", model, "requests_per_window=100", "burst=none")
    item = (await convener("llm", "models", "get", model, "-o", "json")).json
    fields = (item["version"], item["requests_per_window"], item["burst"], item["fallback_models"])
    assert fields == (2, 100, None, ["small", "smaller"])
    shown = await convener("llm", "models", "get", model)
    assert (shown.code, "works" in shown.out) == (0, True)
    listed = (await convener("llm", "models", "ls", "-o", "json")).json["items"]
    assert model in [item["model"] for item in listed]
    assert "100 / 60 s" in (await convener("llm", "models", "ls", COLUMNS="160")).out


async def test_a_wrong_limit_is_refused_in_plain_words(convener: CommandLine) -> None:
    for words in (["burst"], ["bursts=3"], ["burst=many"]):
        done = await convener("llm", "models", "set", "gpt", *words)
        assert (done.code, done.out) == (2, "")
    done = await convener("llm", "models", "set", "gpt", "burst=0")
    assert (done.code, "burst" in done.err) == (1, True)


async def test_usage_and_live_permits(convener: CommandLine, live_service: Service) -> None:
    called, calling = await _called(live_service, settle=True), await _called(live_service, settle=False)
    used = (await convener("llm", "usage", "-o", "json")).json["items"]
    assert [(item["calls"], item["prompt_tokens"]) for item in used if item["name"] == called] == [(1, 1200)]
    shown = await convener("llm", "usage", "--by", "model", "--since", "2h", COLUMNS="160")
    line = next(line for line in shown.out.splitlines() if line.startswith(called))
    assert line.split()[1:5] == ["1", "0", "1,200", "0"]
    assert (await convener("llm", "usage", "--by", "moon")).code == 2
    live = (await convener("llm", "permits", "ls", "-o", "json")).json["items"]
    assert calling in [item["model"] for item in live]
    assert called not in [item["model"] for item in live]
    assert calling in (await convener("llm", "permits", "ls", COLUMNS="160")).out


async def test_models_are_listed_reset_and_taken_from_the_list(convener: CommandLine) -> None:
    model = f"vendor/{uuid4().hex[:6]}"
    unlisted = await convener("llm", "reset", model)
    assert (unlisted.code, "convener llm models add MODEL" in " ".join(unlisted.err.split())) == (5, True)
    assert (await convener("llm", "models", "add", model)).code == 0
    names = [item["model"] for item in (await convener("llm", "models", "ls", "-o", "json")).json["items"]]
    assert model in names
    assert (await convener("llm", "reset", model, "-o", "json")).json["cooldown_seconds"] == 0
    assert "works" in (await convener("llm", "reset", model)).out
    assert (await convener("llm", "models", "rm", model)).code == 0
    names = [item["model"] for item in (await convener("llm", "models", "ls", "-o", "json")).json["items"]]
    assert model not in names
    assert (await convener("llm", "models", "rm", model)).code != 0


async def test_budgets_are_set_shown_and_removed(convener: CommandLine) -> None:
    done = await convener("llm", "budgets", "set", "agent", "proximity", "money_budget=20.5", "period=day")
    assert (done.code, done.err) == (0, "")
    assert "$0.0000 of $20.5000" in done.out
    items = (await convener("llm", "budgets", "ls", "-o", "json")).json["items"]
    assert [item["money_budget"] for item in items if item["name"] == "proximity"] == [20.5]
    assert "proximity" in (await convener("llm", "budgets", "ls", COLUMNS="160")).out
    assert (await convener("llm", "budgets", "rm", "agent", "proximity")).code == 0
    assert (await convener("llm", "budgets", "rm", "agent", "proximity")).code == 5
    for words in (["money_budget"], ["colour=red"], ["money_budget=much"]):
        assert (await convener("llm", "budgets", "set", "agent", "proximity", *words)).code == 2
