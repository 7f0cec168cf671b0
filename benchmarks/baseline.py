"""The baseline: the same tables worked off by pgbench, PostgreSQL's own load generator, with nothing in between.

One task a statement, claim and completion as two transactions, as one would write it without HTTP, fairness and long
polls. A second variant also writes the events that the service writes.
"""

import asyncio
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from app.queue.store.tables import KEPT_COLUMNS
from benchmarks.processes import CpuSeconds
from benchmarks.testbed import Testbed
from benchmarks.workers import RESULT

CLIENTS = 8
_THREADS = 2

# Every client is a worker of its own.
_WORKER = "lpad(to_hex(:client_id::int), 32, '0')::uuid"
_AGENT = "(ARRAY['evolution', 'generation', 'meta_review', 'proximity', 'ranking', 'reflection'])[:agent::int]"
_EVENT = "INSERT INTO events (kind, task_id, agent_type, goal_id, worker_id, token)"

_CLAIM = f"""
UPDATE tasks t
SET state = 'executing', token = t.token + 1, worker_id = {_WORKER}, leased_at = now(),
    lease_expires_at = now() + interval '15 s', deadline_at = now() + make_interval(secs => t.timeout_seconds)
FROM (
    SELECT id FROM tasks
    WHERE agent_type = {_AGENT} AND priority = 2 AND state = 'pending' AND blockers = 0 AND run_at IS NULL
    ORDER BY tag, seq LIMIT 1 FOR UPDATE SKIP LOCKED
) head
WHERE t.id = head.id
RETURNING t.id, t.token, t.failures, t.agent_type, t.goal_id, t.priority, t.payload, t.labels, t.timeout_seconds,
    t.leased_at, t.lease_expires_at, t.deadline_at, t.checkpoint, t.trace_context, t.worker_id
"""

_COLUMNS = ", ".join(KEPT_COLUMNS)

_GONE = f"""
DELETE FROM tasks WHERE id = :id AND token = :token AND worker_id = {_WORKER}
    AND state IN ('assigned', 'executing') AND lease_expires_at > now() RETURNING *
"""

_KEEP = f"""
INSERT INTO task_history ({_COLUMNS}, state, finished_at, result, result_hash)
SELECT {_COLUMNS}, 'completed', now(), '{json.dumps(RESULT)}', '\\x{"00" * 32}' FROM gone RETURNING id AS done
"""

PLAIN = f"""
\\set agent random(1, 6)
{_CLAIM.strip()} \\gset
WITH gone AS ({_GONE}) {_KEEP.strip()} \\gset
"""

WITH_EVENTS = f"""
\\set agent random(1, 6)
WITH leased AS ({_CLAIM}), told AS (
    {_EVENT} SELECT kind, id, agent_type, goal_id, worker_id, token
    FROM leased CROSS JOIN (VALUES ('task.assigned'), ('task.executing')) AS move (kind)
) SELECT * FROM leased \\gset
WITH gone AS ({_GONE}), told AS (
    {_EVENT} SELECT 'task.completed', id, agent_type, goal_id, worker_id, token FROM gone
) {_KEEP.strip()} \\gset
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Tasks leased and completed by pgbench."""

    processed: int
    per_second: float
    mean_ms: float
    postgres_cpu_ms: float


async def measure(testbed: Testbed, script: str, seconds: float) -> Baseline:
    """Run the script for so many seconds. Needs a backlog that lasts. Raises RuntimeError when a client gave up."""
    cpu_before = CpuSeconds.read(testbed)
    report = await _run(testbed, script, seconds)
    cpu = CpuSeconds.read(testbed).since(cpu_before)
    processed = int(_number(r"actually processed: (\d+)", report))
    return Baseline(
        processed=processed,
        per_second=_number(r"tps = ([\d.]+)", report),
        mean_ms=_number(r"latency average = ([\d.]+) ms", report),
        postgres_cpu_ms=cpu.postgres / processed * 1000,
    )


async def _run(testbed: Testbed, script: str, seconds: float) -> str:
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as file:
        file.write(script.strip() + "\n")
        file.flush()
        size = ["-M", "prepared", "-c", str(CLIENTS), "-j", str(_THREADS), "-T", str(max(1, round(seconds)))]
        process = await asyncio.create_subprocess_exec(
            testbed.binaries.program("pgbench"),
            *("--no-vacuum", *size, "-f", file.name),
            env=_address(testbed.database_url),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        report = (await process.communicate())[0].decode()
    if process.returncode != 0 or "aborted" in report:
        raise RuntimeError(f"pgbench: {report}")
    return report


def _address(url: str) -> Mapping[str, str]:
    """The address as environment variables, since a password does not belong on a command line."""
    parts = urlsplit(url)
    return {
        "PGHOST": parts.hostname or "",
        "PGPORT": str(parts.port),
        "PGUSER": parts.username or "",
        "PGPASSWORD": parts.password or "",
        "PGDATABASE": parts.path.strip("/"),
    }


def _number(pattern: str, report: str) -> float:
    match = re.search(pattern, report)
    if match is None:
        raise RuntimeError(f"pgbench did not say {pattern}: {report}")
    return float(match[1])
