"""Route of results: pages in the order of completion, from a continuation token on."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from pydantic import BaseModel, Field

from app.http.fields import AgentName, Limit, Moment, PriorityName, TaskUsageOut, priority_name
from app.http.guard import requires
from app.http.namespaces import Within
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.kernel.agents import AgentType
from app.kernel.namespaces import DEFAULT, split_name, stored_name
from app.queue.api.events import start_at
from app.queue.api.queues import OpenWriterOut, open_writers_out
from app.queue.errors import CursorAhead, CursorExpired
from app.queue.store import open_writers
from app.queue.store import outputs as store
from app.queue.store.events import Cursor
from app.queue.store.outputs import Output

router = Router(prefix="/outputs", tags=["context"])
# It distinguishes a token from a cursor of events, so that neither route accepts the other's by mistake.
_PREFIX = "o"


class OutputOut(BaseModel):
    """The result of a completed task."""

    token: str = Field(description="the continuation token after this very result")
    task_id: UUID
    agent_type: AgentType
    namespace: str
    goal_id: str | None
    priority: PriorityName
    labels: dict[str, str]
    worker_id: UUID | None
    worker_name: str | None
    created_at: Moment
    finished_at: Moment
    result: Any
    usage: TaskUsageOut | None
    quality: float | None = Field(description="0 to 1, where its worker has judged it")


class OutputPage(BaseModel):
    """Oldest first; store `next` and pass it as `after`, and you receive each result exactly once."""

    items: list[OutputOut]
    next: str
    more: bool = Field(description="go on at once: there may be more, even where this page is empty")
    open_writers: list[OpenWriterOut] = Field(
        default=[], description="where the page is empty: the transactions for which later results have to wait"
    )


@router.get(
    "",
    operation_id="list_outputs",
    summary="Read results as they come",
    dependencies=[requires(Scope.READ, Scope.CONTENT)],
    responses=responses_for(CursorExpired, CursorAhead),
)
async def page(
    connection: Reading,
    namespace: Within,
    agent_type: Annotated[AgentName | None, Query()] = None,
    goal_id: Annotated[str | None, Query(max_length=200)] = None,
    after: Annotated[
        str | None,
        Query(max_length=100, description="continuation token of an earlier page; `now`; or absent: from the start"),
    ] = None,
    limit: Limit = 100,
) -> OutputPage:
    """In the order of completion, from a token on, as far back as events are kept.

    A token is good for any filter. A result that is just being written appears later, never in a place already read.
    """
    start = await start_at(connection, after, "continuation token", prefix=_PREFIX)
    agent_name = agent_type.value if agent_type else None
    goal_name = stored_name(namespace or DEFAULT, goal_id) if goal_id else None
    filters = {"agent_type": agent_name, "goal_id": goal_name, "namespace": namespace}
    rows = await store.page(connection, start, **filters, limit=limit)
    items = [OutputOut.model_validate(_output_fields(output)) for output in rows.items]
    writers = [] if items else open_writers_out(await open_writers.read(connection))
    return OutputPage(items=items, next=_token(rows.next), more=rows.has_more, open_writers=writers)


def _token(cursor: Cursor) -> str:
    return f"{_PREFIX}{cursor}"


def _output_fields(output: Output) -> dict[str, Any]:
    same = {name: getattr(output, name) for name in Output.__dataclass_fields__}
    namespace, goal_id = split_name(output.goal_id)
    named = {"namespace": namespace, "goal_id": goal_id}
    return {**same, **named, "token": _token(output.cursor), "priority": priority_name(output.priority)}
