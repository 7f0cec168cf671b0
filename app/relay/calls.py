"""The calls of workers that are joined: recognised by their address, checked, and written as items of an exchange."""

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from worker_agent.json_weight import weights

# A longer body goes by itself: it would hold up all others of its request.
MAX_BODY_BYTES = 64 << 10
# The control plane refuses longer ones.
_LONGEST_WAIT_SECONDS = 60.0
_ID = "[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
_PATH = re.compile(
    f"/lease|/leases/(?P<task>{_ID})/(?P<name>start|progress|complete|fail|release)|/workers/(?P<worker>{_ID})/heartbeat"
)
# The control plane forgives an exchange 64,000 of weight beyond its bytes (worker_agent.json_weight).
_FREE_WEIGHT = 100
# Of brackets: fewer are nested less deep than the control plane reads, and so are those of an exchange around them.
_MAX_BRACKETS = 190
# What needs no escape in JSON, and all that keys are made of; anything else is left to the plain route.
_KEY = re.compile(rb"[Bb]earer [\w.~+/=-]{1,200}")


class Operation(NamedTuple):
    """A call that may be joined with others: its name in the exchange, and the task or worker in its address."""

    name: str
    task_id: str | None = None
    worker_id: str | None = None


class Answer(NamedTuple):
    """The answer to one call."""

    status: int
    body: bytes = b""
    retry_after: str | None = None


def problem(status: int, code: str, detail: str, retry_after: str | None = None) -> Answer:
    """A refusal of the relay's own, in the form of the service's (RFC 9457)."""
    members = {"type": f"/problems#{code}", "title": detail, "status": status, "detail": detail, "code": code}
    return Answer(status, json.dumps(members).encode(), retry_after)


def shutting_down() -> Answer:
    """The refusal of a relay that ends; workers repeat the call."""
    return problem(503, "shutting_down", "the relay is shutting down; repeat the call", "1")


@dataclass(slots=True, eq=False)
class Item:
    """One call in an exchange; its answer is None where the call has to go by the plain route."""

    operation: Operation
    authorization: bytes
    body: bytes
    wait_seconds: float
    answer: "asyncio.Future[Answer | None]" = field(repr=False)
    # Loop time; of a lease that may wait.
    ends_at: float = 0.0
    # The request that carries it now; an earlier one has nothing more to say unless it brings a lease.
    carrier: object = None
    # How many requests with it were refused for the key that they showed.
    refusals: int = 0
    # Nobody waits for the answer any more.
    is_abandoned: bool = False
    # Bytes of the body as it came.
    size: int = 0

    def __post_init__(self) -> None:
        self.size = len(self.body)

    @property
    def is_lease(self) -> bool:
        """Whether it asks for a task."""
        return self.operation.name == "lease"

    @property
    def is_open(self) -> bool:
        """Whether somebody waits for its answer."""
        return not (self.is_abandoned or self.answer.done())

    def shorten(self, now: float) -> None:
        """Take off the wait what has passed of it."""
        wait = max(0.0, round(self.ends_at - now, 3))
        call = json.loads(self.body)
        if call.get("wait_seconds", 0) > wait:
            self.body = json.dumps(call | {"wait_seconds": wait}).encode()

    def encode(self) -> bytes:
        """The item as JSON."""
        name, task_id, worker_id = self.operation
        place = f'"task_id":"{task_id}",' if task_id else f'"worker_id":"{worker_id}",' if worker_id else ""
        head = f'"operation":"{name}",{place}"body":'.encode()
        return b'{"authorization":"%s",%s%s}' % (self.authorization, head, self.body)


def read_operation(path: str) -> Operation | None:
    """The call at an address; None for one that is not joined."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    return Operation(match["name"] or ("heartbeat" if match["worker"] else "lease"), match["task"], match["worker"])


def read_item(operation: Operation, authorization: bytes, body: bytes, now: float) -> Item | None:
    """The item for a call; None where only the plain route can tell what is wrong with it."""
    if _KEY.fullmatch(authorization) is None:
        return None
    try:
        # Strict, because it is put into a text that holds the calls of others.
        call: Any = from_json(body, allow_inf_nan=False)
    except ValueError:
        return None
    if not isinstance(call, dict) or not _is_ordinary(body):
        return None
    wait = call.get("wait_seconds", 0) if operation.name == "lease" else 0
    if not (isinstance(wait, int | float) and wait >= 0):
        return None
    wait = float(min(wait, _LONGEST_WAIT_SECONDS))
    answer: asyncio.Future[Answer | None] = asyncio.get_running_loop().create_future()
    return Item(operation, authorization, body, wait, answer, ends_at=now + wait)


def _is_ordinary(body: bytes) -> bool:
    """Whether the control plane reads an exchange with this JSON in it, however much of the kind is there already."""
    if sum(weights(body)) > len(body) + _FREE_WEIGHT:
        return False
    if body.count(b"[") + body.count(b"{") <= _MAX_BRACKETS:
        return True
    try:
        from_json(b"[[[%s]]]" % body)
    except ValueError:
        return False
    return True


def settle(item: Item, answer: Answer | None) -> None:
    """Answer a call, unless it has been answered."""
    if not item.answer.done():
        item.answer.set_result(answer)


def settle_all(items: Iterable[Item], answer: Answer | None) -> None:
    """Answer all of these calls alike."""
    for item in items:
        settle(item, answer)


def fail(items: Iterable[Item], why: str) -> None:
    """Answer as proxies do for a service that is away, which workers take for no answer."""
    settle_all(items, problem(502, "control_plane_away", why))


def read_answers(line: bytes) -> list[tuple[int, Answer]]:
    """The answers of a line of an exchange, each with the place of its item. Raises ValueError."""
    try:
        try:
            value: Any = from_json(line)
        except ValueError:
            # It takes no halves of surrogate pairs, which a payload may hold.
            value = json.loads(line)
        return [(one["index"], _answer(one)) for one in value["answers"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(repr(error)) from None


def _answer(one: Any) -> Answer:
    body, retry_after = one.get("body"), one.get("retry_after")
    return Answer(
        int(one["status"]),
        b"" if body is None else _write(body),
        None if retry_after is None else str(retry_after),
    )


def _write(body: Any) -> bytes:
    try:
        return to_json(body)
    except ValueError:
        return json.dumps(body).encode()
