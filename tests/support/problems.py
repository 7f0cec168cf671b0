"""How to tell that an answer is a problem, and that nothing has changed."""

from typing import Any

import httpx

from app.db.database import Database
from tests.support.sql import value

_TABLES = ("tasks", "task_history", "task_attempts", "events", "workers", "keys", "replacements")
# All that a refused call could have changed, timestamps and tokens included.
_ALL = " || '/' || ".join(f"(SELECT count(*) || md5(coalesce(string_agg(t::text, '' ORDER BY t::text), '')) FROM {t} t)"
                          for t in _TABLES)  # fmt: skip


async def everything(database: Database) -> str:
    """A digest of all rows of all tables."""
    return str(await value(database, f"SELECT {_ALL}"))


def is_problem(answer: httpx.Response, status: int, code: str, field: str | None = None) -> dict[str, Any]:
    """The problem, which has this status and code, and names the field."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["code"] == code, problem
    assert problem["type"] == f"/problems#{code}"
    assert problem["title"]
    assert problem["detail"]
    if field is not None:
        assert field in [error["path"] for error in problem["errors"]], problem
        assert field in problem["detail"]
        assert all(error["message"] for error in problem["errors"])
    return problem
