"""Types of fields that several bodies and queries share."""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import Query
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, PydanticKnownError
from typing_extensions import TypeAliasType

from app.kernel.agents import AgentType, agent_type
from app.kernel.lanes import Priority
from app.kernel.text import A_MOMENT, MAX_SENTENCE

_PRIORITY_NUMBERS: dict[object, str] = {1: "low", 2: "medium", 3: "high"}


def _name_of_number(value: object) -> object:
    """Parts of the wider system number priorities: 3 is high, 2 medium, 1 low."""
    return _PRIORITY_NUMBERS.get(value, value) if type(value) is int else value


# A name, so that the document has one type for all its uses.
PriorityName = TypeAliasType("PriorityName", Literal["low", "medium", "high", "critical"])
PriorityIn = Annotated[PriorityName, BeforeValidator(_name_of_number)]


def _parse_agent(value: object) -> AgentType:
    if not isinstance(value, str):
        raise ValueError("must be the name of an agent type")
    return agent_type(value)


AgentName = Annotated[AgentType, BeforeValidator(_parse_agent)]


def _check_unique(value: list[AgentType]) -> list[AgentType]:
    if len(set(value)) < len(value):
        raise ValueError("must name each agent type once")
    return value


AgentNames = Annotated[
    list[AgentName], Field(min_length=1, max_length=len(AgentType), fail_fast=True), AfterValidator(_check_unique)
]


def _check_storable(value: str) -> str:
    if "\x00" in value:
        raise ValueError("must not contain the character U+0000")
    return value


StorableText = Annotated[str, AfterValidator(_check_storable)]
Word = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_storable)]


def _check_addressable(value: str) -> str:
    if "/" in value or value in (".", ".."):
        raise ValueError("must have no / in it and be neither . nor .., because the address of a goal is /goals/{id}")
    return value


# For a request that creates a goal. A mere reference takes any word, as tasks of earlier versions may have any.
NewGoalId = Annotated[Word, AfterValidator(_check_addressable), Field(json_schema_extra={"pattern": "^[^/]+$"})]
Sentence = Annotated[str, Field(max_length=MAX_SENTENCE), AfterValidator(_check_storable)]
_MAX_LABELS_BYTES = 8 << 10
_FEW_LABELS = _MAX_LABELS_BYTES // (2 * 200 * 4)


def _check_labels(value: dict[str, str]) -> dict[str, str]:
    # Lists show the labels of 500 tasks or workers at once. A few words have no more bytes than that.
    if (
        len(value) > _FEW_LABELS
        and sum(len(name.encode()) + len(text.encode()) for name, text in value.items()) > _MAX_LABELS_BYTES
    ):
        raise ValueError(f"must have {_MAX_LABELS_BYTES} bytes at most in all")
    return value


def entries(max_entries: int) -> BeforeValidator:
    """The bound of a map, checked before its entries: Pydantic would collect an error for each of them."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > max_entries:
            facts = {"field_type": "Dictionary", "max_length": max_entries, "actual_length": len(value)}
            raise PydanticKnownError("too_long", facts)
        return value

    return BeforeValidator(check)


Labels = Annotated[dict[Word, Word], Field(max_length=64), entries(64), AfterValidator(_check_labels)]


def _check_own_name(value: str) -> str:
    if value in ("cores", "memory_gb", "gpus"):
        raise ValueError(f"{value} has a field of its own")
    return value


# A licence, an instrument.
ResourceName = Annotated[
    str, Field(max_length=63, pattern="^[a-z0-9][a-z0-9._-]*$", examples=["matlab"]), AfterValidator(_check_own_name)
]
NamedResources = Annotated[
    dict[ResourceName, Annotated[int, Field(ge=1, le=1_000_000)]], Field(max_length=16), entries(16)
]
# The first hexadecimal digits of an id.
IdPrefix = Annotated[str, Field(pattern="^[0-9a-f]{4,32}$", max_length=32, examples=["0190a5b2"])]


class MatchesOut(BaseModel):
    """Ids that begin with a prefix."""

    ids: list[UUID] = Field(description="the first ten, in order")
    more: bool = Field(description="there are others, or so many that not all were looked at")


# A JSON merge patch (RFC 7396).
MergePatch = Annotated[
    dict[str, Any],
    Field(max_length=100, json_schema_extra={"examples": [{"resource_limits": {"max_concurrent_llm_calls": 20}}]}),
]


def _is_text(value: object) -> object:
    """Refuse a number, which Pydantic would take as seconds since 1970."""
    if isinstance(value, datetime) or (isinstance(value, str) and value[4:5] == "-"):
        return value
    raise ValueError(f"must be {A_MOMENT}")


def _check_calendar(value: datetime) -> datetime:
    """Refuse the ends of the calendar, which are read back from the database as infinity."""
    if not 1 < value.year < 9999:
        raise ValueError("must lie in the years from 2 to 9998")
    return value


Moment = Annotated[AwareDatetime, BeforeValidator(_is_text), AfterValidator(_check_calendar)]
# A bound of a requested period: earlier times have no history, and arithmetic at the ends of the calendar may fail.
Bound = Annotated[
    Moment,
    Field(ge=datetime(1970, 1, 2, tzinfo=UTC), le=datetime(9000, 1, 1, tzinfo=UTC)),
    # JSON Schema has no words for bounds of times.
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
# The largest bigint of PostgreSQL; as a bound of a page that goes down, it begins at the newest.
NEWEST = 2**63 - 1
Below = Annotated[int, Query(ge=1, le=NEWEST, description="`next` of the page before")]
Token = Annotated[int, Field(ge=1, le=NEWEST)]
Limit = Annotated[int, Field(ge=1, le=500)]


_NAMES_OF_PRIORITIES: dict[int, PriorityName] = {1: "low", 2: "medium", 3: "high", 4: "critical"}


def priority_name(value: int) -> PriorityName:
    """The name of a stored priority."""
    return _NAMES_OF_PRIORITIES[value]


# Looked up for every submitted task, for which the enumeration itself would take five times as long.
_PRIORITIES = {priority.name.lower(): priority for priority in Priority}


def priority_of(name: PriorityName) -> Priority:
    """The stored priority of a name."""
    return _PRIORITIES[name]


def optional_priority(name: PriorityName | None) -> Priority | None:
    """The stored priority of a name that may be left out."""
    return None if name is None else priority_of(name)


# Doubles go on to 1e308 and 5e-324, but quotients and squares of such numbers are infinite or 0 over 0.
_MAX_FLOAT = 1e15
_MIN_FLOAT = 1e-100


def _flush_to_zero(value: object) -> object:
    """Take a number nearer to 0 than any measurement, and -0.0, for 0."""
    return 0.0 if isinstance(value, float) and abs(value) < _MIN_FLOAT else value


_FLUSH = {"type": "no-info", "function": _flush_to_zero}


def _take_literally(schema: Any) -> None:
    """Make numbers and truth values strict, and floats sane; all else stays lax, because ids and times come as text."""
    if isinstance(schema, dict):
        if schema.get("type") in ("int", "float", "bool"):
            schema["strict"] = True
        if schema.get("type") == "float":
            _bound_float(schema)
            return
        if schema.get("function") is _FLUSH:  # a model within a model comes by twice
            return
        for part in schema.values():
            _take_literally(part)
    elif isinstance(schema, list | tuple):
        for part in schema:
            _take_literally(part)


def _bound_float(schema: dict[str, Any]) -> None:
    """Give a float bounds where it has none, and have it flushed to 0 before they are checked."""
    if not schema.keys() & {"le", "lt"}:
        schema["le"] = _MAX_FLOAT
    if not schema.keys() & {"ge", "gt"}:
        schema["ge"] = -_MAX_FLOAT
    inner = dict(schema)
    schema.clear()
    schema.update(type="function-before", function=_FLUSH, schema=inner)


class StrictModel(BaseModel):
    """Base of queries and bodies that refuses unknown keys, so that a misspelt one is noticed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Body(StrictModel):
    """Base of request bodies, in which "1" and true are no numbers; in a query everything is text."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        _take_literally(schema)
        return schema


_WHY = "why; it is kept in the audit log, and the mode may want one"
Reason = Annotated[Sentence, Field(description=_WHY)]
ReasonQuery = Annotated[Sentence, Query(description=_WHY)]


class ReasonIn(Body):
    """Why."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"reason": "the gateway is upgraded"}]})

    reason: Reason = ""


# Of seconds or MiB: far beyond any machine, and sums of them stay exact.
_MAX_USAGE = 1e9


class Usage(Body):
    """What a task cost where it ran."""

    wall_seconds: float = Field(ge=0, le=_MAX_USAGE)
    cpu_seconds: float = Field(ge=0, le=_MAX_USAGE)
    max_memory_mb: float = Field(ge=0, le=_MAX_USAGE)


class TaskUsageOut(BaseModel):
    """What a task cost where it ran, as it was stored."""

    wall_seconds: float
    cpu_seconds: float
    max_memory_mb: float
