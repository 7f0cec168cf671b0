"""The page of limits has the tables of the model, and the model agrees with what was measured."""

import pytest

from app.db.database import Database
from benchmarks import limits
from benchmarks.limits import Machine
from tests.support.documents import ROOT

_PAGE = (ROOT / "docs" / "explanation" / "limits.md").read_text()
_SMALL = Machine(cores=2, log_megabytes_per_second=1000, connections=1000)


@pytest.mark.parametrize("lines", [limits.tasks_table(), limits.workers_table(), limits.million_table()])
def test_the_page_has_the_tables_of_the_model(lines: list[str]) -> None:
    assert "\n".join(lines) in _PAGE


def test_where_all_shared_two_cores_the_model_gives_what_was_measured() -> None:
    both = limits.API_MS + limits.POSTGRES_MS
    assert 2_000 * limits.SHARE / both == pytest.approx(limits.REACHED)


def test_each_bound_ends_first_where_it_is_the_narrowest() -> None:
    assert limits.limits(_SMALL).bound == "processor"
    assert limits.limits(Machine(cores=2, log_megabytes_per_second=10, connections=1000)).bound == "log"
    assert limits.limits(Machine(cores=64, log_megabytes_per_second=5000, connections=110)).bound == "connections"


def test_the_longer_the_tasks_the_more_workers_until_only_heartbeats_count() -> None:
    counts = [limits.workers(_SMALL, seconds) for seconds in (1, 10, 100, 1e6, 1e9)]
    assert counts == sorted(counts)
    assert counts[-1] == pytest.approx(counts[-2], rel=0.01)
    assert limits.workers(_SMALL, 1e9, 30.0) == pytest.approx(6 * counts[-1], rel=0.01)


async def test_the_connections_of_a_process_are_those_of_the_code(database: Database) -> None:
    pools = [database.engine.sync_engine.pool, database._read_engine.sync_engine.pool]
    most = sum(pool.size() + pool._max_overflow for pool in pools)  # type: ignore[attr-defined]
    statements = database.hot.size + database.submits.size
    assert most + statements + 1 == limits.CONNECTIONS_OF_A_PROCESS
