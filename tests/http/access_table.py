"""Each route with the scopes that it needs and with what it is about, for the tests of who may do what to whose.

What each route is for is written down once more here: one that asks for less than it should, or that concerns a
namespace and does not say so, is found by comparison.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from app.kernel.access import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """About one thing of a namespace; `there` and `absent` are the answers where it exists and where not.

    A body that names the thing is a function of its names. `to_worker` is the answer to a worker that holds no lease.
    """

    thing: str
    body: Any = None
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    there: int = 200
    absent: int = 404
    to_worker: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Within:
    """About all that a namespace has, or about what is made in it."""

    body: Any = None
    query: str = ""
    answer: int = 200
    to_worker: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Of the whole service: keys of one namespace are refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Public:
    """Open to everybody, and without anything that somebody owns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """For browsers: open without a session it leads to the login; `tests/dashboard` tries what a session sees there."""

    answer: int = 303


@dataclass(frozen=True, slots=True)
class Row:
    """What a route needs, and whose it is."""

    needs: Scope | tuple[Scope, ...]
    subject: Named | Within | Shared | Public | Page

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """The scopes that a key must include."""
        return self.needs if isinstance(self.needs, tuple) else (self.needs,)


def _ask_for_permit(_: Mapping[str, str]) -> dict[str, Any]:
    return {"request_id": str(uuid4()), "model": "m", "agent_type": "ranking", "estimated_tokens": 1}


PUBLIC, SHARED = Public(), Shared()
_CONTENT = (Scope.READ, Scope.CONTENT)
_SUBMIT_AND_SEE = (Scope.SUBMIT, Scope.CONTENT)
_ALL = {"filter": {"all": True}}
TABLE: dict[str, Row] = {
    "POST /tasks": Row(Scope.SUBMIT, Within(body={"agent_type": "generation"}, answer=201)),
    "POST /tasks/batch": Row(Scope.SUBMIT, Within(body={"tasks": [{"agent_type": "generation"}]}, answer=201)),
    "GET /tasks": Row(_CONTENT, Within()),
    "GET /tasks/ids/{prefix}": Row(_CONTENT, Within()),
    "GET /tasks/{task_id}": Row(_CONTENT, Named(thing="task")),
    "GET /tasks/{task_id}/why": Row(_CONTENT, Named(thing="task")),
    "PATCH /tasks/{task_id}": Row(_SUBMIT_AND_SEE, Named(thing="task", body={"priority": "high"})),
    "GET /tasks/{task_id}/logs": Row(_CONTENT, Named(thing="task")),
    "POST /tasks/{task_id}/cancel": Row(_SUBMIT_AND_SEE, Named(thing="task", body={})),
    "POST /tasks/cancel": Row(Scope.SUBMIT, Within(body=_ALL)),
    "GET /dead-letters": Row(_CONTENT, Within()),
    "GET /dead-letters/{task_id}": Row(_CONTENT, Named(thing="letter")),
    "POST /dead-letters/{task_id}/requeue": Row(_SUBMIT_AND_SEE, Named(thing="letter", body={})),
    "POST /dead-letters/requeue": Row(Scope.SUBMIT, Within(body=_ALL)),
    "POST /dead-letters/purge": Row(Scope.MANAGE, Within(body=_ALL)),
    "POST /lease": Row(Scope.LEASE, SHARED),
    "POST /leases/exchange": Row(Scope.LEASE, SHARED),
    "POST /leases/{task_id}/start": Row(Scope.LEASE, SHARED),
    "POST /leases/{task_id}/progress": Row(Scope.LEASE, SHARED),
    "POST /leases/{task_id}/complete": Row(Scope.LEASE, SHARED),
    "POST /leases/{task_id}/fail": Row(Scope.LEASE, SHARED),
    "POST /leases/{task_id}/release": Row(Scope.LEASE, SHARED),
    "POST /leases/{task_id}/logs": Row(Scope.LEASE, SHARED),
    "POST /workers": Row(Scope.REGISTER, SHARED),
    "POST /workers/{worker_id}/heartbeat": Row(Scope.LEASE, SHARED),
    "POST /workers/{worker_id}/goodbye": Row(Scope.LEASE, SHARED),
    "POST /workers/{worker_id}/drain": Row(Scope.MANAGE, SHARED),
    "POST /workers/{worker_id}/stop": Row(Scope.OPERATE, SHARED),
    "POST /workers/{worker_id}/restart": Row(Scope.OPERATE, SHARED),
    "POST /workers/{worker_id}/evict": Row(Scope.OPERATE, SHARED),
    "POST /workers/{worker_id}/lost": Row(Scope.MANAGE, SHARED),
    "POST /workers/start": Row(Scope.MANAGE, SHARED),
    "POST /workers/drain": Row(Scope.MANAGE, SHARED),
    "POST /workers/stop": Row(Scope.OPERATE, SHARED),
    "POST /workers/restart": Row(Scope.OPERATE, SHARED),
    "GET /workers": Row(Scope.READ, SHARED),
    "GET /workers/ids/{prefix}": Row(Scope.READ, SHARED),
    "GET /workers/{worker_id}": Row(Scope.READ, SHARED),
    "GET /fleet": Row(Scope.MONITOR, SHARED),
    "GET /replacements": Row(Scope.READ, SHARED),
    "GET /replacements/times": Row(Scope.READ, SHARED),
    "GET /events": Row(_CONTENT, Within(query="limit=500")),
    # A stream that is opened does not end; tests/queue/api/test_namespaces.py reads one.
    "GET /events/stream": Row(_CONTENT, Within(query="after=nonsense", answer=422)),
    "GET /context/{namespace}": Row(_CONTENT, Named(thing="entry", absent=200)),
    "GET /context/{namespace}/{key}": Row(_CONTENT, Named(thing="entry")),
    "GET /context/{namespace}/{key}/history": Row(_CONTENT, Named(thing="entry")),
    "PUT /context/{namespace}/{key}": Row(
        Scope.SUBMIT, Named(thing="entry", body=7, headers={"If-Match": '"1"'}, absent=412)
    ),
    "DELETE /context/{namespace}/{key}": Row(Scope.SUBMIT, Named(thing="entry", headers={"If-Match": '"1"'})),
    "GET /outputs": Row(_CONTENT, Within(query="limit=500")),
    "GET /checkpoints": Row(Scope.READ, SHARED),
    "POST /checkpoints": Row(Scope.MANAGE, SHARED),
    "GET /checkpoints/{checkpoint_id}": Row(Scope.READ, SHARED),
    "GET /checkpoints/{checkpoint_id}/content": Row(_CONTENT, SHARED),
    "POST /checkpoints/{checkpoint_id}/verify": Row(Scope.READ, SHARED),
    "GET /config": Row(Scope.READ, SHARED),
    "PUT /config": Row(Scope.CONFIGURE, SHARED),
    "PATCH /config": Row(Scope.CONFIGURE, SHARED),
    "GET /config/history": Row(Scope.READ, SHARED),
    "GET /config/versions/{version}": Row(Scope.READ, SHARED),
    "POST /config/rollback": Row(Scope.CONFIGURE, SHARED),
    "POST /config/mode": Row(Scope.CONFIGURE, SHARED),
    "GET /weights": Row(Scope.READ, SHARED),
    "PUT /weights": Row(Scope.WEIGH, SHARED),
    "PUT /weights/override": Row(Scope.WEIGH, SHARED),
    "DELETE /weights/override": Row(Scope.WEIGH, SHARED),
    "GET /weights/history": Row(Scope.READ, SHARED),
    "GET /agents": Row(Scope.READ, SHARED),
    "GET /agents/{agent_type}": Row(Scope.READ, SHARED),
    "POST /metrics/performance": Row(
        Scope.SUBMIT,
        Named(
            thing="result",
            body=lambda names: {"request_id": str(uuid4()), "items": [{"task_id": names["task_id"], "quality": 1}]},
            there=202,
        ),
    ),
    "GET /scaling/decisions": Row(Scope.MONITOR, SHARED),
    "GET /scaling/decisions/{decision_id}": Row(Scope.MONITOR, SHARED),
    "POST /scaling/decisions/{decision_id}/replay": Row(Scope.READ, SHARED),
    "POST /scaling/decisions/replay": Row(Scope.READ, SHARED),
    "POST /scaling/what-if": Row(Scope.READ, SHARED),
    "GET /scaling/recommendation": Row(Scope.MONITOR, SHARED),
    "GET /audit": Row(Scope.READ, SHARED),
    "POST /audit/verify": Row(Scope.READ, SHARED),
    "GET /degradation": Row(Scope.READ, SHARED),
    "PUT /degradation": Row(Scope.OPERATE, SHARED),
    "GET /degradation/history": Row(Scope.READ, SHARED),
    "GET /alerts": Row(Scope.READ, SHARED),
    "GET /alerts/{alert_id}": Row(Scope.READ, SHARED),
    "POST /alerts/{alert_id}/acknowledge": Row(Scope.OPERATE, SHARED),
    "GET /status": Row(Scope.MONITOR, SHARED),
    "GET /queues": Row(Scope.MONITOR, SHARED),
    "GET /queues/next": Row(_CONTENT, Within(query="limit=100")),
    "GET /namespaces": Row(Scope.MONITOR, Within()),
    "POST /queues/pause": Row(Scope.MANAGE, SHARED),
    "POST /queues/resume": Row(Scope.MANAGE, SHARED),
    "POST /queues/{agent_type}/pause": Row(Scope.MANAGE, SHARED),
    "POST /queues/{agent_type}/resume": Row(Scope.MANAGE, SHARED),
    "PUT /goals/{goal_id}/weight": Row(Scope.SUBMIT, Named(thing="goal", body={"weight": 2}, absent=200)),
    "GET /goals/{goal_id}/weight": Row(Scope.READ, Named(thing="goal", absent=200)),
    "POST /goals": Row(Scope.SUBMIT, Within(body={"objective": "to know"}, answer=201)),
    "GET /goals": Row(_CONTENT, Within(query="limit=500")),
    "GET /goals/{goal_id}": Row(_CONTENT, Named(thing="goal")),
    "POST /goals/{goal_id}/pause": Row(_SUBMIT_AND_SEE, Named(thing="goal", body={"reason": "x"})),
    "POST /goals/{goal_id}/resume": Row(_SUBMIT_AND_SEE, Named(thing="goal", body={"reason": "x"})),
    "POST /goals/{goal_id}/stop": Row(_SUBMIT_AND_SEE, Named(thing="goal", body={"reason": "x"})),
    "POST /goals/{goal_id}/extend": Row(
        _SUBMIT_AND_SEE, Named(thing="goal", body={"constraints": {"max_iterations": 9}})
    ),
    "POST /goals/{goal_id}/iterations": Row(
        Scope.SUBMIT, Named(thing="goal", body={"iteration": 2, "quality": 2}, there=201)
    ),
    "GET /goals/{goal_id}/iterations": Row(Scope.READ, Named(thing="goal")),
    "GET /goals/{goal_id}/iterations/{number}/replay": Row(_CONTENT, Named(thing="goal")),
    "POST /keys": Row(Scope.KEYS, SHARED),
    "GET /keys": Row(Scope.KEYS, SHARED),
    "DELETE /keys/{key_id}": Row(Scope.KEYS, SHARED),
    "POST /keys/{key_id}/rotate": Row(Scope.KEYS, SHARED),
    "POST /keys/enrolments": Row(Scope.KEYS, SHARED),
    "POST /llm/permits": Row(Scope.CALL, Within(body=_ask_for_permit, answer=201, to_worker=403)),
    "POST /llm/permits/{permit_id}/renew": Row(
        Scope.CALL, Named(thing="permit", body=lambda names: {"token": names["token"]})
    ),
    "POST /llm/permits/{permit_id}/settle": Row(
        Scope.CALL, Named(thing="permit", body=lambda names: {"token": names["token"], "outcome": "success"})
    ),
    "DELETE /llm/permits/{permit_id}": Row(Scope.CALL, Named(thing="permit", query="token={token}", there=204)),
    "GET /llm/permits": Row(Scope.READ, Within()),
    "GET /llm/cache/{key}": Row(Scope.CALL, Named(thing="answer", query="model=m&goal_id={goal_id}", to_worker=403)),
    "GET /llm/budgets": Row(Scope.READ, SHARED),
    "GET /llm/budgets/{scope}/{name}": Row(Scope.READ, SHARED),
    "PUT /llm/budgets/{scope}/{name}": Row(Scope.CONFIGURE, SHARED),
    "DELETE /llm/budgets/{scope}/{name}": Row(Scope.CONFIGURE, SHARED),
    "GET /llm/models": Row(Scope.READ, SHARED),
    "GET /llm/models/{model:path}": Row(Scope.READ, SHARED),
    "PUT /llm/models/{model:path}": Row(Scope.CONFIGURE, SHARED),
    "DELETE /llm/models/{model:path}": Row(Scope.CONFIGURE, SHARED),
    "POST /llm/models/{model:path}/reset": Row(Scope.OPERATE, SHARED),
    "GET /llm/usage": Row(Scope.READ, Within(query="by=goal")),
    "GET /whoami": Row(Scope.SELF, Within()),
    "GET /livez": Row(Scope.PUBLIC, PUBLIC),
    "GET /readyz": Row(Scope.PUBLIC, PUBLIC),
    "GET /problems": Row(Scope.PUBLIC, PUBLIC),
    "GET /metrics": Row(Scope.MONITOR, SHARED),
    "GET /metrics/runtime": Row(Scope.MONITOR, SHARED),
    "POST /metrics/samples": Row(Scope.MEASURE, SHARED),
    "GET /metrics/names": Row(Scope.READ, SHARED),
    "GET /metrics/utilisation": Row(Scope.MONITOR, SHARED),
    "GET /metrics/series": Row(Scope.READ, SHARED),
    "GET /health/report": Row(Scope.PUBLIC, PUBLIC),
}
# Below /dashboard, by what a browser without a session is answered there.
PAGES: dict[str, int] = {
    "GET ": 303,
    "GET /stream": 303,
    "GET /feeds/tasks": 303,
    "GET /feeds/workers": 303,
    "GET /feeds/alerts": 303,
    "GET /feeds/decisions": 303,
    "GET /tasks": 303,
    "POST /tasks/order": 401,
    "GET /tasks/{task_id}": 303,
    "GET /tasks/{task_id}/output": 303,
    "GET /tasks/{task_id}/edit": 303,
    "POST /tasks/{task_id}/submit": 401,
    "GET /workers": 303,
    "GET /alerts": 303,
    "GET /goals": 303,
    "GET /goals/{goal_id}": 303,
    "GET /decisions": 303,
    "GET /decisions/{decision_id}": 303,
    "POST /decisions/{decision_id}/replay": 401,
    "POST /decisions/{decision_id}/try": 401,
    "GET /agents": 303,
    "GET /models": 303,
    "GET /config": 303,
    "POST /config": 401,
    "POST /config/apply": 401,
    "POST /config/rollback": 401,
    "POST /config/mode": 401,
    "GET /audit": 303,
    "POST /audit/verify": 401,
    "GET /login": 200,
    "POST /login": 403,
    "POST /logout": 401,
    "POST /do/{action}": 401,
    "GET /static/{digest}/{name}": 404,
}
TABLE |= {
    name.replace(" ", " /dashboard"): Row(Scope.PUBLIC, Page(answer=answer)) for name, answer in PAGES.items()
} | {"GET /": Row(Scope.PUBLIC, Page(answer=404))}
