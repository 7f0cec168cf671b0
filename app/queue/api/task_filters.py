"""Filters of tasks in queries and bodies, with the same names, so that a listing shows what an action would affect."""

from typing import Annotated, Any, Literal, Self
from uuid import UUID

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from app.http.fields import AgentName, Body, Limit, Moment, PriorityIn, Reason, Sentence, StrictModel, Word, priority_of
from app.http.namespaces import NamespaceName
from app.kernel.namespaces import DEFAULT, stored_name
from app.kernel.states import TaskState
from app.queue.store.listing import Selection


def _as_list(value: object) -> object:
    # A parameter that is given once arrives as text.
    return [value] if isinstance(value, str) else value


def _check_pair(value: str) -> str:
    name, separator, _ = value.partition(":")
    if not name or not separator:
        raise ValueError("must be key:value")
    return value


LabelPairs = Annotated[
    list[Annotated[Sentence, AfterValidator(_check_pair)]],
    BeforeValidator(_as_list),
    Field(max_length=10, description="key:value; with several, a task must carry all of them"),
]
LiveState = Literal["blocked", "pending", "assigned", "executing"]
BatchLimit = Annotated[int, Field(ge=1, le=10_000, description="how many at most in this call")]
After = Annotated[int | None, Field(ge=0, le=2**63 - 1, description="`next` of the page before")]


def pairs(labels: list[str]) -> list[tuple[str, str]]:
    """Split `key:value` labels into pairs."""
    return [(name, value) for name, _, value in (label.partition(":") for label in labels)]


def _selection(query: BaseModel, labels: list[str], namespace: str | None, **renamed: Any) -> Selection:
    """A query as a selection for the store; `renamed` are the fields with another name or type there."""
    same = {name: getattr(query, name) for name in Selection.__dataclass_fields__ if hasattr(query, name)}
    goal_id = stored_name(namespace or DEFAULT, same["goal_id"]) if same["goal_id"] else None
    fixed = {"labels": pairs(labels), "namespace": namespace, "goal_id": goal_id}
    return Selection(**{**same, **fixed, **renamed})


class TaskQuery(StrictModel):
    """Query of `GET /tasks`; all filters must match. Of times, the first is included and the second is not."""

    namespace: NamespaceName = None
    goal_id: Word | None = None
    agent_type: AgentName | None = None
    state: list[TaskState] = Field(default_factory=list, max_length=len(TaskState), description="any of these")
    priority: PriorityIn | None = None
    label: LabelPairs = Field(default_factory=list)
    code: Word | None = Field(None, description="the `code` of the error")
    worker_id: UUID | None = Field(None, description="who runs it, or ran it last")
    created_after: Moment | None = None
    created_before: Moment | None = None
    finished_after: Moment | None = None
    finished_before: Moment | None = None
    after: After = None
    limit: Limit = 50

    def selection(self, namespace: str | None) -> Selection:
        """The filter, within a namespace if one is given, as a selection for the store."""
        priority = priority_of(self.priority) if self.priority else None
        return _selection(self, self.label, namespace, states=self.state, priority=priority)


class _LetterFields(StrictModel):
    """Fields that select dead letters."""

    agent_type: AgentName | None = None
    goal_id: Word | None = None
    code: Word | None = Field(None, description="the `code` of the error")
    failed_after: Moment | None = Field(None, description="at this time or later")
    failed_before: Moment | None = None
    label: LabelPairs = Field(default_factory=list)

    def selection(self, namespace: str | None) -> Selection:
        """The filter, within a namespace if one is given, as a selection for the store."""
        span = {"finished_after": self.failed_after, "finished_before": self.failed_before}
        return _selection(self, self.label, namespace, states=(TaskState.FAILED,), **span)


class LetterQuery(_LetterFields):
    """Query of `GET /dead-letters`; all filters must match."""

    namespace: NamespaceName = None
    after: After = None
    limit: Limit = 50


class ExplicitFilter(Body):
    """A filter that must say something: an empty object is too easily sent by mistake."""

    everything: bool = Field(False, alias="all", description="true instead of any other field: really all of them")

    @model_validator(mode="after")
    def _check_explicit(self) -> Self:
        names = [name for name in type(self).model_fields if name != "everything"]
        is_selective = any(getattr(self, name) not in (None, []) for name in names)
        if is_selective == self.everything:
            raise ValueError('give at least one field, or {"all": true} alone for everything')
        return self


class LetterFilter(_LetterFields, ExplicitFilter):
    """Which dead letters; all fields must agree."""


class CancelFilter(ExplicitFilter):
    """Which tasks that have not finished; all fields must agree."""

    agent_type: AgentName | None = None
    goal_id: Word | None = None
    state: LiveState | None = None
    priority: PriorityIn | None = None
    label: LabelPairs = Field(default_factory=list)
    created_before: Moment | None = None

    def selection(self, namespace: str | None) -> Selection:
        """The filter, within a namespace if one is given, as a selection for the store."""
        states = (TaskState(self.state),) if self.state else ()
        priority = priority_of(self.priority) if self.priority else None
        return _selection(self, self.label, namespace, states=states, priority=priority)


class BulkRequest(Body):
    """Limit and mode of an operation on many tasks."""

    limit: BatchLimit = 10_000
    dry_run: bool = Field(False, description="only count what matches")


class CancelManyIn(BulkRequest):
    """Which tasks to cancel, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"filter": {"goal_id": "kepler", "state": "pending"}, "dry_run": True, "reason": "another question"}
            ]
        }
    )

    filter: CancelFilter
    reason: Reason = ""


class RequeueManyIn(BulkRequest):
    """Which dead letters to put back into the queue, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"filter": {"code": "timeout"}, "dry_run": True, "reason": "the gateway is back"}]
        }
    )

    filter: LetterFilter
    reason: Reason = ""
    priority: PriorityIn | None = Field(None, description="of all of them from now on; null: of each as it was")


class PurgeIn(BulkRequest):
    """Which dead letters to forget, and why."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"filter": {"agent_type": "ranking"}, "dry_run": True, "reason": "of no use any more"}]
        }
    )

    filter: LetterFilter
    reason: Reason = ""
