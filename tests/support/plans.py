"""What PostgreSQL does for a call: every statement of it is explained, with the rows and pages that it touched."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from sqlalchemy import event

from app.db.connections import LimitedConnection
from app.db.database import Database
from tests.support.sql import execute, value

_SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_wal": "on",
    "auto_explain.log_timing": "off",
    # Those of triggers too.
    "auto_explain.log_nested_statements": "on",
    "auto_explain.log_format": "json",
    "auto_explain.log_level": "notice",
}
_ROWS = ("Rows Removed by Filter", "Rows Removed by Join Filter", "Rows Removed by Index Recheck")


@dataclass(frozen=True, slots=True)
class Cost:
    """Number of statements, those of triggers included, and what they took.

    `rows` are all that their steps have looked at, `pages` those of 8 KiB that they have touched; `records` and `bytes`
    went to the write-ahead log, one record at least for each row and each entry of an index.
    """

    statements: int
    rows: float
    pages: int
    records: int
    bytes: int


@dataclass(slots=True)
class PlanLog:
    """The plans of the statements since it was last emptied."""

    plans: list[dict[str, Any]] = field(default_factory=list)

    def take(self) -> Cost:
        """The cost of all statements until now, which begins anew."""
        cost = _cost(self.plans)
        self.plans.clear()
        return cost

    def take_by_text(self) -> dict[str, Cost]:
        """The same for the statements of each text."""
        plans_by_text: dict[str, list[dict[str, Any]]] = {}
        for plan in self.plans:
            plans_by_text.setdefault(plan["Query Text"], []).append(plan)
        self.plans.clear()
        return {query: _cost(plans) for query, plans in plans_by_text.items()}


class Costs:
    """The costs of calls, by their names and the sizes of their batches."""

    def __init__(self, log: PlanLog) -> None:
        self._log = log
        self._by_call: dict[str, dict[int, Cost]] = {}

    @contextmanager
    def of(self, call: str, batch: int) -> Iterator[None]:
        self._log.take()
        yield
        # The last of each size counts: with its first call a connection also asks for the types of values.
        self._by_call.setdefault(call, {})[batch] = self._log.take()

    def check(self) -> None:
        for call, costs in self._by_call.items():
            fewest, cost = min(costs.items())
            assert cost.rows, f"nobody has explained {call}"
            for batch, of_batch in costs.items():
                assert of_batch.rows / batch <= 3 * cost.rows / fewest, (call, costs)
                assert of_batch.pages / batch <= 3 * cost.pages / fewest, (call, costs)


@contextmanager
def explained(monkeypatch: pytest.MonkeyPatch) -> Iterator[PlanLog]:
    """Every statement of this process on a database of `explaining`."""
    log = PlanLog()

    def note(_: object, fields: dict[str, str], __: object) -> None:
        _, _, plan = fields.get("M", "").partition("plan:")
        if plan:
            log.plans.append(json.loads(plan))

    with monkeypatch.context() as patch:
        # The driver forgets listeners whenever its pool takes a connection back.
        patch.setattr(LimitedConnection, "_process_log_message", note)
        yield log


@asynccontextmanager
async def explained_database(
    database: Database, monkeypatch: pytest.MonkeyPatch, plan_cache_mode: str = "auto"
) -> AsyncIterator[tuple[Database, PlanLog]]:
    """The database on connections of its own, which the server explains, and their plans. It has to be the test's."""
    await explaining(database, plan_cache_mode)
    fresh_database = Database(database.url)
    with explained(monkeypatch) as log:
        yield fresh_database, log
    await fresh_database.close()


async def explaining(database: Database, plan_cache_mode: str) -> None:
    """Let the server explain what runs on new connections to the database. It has to be the test's own."""
    name = await value(database, "SELECT current_database()")
    for setting, content in (_SETTINGS | {"plan_cache_mode": plan_cache_mode}).items():
        await execute(database, f"ALTER DATABASE {name} SET {setting} = '{content}'")


def _cost(plans: list[dict[str, Any]]) -> Cost:
    nodes = [node for plan in plans for node in nodes_of(plan["Plan"])]
    tops = [top for plan in plans for top in _tops(plan["Plan"])]
    return Cost(
        statements=len(plans),
        rows=sum(_rows(node) for node in nodes),
        pages=sum(top["Shared Hit Blocks"] + top["Shared Read Blocks"] for top in tops),
        records=sum(top["WAL Records"] for top in tops),
        bytes=sum(top["WAL Bytes"] for top in tops),
    )


def nodes_of(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The node at the top of a plan, and all below it."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def _tops(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """The plan, whose sums hold those of its parts, and the parts that nothing reads, which run when it is over."""
    nodes = list(nodes_of(plan))
    read = {f"CTE {node['CTE Name']}" for node in nodes if "CTE Name" in node}
    return [
        plan,
        *(
            node
            for node in nodes
            if node.get("Subplan Name", "").startswith("CTE") and node["Subplan Name"] not in read
        ),
    ]


def _rows(node: dict[str, Any]) -> float:
    removed = sum(node.get(name, 0) for name in _ROWS)
    return float((node["Actual Rows"] + removed) * max(1, node["Actual Loops"]))


async def plans_of(database: Database, work: Callable[[], Awaitable[object]]) -> list[str]:
    """The plan of each statement that the work sends to the database."""
    sent: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_: Any) -> None:
        sent.append((f"EXPLAIN {statement}", tuple(values)))

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        await work()
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
    async with database.engine.connect() as connection:
        return ["\n".join((await connection.exec_driver_sql(*each)).scalars()) for each in sent]
