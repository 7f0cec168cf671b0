"""Traces of real tasks, through a relay, workers, handlers and a language model, to a collector; and without one."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.kernel.access import Role
from tests.support.ports import free_port
from tests.support.trace_collector import Collector, ReceivedSpan, collecting
from tests.system.conftest import Api, api_process
from tests.system.relaying import relay_to, submit, until_completed, workers
from tests.worker_agent.llm.loopback import Loopback, serving
from tests.worker_agent.llm.provider import Provider, says
from worker_agent.tracing.context import TraceContext, read_traceparent

pytestmark = pytest.mark.slow

_CLIENT = TraceContext("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7", True)
_QUESTION, _ANSWER, _SECRET = "why-does-it-move", "because-it-does", "hush-hush"
_TASKS = 8


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Those of all processes of a test."""
    for name, value in {
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer%20{_SECRET}",
        "CONVENER_LOG_JSON": "true",
        "CONVENER_LLM_MODELS": "gpt-4.1",
        "CONVENER_LLM_KEY": _SECRET,
    }.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


async def test_every_task_has_a_whole_trace(database_url: str, tmp_path: Path, variables: pytest.MonkeyPatch) -> None:
    with collecting() as collector, serving(Provider.of(then=says(_ANSWER)).respond) as model:
        variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        variables.setenv("CONVENER_LLM_URL", f"{model.url}/v1")
        async with api_process(database_url, tmp_path) as api, relay_to(api.url, tmp_path) as relay:
            with workers(relay.address, api.keys[Role.POOL], tmp_path, 2, "tests.system.traced"):
                tasks = await _submit_and_wait(api, relay.address, database_url)
                # Five for each task, and an attempt that failed has four.
                collector.wait_for(5 * len(tasks) + 4)
        _all_is_whole(collector, tasks)
        _nothing_of_the_content_is_in(collector.bodies, api)
        _the_model_has_seen_the_calls(collector, model)
    _logs_tell_of(tasks, tmp_path)


async def _submit_and_wait(api: Api, address: str, database_url: str) -> list[dict[str, Any]]:
    body = {"agent_type": "ranking", "payload": {"question": _QUESTION}}
    failing = {**body, "payload": {"question": _QUESTION, "failures": 1}, "retry": {"delays_seconds": [0]}}
    batch = [*[body] * _TASKS, failing]
    async with httpx.AsyncClient(trust_env=False, base_url=address, headers=api.bearer(Role.SUPERVISOR)) as client:
        answer = await client.post("/tasks/batch", json={"tasks": batch}, timeout=30)
        ids = [task["id"] for task in answer.json()["tasks"]]
        answer = await client.post("/tasks", json=body, headers={"traceparent": _CLIENT.text})
        ids.append(answer.json()["id"])
        await until_completed(database_url, len(ids))
        tasks = [(await client.get(f"/tasks/{task_id}")).json() for task_id in ids]
    assert {task["state"] for task in tasks} == {"completed"}
    return tasks


def _all_is_whole(collector: Collector, tasks: list[dict[str, Any]]) -> None:
    traces = collector.traces()
    assert len(traces) == len(tasks)
    for task in tasks:
        context = read_traceparent(task["trace_context"])
        assert context is not None
        spans = traces[context.trace_id]
        attempts = 1 + task["failures"]
        counts = {"submit": 1, "wait": attempts, "lease": attempts, "execute": attempts, "chat": attempts}
        assert Counter(span.operation for span in spans) == counts
        ids = {span.span_id for span in spans}
        (root,) = [span for span in spans if span.parent_id not in ids]
        assert (root.operation, root.span_id, root.service) == ("submit", context.span_id, "convener-api")
        assert root.parent_id == (_CLIENT.span_id if context.trace_id == _CLIENT.trace_id else "")
        executions = {span.span_id: span for span in spans if span.operation == "execute"}
        for span in spans:
            _is_in_its_place(span, root, executions, task)
        last = max(executions.values(), key=lambda span: span.ended_at)
        traceparent = f"00-{context.trace_id}-{last.span_id}-01"
        assert task["result"] == {
            "text": _ANSWER,
            "environment": {"TRACEPARENT": traceparent},
            "trace_context": traceparent,
        }
        assert [span.is_error for span in sorted(executions.values(), key=lambda span: span.began_at)] == [
            *[True] * (attempts - 1),
            False,
        ]
    assert _CLIENT.trace_id in traces, "the caller's trace goes on"


def _is_in_its_place(
    span: ReceivedSpan, root: ReceivedSpan, executions: dict[str, ReceivedSpan], task: dict[str, Any]
) -> None:
    match span.operation:
        case "chat":
            assert span.parent_id in executions
            assert span.attributes["gen_ai.response.model"] == "gpt-4.1"
        case "execute":
            assert span.parent_id == root.span_id
            assert span.links == [root.span_id]
            assert span.service == "convener-worker"
        case "wait" | "lease":
            assert span.parent_id == root.span_id
        case _:
            assert span is root
    if span.operation != "chat":
        assert span.attributes["messaging.message.id"] == task["id"]
    assert span.began_at <= span.ended_at


def _nothing_of_the_content_is_in(bodies: list[bytes], api: Api) -> None:
    hidden = [_QUESTION, _ANSWER, _SECRET, *api.keys.values()]
    assert not [text for text in hidden for body in bodies if text.encode() in body]


def _the_model_has_seen_the_calls(collector: Collector, model: Loopback) -> None:
    calls = {span.span_id for span in collector.spans if span.operation == "chat"}
    contexts = [read_traceparent(request.headers["traceparent"]) for request in model.requests]
    assert {context.span_id for context in contexts if context} == calls


def _logs_tell_of(tasks: list[dict[str, Any]], directory: Path) -> None:
    lines = [json.loads(line) for log in directory.glob("worker-*.log") for line in log.read_text().splitlines()]
    expected = {(task["id"], *task["result"]["trace_context"].split("-")[1:3]) for task in tasks}
    for message in ("task started", "task completed"):
        told = {(line["task"], line["trace_id"], line["span_id"]) for line in lines if line["message"] == message}
        assert expected <= told
        assert len(told) == len(expected) + (message == "task started"), "an attempt that failed was not completed"
    assert not any("trace_id" in line for line in lines if line["message"] == "registered")


async def test_without_a_collector_everything_goes_on_and_says_so_once(
    database_url: str, tmp_path: Path, variables: pytest.MonkeyPatch
) -> None:
    variables.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    variables.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "0.3")
    async with api_process(database_url, tmp_path) as api:
        with workers(api.url, api.keys[Role.POOL], tmp_path, 1):
            for _ in range(3):
                await submit(api, 10)
                await asyncio.sleep(0.5)
            await until_completed(database_url, 30)
            began_at = time.monotonic()
        assert time.monotonic() - began_at < 20, "the worker ends without waiting for the collector"
    for name in ("api", "worker-0"):
        log = (tmp_path / f"{name}.log").read_text()
        assert log.count("the collector of traces takes none") == 1, log
        assert log.count("opentelemetry") == 0, log
