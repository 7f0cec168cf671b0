"""Every list has pages of bounded bytes, however large its entries are, and its cursors lead to each of them once."""

import json
from typing import Any

import pytest

from app.db import pages
from app.db.database import Database
from app.kernel.agents import AgentType
from app.memory.store import context
from app.queue.store import events, listing, outputs
from tests.support.description import DESCRIPTION
from tests.support.pools import decided
from tests.support.service import Service
from tests.support.sql import execute

_BYTES = 12_000
_ENTRIES = 30
# A character that JSON writes with six.
_TEXT = "repeat(E'\\x01', 200)"
_JSON = "jsonb_build_object('text', repeat('x', 1500), 'n', n)"
_TASK = "agent_type, goal_id, priority, payload, labels, timeout_seconds, max_attempts, retry_delays, request_hash"
_LABELS = f"jsonb_build_object('a', {_TEXT}, 'n', n::text)"
_TASK_VALUES = f"'ranking', NULL, 2, '{{}}', {_LABELS}, 600, 3, '{{}}', ''"
_DECISION = """json_build_object('decision', 'continue', 'reason', repeat('x', 1500), 'exploration_share', 0.5,
    'exploration_reason', '', 'next_compute_seconds', NULL, 'improvement', 0, 'improvement_per_compute_second', NULL,
    'iterations_without_improvement', 0, 'notices', '{}'::text[], 'compute_seconds', 0, 'elapsed_seconds', 0,
    'money_spent', 0, 'draws', '{}'::text[])"""
_REPORT = """'{"quality": {"best": 1, "top": null, "matches": null}, "compute_seconds": 1}'"""
_WEIGHTS = "'" + json.dumps(dict.fromkeys(AgentType, 1.0)) + "'"
_GOALS = f"""INSERT INTO goals (id, state, objective, created_by, request_hash, started_at)
    SELECT 'goal-' || n, 'running', {_TEXT}, 'k', '', now() FROM generate_series(1, {_ENTRIES}) n"""


def _context(key: str, version: str) -> str:
    return f"""INSERT INTO context_entries (namespace, key, version, value, written_by)
    SELECT 'space', {key}, {version}, {_JSON}, 'k' FROM generate_series(1, {_ENTRIES}) n"""


def _finished(state: str, error: str) -> str:
    return f"""INSERT INTO task_history (id, seq, state, {_TASK}, created_at, finished_at, result, error)
    SELECT (lpad(n::text, 8, '0') || '-0000-4000-8000-000000000000')::uuid, n, '{state}', {_TASK_VALUES}, now(),
           date_trunc('hour', now()), {_JSON}, {error} FROM generate_series(1, {_ENTRIES}) n"""


_COMPLETED = """INSERT INTO events (at, kind, task_id, agent_type)
    SELECT finished_at, 'task.completed', id, agent_type FROM task_history"""

# Statements that make `entries` of them, by the address of the list.
LISTS: dict[str, list[str]] = {
    "/tasks": [
        f"""INSERT INTO tasks (id, state, {_TASK}, depends_on, created_at)
        SELECT gen_random_uuid(), 'pending', {_TASK_VALUES}, array_fill(gen_random_uuid(), ARRAY[40]), now()
        FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/goals": [_GOALS],
    "/goals/goal-1/iterations": [
        _GOALS,
        f"""INSERT INTO goal_iterations (goal_id, number, request_hash, report, inputs, decision)
        SELECT 'goal-1', n, '', {_REPORT}, json_build_object('text', repeat('x', 100000)), {_DECISION}
        FROM generate_series(1, {_ENTRIES}) n""",
    ],
    "/dead-letters": [_finished("failed", """'{"code": "a", "message": "b"}'""")],
    "/workers": [
        f"""INSERT INTO workers (id, name, incarnation, state, capabilities, labels)
        SELECT gen_random_uuid(), 'w' || n, 1, 'ready', '{{ranking}}', {_LABELS}
        FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/replacements": [
        f"""INSERT INTO replacements (lost_worker_id, slot, worker_name, cause)
        SELECT gen_random_uuid(), n, {_TEXT}, 'exited' FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/events": [
        f"""INSERT INTO events (kind, task_id, agent_type, detail)
        SELECT 'task.failed', gen_random_uuid(), 'ranking', {_JSON} FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/context/space?values=true": [_context("'k' || lpad(n::text, 2, '0')", "1")],
    "/context/space/k/history": [_context("'k'", "n")],
    "/outputs": [_finished("completed", "NULL"), _COMPLETED],
    "/checkpoints": [
        f"""INSERT INTO checkpoints (taken_at, reason, revision, cursor_transaction, cursor_seq, counts, is_cut,
            size_bytes, sha256, content)
        SELECT now(), {_TEXT}, 'r', 1, 1, '{{}}', false, 1, '', repeat('x', 100000)::bytea
        FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/config/history": [
        f"""INSERT INTO config_versions (version, mode, document, changed_by, reason, action)
        SELECT n + 1, mode, document, 'k', {_TEXT}, action FROM config_versions, generate_series(1, {_ENTRIES} - 1) n
        WHERE version = 1"""
    ],
    "/weights/history": [
        f"""INSERT INTO weights (version, cause, weights, target, adjustments, configured, base, heading, override,
            results, reason, changed_by)
        SELECT n, 'command', {_WEIGHTS}, {_WEIGHTS}, '{{}}', {_WEIGHTS}, {_WEIGHTS}, 'ordered',
               '{{}}', 0, {_TEXT}, 'k' FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/scaling/decisions": [
        f"""INSERT INTO decisions (decided_at, decision_type, current_workers, target_workers, inputs, output,
            roster_id)
        SELECT decided_at, decision_type, current_workers, target_workers, inputs, output, roster_id
        FROM decisions, generate_series(1, {_ENTRIES} - 1)"""
    ],
    "/llm/permits": [
        f"""INSERT INTO llm_permits (id, key_id, request_id, token, model, agent_type, priority, estimated_tokens,
            is_probe, granted_at, expires_at)
        SELECT gen_random_uuid(), 'k', gen_random_uuid(), 't', {_TEXT}, 'ranking', 2, 1, false, now(),
               now() + interval '1 hour' FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/llm/budgets": [
        f"""INSERT INTO llm_budgets (scope, name, token_budget, period)
        SELECT 'key', {_TEXT} || n, 1, 'day' FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/llm/models": [
        f"""INSERT INTO llm_models (model, concurrency, fallback_models)
        SELECT 'model-' || n, 4, array_fill(repeat('x', 200), ARRAY[7])
        FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/audit": [
        f"""INSERT INTO audit (seq, at, by, action, before, after, reason, digest)
        SELECT coalesce((SELECT max(seq) FROM audit), 0) + n, now(), 'k', 'a', 'null', to_json({_JSON}), '', ''
        FROM generate_series(1, {_ENTRIES} - (SELECT count(*) FROM audit)) n"""
    ],
    "/alerts?state=resolved": [
        f"""INSERT INTO alerts (rule, subject, state, severity, summary, advice, facts, opened_at, updated_at,
            resolved_at, resolution)
        SELECT 'oldest_task', '', 'resolved', 'warning', {_TEXT}, '', '{{}}', now(), now(), now(), 'over'
        FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/degradation/history": [
        f"""INSERT INTO degradation_moves (at, move, before, after, reason)
        SELECT now(), 'up', 0, 1, {_TEXT} FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/keys": [
        f"""INSERT INTO keys (id, role, label, secret_hash)
        SELECT lpad(n::text, 12, '0'), 'reader', {_TEXT}, '' FROM generate_series(1, {_ENTRIES}) n"""
    ],
    "/metrics/series?name=m": [
        f"""INSERT INTO metric_series (name, kind, agent, worker, goal)
        SELECT 'm', 'gauge', '', '', {_TEXT} || n FROM generate_series(1, {_ENTRIES}) n""",
        """INSERT INTO metric_minutes (series_id, minute, samples, total, low, high, last, last_at)
        SELECT id, date_trunc('minute', now()), 1, 1, 1, 1, 1, now() FROM metric_series""",
    ],
}
# Sums of a period, and the tasks that come next, of so many at most: they have no cursor.
_SUMS = {"/llm/usage", "/queues/next"}


def test_every_list_is_among_them() -> None:
    described = DESCRIPTION["paths"].items()
    lists = {path for path, methods in described if "limit" in _parameters(methods.get("get", {}))} - _SUMS
    named = {path.partition("?")[0].replace("goal-1", "{goal_id}") for path in LISTS}
    named = {path.replace("/space", "/{namespace}").replace("/k/history", "/{key}/history") for path in named}
    assert named == lists


def _parameters(operation: dict[str, Any]) -> set[str]:
    return {parameter["name"] for parameter in operation.get("parameters", [])}


@pytest.fixture
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (pages, context, events, listing, outputs):
        monkeypatch.setattr(module, "PAGE_BYTES", _BYTES)


@pytest.mark.parametrize("path", LISTS)
@pytest.mark.usefixtures("small_pages")
async def test_pages_are_bounded_and_lead_to_every_entry(service: Service, database: Database, path: str) -> None:
    await service.get("/config")
    if path == "/scaling/decisions":
        await service.worker()
        await decided(database)
    for statement in LISTS[path]:
        await execute(database, statement)
    items, sizes = await _read_all(service, path)
    assert len(items) >= _ENTRIES
    assert len({repr(item) for item in items}) == len(items)
    assert len(sizes) > 2
    assert max(sizes) < _BYTES * 1.2


async def _read_all(service: Service, path: str) -> tuple[list[Any], list[int]]:
    """All items, and the bytes of every page."""
    items: list[Any] = []
    sizes, after = [], None
    while True:
        address, _, query = path.partition("?")
        options = dict([query.split("=")]) if query else {}
        answer = await service.ask(
            "GET", address, params={"limit": 500, **options, **({"after": after} if after else {})}
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        items += page["items"]
        sizes.append(len(answer.content))
        if not page.get("more", page["next"]) or (path == "/events" and not page["items"]):
            return items, sizes
        after = page["next"]
