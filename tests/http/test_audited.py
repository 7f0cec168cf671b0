"""Every route that changes something leaves an entry in the audit log, together with its change or not at all.

Each is really asked. Those that leave none are listed, with where to read instead who did it.
"""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection

from app.admin.rules.config import conduct
from app.admin.store import audit
from app.db.database import Database
from app.health.rules.finding import AlertKey, AlertRule, Level, Severity, Symptom
from app.health.store import alerts
from app.kernel.access import Role
from app.kernel.errors import DatabaseUnavailable
from app.kernel.modes import Mode
from app.kernel.states import TaskState
from app.queue.store import tasks
from app.workers.service import pool
from tests.http.access_table import TABLE, Page
from tests.support.factories import report
from tests.support.service import Service
from tests.support.sql import fetch

_MANY = "thousands a second, which the chain of the log would put in one line; "
# Routes without an entry, and why.
EXCEPTIONS = {
    "POST /lease": _MANY + "the lease ledger has each",
    "POST /leases/exchange": _MANY + "each of its calls leaves what it leaves alone",
    "POST /leases/{task_id}/start": _MANY + "an event `task.executing` names the worker",
    "POST /leases/{task_id}/progress": _MANY + "the task has it",
    "POST /leases/{task_id}/complete": _MANY + "an event `task.completed` names the worker",
    "POST /leases/{task_id}/fail": _MANY + "the attempt names the worker",
    "POST /leases/{task_id}/logs": _MANY + "the task has it",
    "POST /leases/{task_id}/release": _MANY + "an event `task.released` names the worker",
    "POST /workers/{worker_id}/heartbeat": _MANY + "the worker has it",
    "POST /llm/permits": _MANY + "usage is kept by key and minute",
    "POST /llm/permits/{permit_id}/renew": _MANY + "usage is kept by key and minute",
    "POST /llm/permits/{permit_id}/settle": _MANY + "usage is kept by key and minute",
    "DELETE /llm/permits/{permit_id}": _MANY + "usage is kept by key and minute",
    "POST /metrics/samples": _MANY + "each series has the key that made it",
    "POST /metrics/performance": _MANY + "the judgement is stored with its task",
    "POST /tasks": _MANY + "an event `task.submitted` of each is left, in the namespace of the key",
    "POST /tasks/batch": _MANY + "an event `task.submitted` of each is left, in the namespace of the key",
    "POST /workers": "by daemons, hundreds at once after an outage; the worker has the key that registered it",
    "POST /workers/{worker_id}/goodbye": "by the worker itself; the end and its reason are in its row",
}
# Questions that take a body.
QUESTIONS = {
    "POST /checkpoints/{checkpoint_id}/verify",
    "POST /audit/verify",
    "POST /scaling/what-if",
    "POST /scaling/decisions/replay",
    "POST /scaling/decisions/{decision_id}/replay",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """A request that changes something for a reason, and the action of the entry that it leaves."""

    route: str
    action: str
    path: str = ""
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    async def carry_out(self, service: Service) -> Any:
        """Send it as the administrator."""
        method, _, path = self.route.partition(" ")
        body = {"reason": "because"} if self.body is None and method == "POST" else self.body
        return await service.ask(method, self.path or path, body, headers=self.headers)


async def _failed_task(service: Service, database: Database) -> str:
    task_id = await service.submitted()
    async with database.transaction() as connection:
        stored = await tasks.read(connection, task_id)  # type: ignore[arg-type]  # as text
        assert stored is not None
        error = json.dumps({"code": "x", "message": "x"})
        await tasks.finish(connection, stored["id"], TaskState.FAILED, failures=1, rescues=0, error=error)
    return task_id


async def _opened_alert(database: Database) -> int:
    key = AlertKey(rule=AlertRule.OLDEST_TASK, subject="")
    symptom = Symptom(code="oldest_task", key=key, level=Level.DEGRADED, message="m", advice="a", facts={})
    async with database.transaction() as connection:
        alert = await alerts.open_alert(connection, symptom)
    assert alert is not None
    assert alert.severity is Severity.WARNING
    return alert.id


async def _acts(service: Service, database: Database) -> AsyncIterator[Act]:
    everything = {"filter": {"all": True}, "reason": "because"}
    async for act in _acts_on_tasks(service, database, everything):
        yield act
    async for act in _acts_on_workers(service, database, everything):
        yield act
    for path, name in (("/queues/{agent_type}", "/queues/ranking"), ("/queues", "/queues")):
        yield Act(route=f"POST {path}/pause", path=f"{name}/pause", action="queues.pause")
        yield Act(route=f"POST {path}/resume", path=f"{name}/resume", action="queues.resume")
    async for act in _acts_on_goals_and_context():
        yield act
    async for act in _acts_on_policy(service, database):
        yield act


async def _acts_on_tasks(service: Service, database: Database, everything: Any) -> AsyncIterator[Act]:
    task_id = await service.submitted()
    path = f"/tasks/{task_id}"
    yield Act(
        route="PATCH /tasks/{task_id}", path=path, action="task.change", body={"priority": "high", "reason": "because"}
    )
    yield Act(route="POST /tasks/{task_id}/cancel", path=f"/tasks/{task_id}/cancel", action="task.cancel")
    await service.submitted()
    yield Act(route="POST /tasks/cancel", body=everything, action="tasks.cancel")
    letter = await _failed_task(service, database)
    path = f"/dead-letters/{letter}/requeue"
    yield Act(route="POST /dead-letters/{task_id}/requeue", path=path, action="dead_letter.requeue")
    await _failed_task(service, database)
    yield Act(route="POST /dead-letters/requeue", body=everything, action="dead_letters.requeue")
    await _failed_task(service, database)
    yield Act(route="POST /dead-letters/purge", body=everything, action="dead_letters.purge")


async def _acts_on_workers(service: Service, database: Database, everything: Any) -> AsyncIterator[Act]:
    async with database.transaction() as connection:
        await pool.tick(connection, Mode.PRODUCTION, report(1))
    yield Act(route="POST /workers/start", action="workers.start")
    for verb in ("drain", "restart", "stop"):
        worker = await service.worker()
        path = f"/workers/{worker.id}/{verb}"
        yield Act(route=f"POST /workers/{{worker_id}}/{verb}", path=path, action=f"workers.{verb}")
        yield Act(route=f"POST /workers/{verb}", body=everything, action=f"workers.{verb}")
    worker = await service.worker()
    yield Act(route="POST /workers/{worker_id}/lost", path=f"/workers/{worker.id}/lost", action="worker.lost")
    worker = await service.worker()
    path = f"/workers/{worker.id}/evict"
    yield Act(route="POST /workers/{worker_id}/evict", path=path, action="worker.evict")


async def _acts_on_goals_and_context() -> AsyncIterator[Act]:
    yield Act(route="POST /goals", body={"id": "g", "objective": "to know"}, action="goal.created")
    for verb, action in (("pause", "goal.paused"), ("resume", "goal.resumed")):
        yield Act(route=f"POST /goals/{{goal_id}}/{verb}", path=f"/goals/g/{verb}", action=action)
    constraints = {"constraints": {"max_iterations": 9}}
    path = "/goals/g/extend"
    yield Act(route="POST /goals/{goal_id}/extend", path=path, body=constraints, action="goal.extended")
    iteration, path = {"iteration": 1, "quality": 1}, "/goals/g/iterations"
    yield Act(route="POST /goals/{goal_id}/iterations", path=path, body=iteration, action="goal.iteration")
    yield Act(route="PUT /goals/{goal_id}/weight", path="/goals/g/weight", body={"weight": 2}, action="goal.weight")
    yield Act(route="POST /goals/{goal_id}/stop", path="/goals/g/stop", action="goal.stopped")
    new, first = {"If-None-Match": "*"}, {"If-Match": '"1"'}
    entry, path = "/context/{namespace}/{key}", "/context/n/k"
    yield Act(route=f"PUT {entry}", path=path, body=1, headers=new, action="context.write")
    yield Act(route=f"DELETE {entry}", path=path, headers=first, action="context.delete")
    yield Act(route="POST /checkpoints", action="checkpoint.take")


async def _acts_on_policy(service: Service, database: Database) -> AsyncIterator[Act]:
    config = await service.get("/config")
    sections = ("worker_pool", "resource_limits", "agent_weights", "test_time_compute")
    whole = {name: config[name] for name in sections}
    whole["worker_pool"]["max_workers"] = 99
    less: Any = {"worker_pool": {"max_workers": 98}}
    yield Act(
        route="PUT /config", path="/config?reason=because", body=whole, headers={"If-Match": '"1"'}, action="config.set"
    )
    yield Act(
        route="PATCH /config",
        path="/config?reason=because",
        body=less,
        headers={"If-Match": '"2"'},
        action="config.patch",
    )
    back = {"version": 1, "reason": "because"}
    yield Act(route="POST /config/rollback", body=back, headers={"If-Match": '"3"'}, action="config.rollback")
    mode = {"mode": "trusted_tester", "reason": "because"}
    yield Act(route="POST /config/mode", body=mode, headers={"If-Match": '"4"'}, action="config.mode")
    await service.ask("POST", "/config/mode", mode | {"mode": "production"}, headers={"If-Match": '"5"'})
    shares = {"weights": {"ranking_agent": 0.3}, "reason": "because"}
    yield Act(route="PUT /weights", body=shares, action="weights.command")
    held = {"weights": {"ranking_agent": 0.4}, "reason": "because", "expires_in_seconds": 60}
    yield Act(route="PUT /weights/override", body=held, action="weights.override")
    yield Act(route="DELETE /weights/override", path="/weights/override?reason=because", action="weights.release")
    step = {"step": 1, "reason": "because"}
    yield Act(route="PUT /degradation", body=step, action="degradation.hold")
    alert, path = {"note": "because"}, f"/alerts/{await _opened_alert(database)}/acknowledge"
    yield Act(route="POST /alerts/{alert_id}/acknowledge", path=path, body=alert, action="alert.acknowledge")
    model, path = "/llm/models/{model:path}", "/llm/models/m"
    limits, version = {"max_concurrency": 2}, {"If-Match": '"0"'}
    yield Act(route=f"PUT {model}", path=f"{path}?reason=because", body=limits, headers=version, action="llm_model.set")
    yield Act(route=f"POST {model}/reset", path=f"{path}/reset?reason=because", action="llm_model.reset")
    yield Act(
        route=f"DELETE {model}", path=f"{path}?reason=because", headers={"If-Match": '"1"'}, action="llm_model.remove"
    )
    budget, path = "/llm/budgets/{scope}/{name}", "/llm/budgets/agent/ranking?reason=because"
    yield Act(route=f"PUT {budget}", path=path, body={"token_budget": 9}, action="llm_budget.set")
    yield Act(route=f"DELETE {budget}", path=path, action="llm_budget.remove")
    async for act in _acts_on_keys(service):
        yield act


async def _acts_on_keys(service: Service) -> AsyncIterator[Act]:
    label = {"label": "somebody", "reason": "because"}
    yield Act(route="POST /keys", body=label | {"role": "admin"}, action="key.create")
    yield Act(route="POST /keys/enrolments", body=label, action="key.create")
    key = await service.post("/keys", label | {"role": "reader"})
    path = f"/keys/{key['id']}"
    yield Act(route="POST /keys/{key_id}/rotate", path=f"{path}/rotate", action="key.rotate")
    yield Act(route="DELETE /keys/{key_id}", path=f"{path}?reason=because", action="key.revoke")


async def _newest(service: Service) -> Any:
    return (await service.get("/audit", limit=1))["items"]


async def test_every_route_that_changes_something_leaves_an_entry(service: Service, database: Database) -> None:
    audited = set()
    async for act in _acts(service, database):
        (former,) = await _newest(service) or [None]
        answer = await act.carry_out(service)
        assert answer.is_success, f"{act.route}: {answer.text}"
        (entry,) = await _newest(service)
        assert entry != former, f"{act.route} leaves no entry"
        assert (entry["action"], entry["label"]) == (act.action, "test"), act.route
        assert entry["by"] == service.keys[Role.ADMIN].split("_")[1]
        audited.add(act.route)
    # Pages call these routes; `tests/dashboard/test_login.py` looks at what they do by themselves.
    changing = {name for name, row in TABLE.items() if not (name.startswith("GET ") or isinstance(row.subject, Page))}
    assert changing - QUESTIONS - EXCEPTIONS.keys() == audited
    assert (await service.post("/audit/verify", {}))["ok"]


_CHANGED = (
    *("tasks", "task_history", "events", "pauses", "goals", "goal_iterations", "context_entries", "checkpoints"),
    *(
        "workers",
        "keys",
        "config_versions",
        "weights",
        "degradation",
        "alerts",
        "llm_models",
        "llm_budgets",
        "audit",
        "hosts",
    ),
)
_VOLATILE = "array['last_used_at', 'last_seen_at']"


async def _state(database: Database) -> Any:
    digests = [
        f"SELECT '{table}' AS name, md5(string_agg(row, '' ORDER BY row)) FROM "
        f"(SELECT (to_jsonb(t) - {_VOLATILE})::text AS row FROM {table} t) rows"
        for table in _CHANGED
    ]
    return await fetch(database, " UNION ALL ".join(digests))


async def test_what_cannot_be_recorded_does_not_happen(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(connection: AsyncConnection, by: str) -> None:
        raise DatabaseUnavailable

    async for act in _acts(service, database):
        before = await _state(database)
        with monkeypatch.context() as patch:
            patch.setattr(audit, "lock_tail", fail)
            answer = await act.carry_out(service)
        assert answer.status_code == 503, f"{act.route}: {answer.text}"
        assert await _state(database) == before, act.route
        # The next ones build on it.
        assert (await act.carry_out(service)).is_success, act.route


async def test_no_route_goes_on_after_its_entry(service: Service, database: Database) -> None:
    """Every other act in the system waits for the end of the log from the entry to the commit."""
    later: list[str] = []
    # Each transaction has a connection of its own.
    holders: set[Any] = set()
    entries = 0

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        nonlocal entries
        if "convener audit" in statement:
            holders.add(connection)
            entries += 1
        elif connection in holders and not ("FROM audit" in statement or "INTO audit" in statement):
            later.append(statement)

    engine = service.app.state.services.database.engine.sync_engine
    listeners: dict[str, Callable[..., Any]] = {
        "before_cursor_execute": note,
        "commit": holders.discard,
        "rollback": holders.discard,
    }
    for name, listener in listeners.items():
        event.listen(engine, name, listener)
    try:
        async for act in _acts(service, database):
            entries = 0
            assert (await act.carry_out(service)).is_success, act.route
            assert entries, act.route
            assert later == [], act.route
    finally:
        for name, listener in listeners.items():
            event.remove(engine, name, listener)


# Changes to what a Supervisor works on, which carry no reason.
_UNEXPLAINED = {
    "POST /goals",
    "POST /goals/{goal_id}/extend",
    "POST /goals/{goal_id}/iterations",
    "PUT /goals/{goal_id}/weight",
    "PUT /context/{namespace}/{key}",
    "DELETE /context/{namespace}/{key}",
}


def _without_reason(act: Act) -> Act:
    body = {"note": ""} if act.action == "alert.acknowledge" else act.body
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name != "reason"}
    return replace(act, body={} if body is None and act.route.startswith("POST") else body, path=act.path.split("?")[0])


async def test_whoever_gives_no_reason_changes_nothing_where_the_mode_wants_one(
    service: Service, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    strict = replace(conduct(Mode.PRODUCTION), wants_reasons=True)
    async for act in _acts(service, database):
        before = await _state(database)
        with monkeypatch.context() as patch:
            for module in ("app.admin.service.audit.conduct", "app.admin.rules.config.conduct"):
                patch.setattr(module, lambda mode: strict)
            answer = await _without_reason(act).carry_out(service)
            if act.route in _UNEXPLAINED:
                assert answer.is_success, f"{act.route}: {answer.text}"
                continue
            assert answer.status_code == 422, f"{act.route}: {answer.text}"
            assert [error["path"] for error in answer.json()["errors"]] == ["reason"], act.route
            assert await _state(database) == before, act.route
            assert (await act.carry_out(service)).is_success, act.route
