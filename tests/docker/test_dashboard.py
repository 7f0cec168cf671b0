"""The dashboard for Grafana: well-formed, and every query gives data from a service that works."""

import asyncio
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from ruamel.yaml import YAML

from app.db.database import Database
from app.kernel.access import Role
from tests.docker.composition import DIRECTORY, services
from tests.docker.prometheus import prometheus
from tests.docker.test_alert_rules import RULES, parse_command, served_metrics
from tests.docker.test_prometheus import CONFIGURATION
from tests.support.processes import process
from tests.support.service import Service
from tests.support.sql import execute
from tests.system.conftest import Api, api_process

GRAFANA = DIRECTORY / "grafana"
DASHBOARD = json.loads((GRAFANA / "dashboards" / "convener.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
# Metrics of the library that counts requests, and of the process.
_OTHER = ("http_requests_", "http_request_duration_", "process_")
_SECONDS = 90


def _queries() -> Iterator[tuple[str, str]]:
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])


def _yaml(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def test_every_metric_is_one_that_the_api_serves() -> None:
    served = served_metrics()
    for title, query in _queries():
        metrics = re.findall(r"(?:convener|http|process)_\w+", query)
        assert metrics, title
        assert not [name for name in metrics if name not in served and not name.startswith(_OTHER)], title


# Alerts that are seen by another metric than theirs.
_SEEN_OTHERWISE = {
    "ConvenerDown": "nothing is shown then",
    "ConvenerDatabaseDown": "nothing is shown then",
    "ConvenerOldTransaction": "the age of the snapshot is shown in seconds",
    "ConvenerReplacementFailing": "the places that fail are shown",
    "ConvenerBreakerOpen": "the state of the model is shown",
}


def test_every_alert_can_be_seen() -> None:
    shown = {name for _, query in _queries() for name in re.findall(r"convener_\w+", query)}
    for group in _yaml(RULES)["groups"]:
        for rule in group["rules"]:
            names = set(re.findall(r"convener_\w+", rule["expr"]))
            assert bool(names & shown) == (rule["alert"] not in _SEEN_OTHERWISE), rule["alert"]


def test_panels_say_what_they_show_and_do_not_overlap() -> None:
    places: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not places & cells, panel["title"]
        assert place["x"] + place["w"] <= 24
        places |= cells
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in PANELS:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for command in re.findall("`convener ([^`]+)`", panel["description"]):
            parse_command([*command.split(), *_ARGUMENTS.get(command, [])])


_ARGUMENTS = {"alerts ack": ["1"], "llm models get": ["m"]}


def test_grafana_gets_it_with_the_prometheus_of_the_composition() -> None:
    [source] = _yaml(GRAFANA / "provisioning" / "datasources" / "prometheus.yaml")["datasources"]
    [variable] = DASHBOARD["templating"]["list"]
    assert (variable["type"], variable["query"], variable["current"]["value"]) == (
        *("datasource", "prometheus"),
        source["uid"],
    )
    used = {target["datasource"]["uid"] for panel in PANELS for target in [panel, *panel["targets"]]}
    assert used == {f"${{{variable['name']}}}"}
    assert source["url"] == "http://prometheus:9090"
    assert source["jsonData"]["timeInterval"] == _yaml(CONFIGURATION)["global"]["scrape_interval"]
    [provider] = _yaml(GRAFANA / "provisioning" / "dashboards" / "convener.yaml")["providers"]
    grafana = services()["grafana"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in grafana["volumes"]
    assert set(grafana["networks"]) & set(services()["prometheus"]["networks"])


@pytest.mark.slow
async def test_every_query_gives_data_and_every_rule_can_be_judged(own_database: Database, tmp_path: Path) -> None:
    environment = {"CONVENER_DATABASE_URL": own_database.url, "CONVENER_POOL_SIZE": "0"}
    async with api_process(own_database.url, tmp_path) as api:
        with (
            process("app.background", environment, tmp_path / "loops.log"),
            prometheus(_configuration(api, tmp_path), tmp_path) as client,
        ):
            async with client, httpx.AsyncClient(base_url=api.url, trust_env=False, timeout=60) as caller:
                service = Service(app=FastAPI(), client=caller, keys=api.keys)
                await _work(service, own_database)
                assert await _queries_without_data(client, service) == set()
                groups = (await client.get("/api/v1/rules")).json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len([rule for group in _yaml(RULES)["groups"] for rule in group["rules"]])
    assert {rule["health"] for rule in rules} == {"ok"}, rules


def _configuration(api: Api, directory: Path) -> dict[str, Any]:
    """That of the composition, with another address and key, in a hurry."""
    key = directory / "monitor.key"
    key.write_text(api.keys[Role.MONITOR])
    configuration: dict[str, Any] = _yaml(CONFIGURATION)
    [job] = configuration["scrape_configs"]
    job["authorization"] = {"credentials_file": str(key)}
    job["static_configs"] = [{"targets": [f"127.0.0.1:{api.port}"]}]
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["rule_files"] = [str(RULES)]
    return configuration


async def _queries_without_data(client: httpx.AsyncClient, service: Service) -> set[str]:
    """Those that have given none at last; ends as soon as all have given some."""
    missing = {query for _, query in _queries()}
    for _ in range(_SECONDS):
        await asyncio.sleep(1)
        await service.get("/tasks")  # rates are of what is asked for meanwhile
        for query in sorted(missing):
            if await _has_data(client, query.replace("$__rate_interval", "10s")):
                missing.discard(query)
        if not missing:
            break
    return missing


async def _has_data(client: httpx.AsyncClient, query: str) -> bool:
    try:
        answer = (await client.get("/api/v1/query", params={"query": query})).json()
    except httpx.TransportError:  # it is starting
        return False
    if answer["status"] != "success":
        assert answer["errorType"] == "unavailable", answer
        return False
    return any(not math.isnan(float(series["value"][1])) for series in answer["data"]["result"])


async def _work(service: Service, database: Database) -> None:
    """Something of everything that is shown."""
    worker = await service.worker(labels={})
    await worker.beat(cpu_percent=50, memory_mb=300)
    await service.post("/queues/proximity/pause", {"reason": "to be seen"})
    task_id = await service.submitted(agent_type="generation")
    assert (await worker.on_lease(await worker.lease(), "complete", result={}, quality=0.8)).is_success
    # As many results as an agent is judged by.
    ratings = [{"task_id": task_id, "quality": 0.7}, *11 * [{"agent_type": "generation", "quality": 0.6}]]
    await service.post("/metrics/performance", {"request_id": str(uuid4()), "items": ratings})
    await service.submitted(agent_type="generation")
    error = {"code": "timeout", "message": "late", "retryable": False}
    assert (await worker.on_lease(await worker.lease(), "fail", error=error)).is_success
    for priority in ("low", "medium", "high", "critical"):
        await service.submitted(agent_type="ranking", priority=priority)
    await _call_models(service)
    await service.ask("GET", "/tasks", key=None)
    for name, kind in (("papers", "counter"), ("queue", "gauge")):
        sample = {"name": name, "kind": kind, "value": 3, "agent": "generation"}
        await service.post("/metrics/samples", {"batch_id": str(uuid4()), "samples": [sample]})
    await execute(
        database,
        """INSERT INTO alerts (rule, subject, state, severity, summary, advice, facts, opened_at, updated_at)
        VALUES ('oldest_task', '', 'open', 'warning', 'late', '', '{}', now(), now())""",
    )


async def _call_models(service: Service) -> None:
    """A call that succeeded, one that is under way, and a model whose key has expired by the word of two callers."""
    for model in ("good", "broken"):
        answer = await service.ask("PUT", f"/llm/models/{model}", {}, headers={"If-Match": '"0"'})
        assert answer.is_success
    in_a_day = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    reports = [
        ("good", {"outcome": "success", "latency_ms": 900, "key_expires_at": in_a_day}),
        ("good", {"outcome": "success", "latency_ms": 900, "key_expires_at": in_a_day}),
        ("good", None),
        ("broken", {"outcome": "client_error", "status": 401}),
        ("broken", {"outcome": "client_error", "status": 401}),
    ]
    for number, (model, report) in enumerate(reports):
        key = (Role.ADMIN, Role.OPERATOR)[number % 2]
        wish = {"request_id": str(uuid4()), "model": model, "agent_type": "ranking", "estimated_tokens": 9}
        permit = await service.post("/llm/permits", wish, key=key)
        if report is not None:
            settled = {"token": permit["token"], **report}
            await service.post(f"/llm/permits/{permit['permit_id']}/settle", settled, key=key)
