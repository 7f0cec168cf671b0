"""Route of namespaces: what each has waiting, and how it shares the service with others."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, Field

from app.admin.store import namespaces as store
from app.http.fields import PriorityName, priority_name
from app.http.guard import requires
from app.http.namespaces import Within
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.namespaces import DEFAULT
from app.queue.rules.status import QUEUED_PHASES
from app.queue.service.admission import Admission
from app.queue.store import counters
from app.queue.store.counters import TaskCount

router = Router(prefix="/namespaces", tags=["queues"])


class NamespaceOut(BaseModel):
    """Live tasks of a namespace, and its share of what all have in common."""

    namespace: str
    weight: float = Field(description="2 gets twice the leases of 1 wherever both wait")
    queued: int = Field(description="pending, delayed, held or blocked")
    max_queued: int = Field(description="so many may be")
    by_phase: dict[str, int] = Field(description="assigned and executing ones too")
    by_agent: dict[AgentType, int]
    by_priority: dict[PriorityName, int]


class NamespaceList(BaseModel):
    """Those that have live tasks or are configured; `default`, or the caller's own, in any case."""

    items: list[NamespaceOut]


@router.get(
    "",
    operation_id="list_namespaces",
    summary="Read what namespaces have waiting",
    dependencies=[requires(Scope.MONITOR)],
)
async def read(services: ServicesDep, connection: Reading, namespace: Within) -> NamespaceList:
    """From counters, so at the same cost however many tasks there are. Keys of one namespace see their own."""
    counts = await counters.read_by_namespace(connection, namespace)
    configured, admission = await store.read(connection), services[Admission]
    names = {namespace} if namespace else {DEFAULT, *configured.configured, *counts}
    return NamespaceList(
        items=[
            NamespaceOut(
                namespace=name,
                weight=configured.config(name).weight,
                max_queued=admission.namespace_limit(configured, name) or admission.policy.max_queue_size,
                **_figures(counts.get(name, [])),
            )
            for name in sorted(names)
        ]
    )


def _figures(counts: Sequence[TaskCount]) -> dict[str, Any]:
    phases, agents, priorities = Counter[str](), Counter[AgentType](), Counter[PriorityName]()
    for count in counts:
        phases[count.phase] += count.tasks
        if count.phase in QUEUED_PHASES:
            agents[count.lane.agent_type] += count.tasks
            priorities[priority_name(count.lane.priority)] += count.tasks
    return {"queued": agents.total(), "by_phase": phases, "by_agent": agents, "by_priority": priorities}
