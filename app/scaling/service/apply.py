"""Applies a decision: assigns, requests and drains workers, and sets the size that each host keeps.

Whoever counts the pool and adds to it holds its lock, as two could fill the same room otherwise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from app.db import notify
from app.kernel.states import WorkerState
from app.kernel.text import plural
from app.scaling.rules.blocks import groups_to_remove
from app.scaling.rules.decision import Decision
from app.scaling.rules.target import ScalingPlan
from app.scaling.service.snapshot import worker_groups
from app.workers.rules.assignment import Assignment
from app.workers.rules.hosts import Host
from app.workers.rules.workers import Directive
from app.workers.service import pool as pool_operations
from app.workers.service import roster as roster_service
from app.workers.service.roster import DueStarts, Pool
from app.workers.store import directives, hosts, roster
from app.workers.store.directives import WorkerSelector
from app.workers.store.roster import ASSIGNED_FIELDS, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class AppliedChanges:
    """Counts of changes: workers requested, drained, and given another assignment; hosts with another size.

    `drained` are those of the usual pool, `drained_of_classes` the others by the name of their class.
    """

    started: int = 0
    drained: int = 0
    assigned: int = 0
    resized: int = 0
    drained_of_classes: Mapping[str, int] = field(default_factory=dict)

    def nonzero_counts(self) -> dict[str, Any]:
        """The counts by name, without those that are 0."""
        return {name: count for name, count in asdict(self).items() if count}


async def notes(connection: AsyncConnection, due_starts: DueStarts) -> list[str]:
    """Sentences for the reasons of a decision, on hosts that owe workers: these count, though none lives yet."""
    sentences = []
    for host, count in due_starts.items():
        if not count:
            continue
        sentence = f"{host.host} owes {plural(count, 'worker')}, counted as if there"
        if resting := await pool_operations.resting_slots(connection, host.provisioner, host.host):
            sentence += f"; {plural(len(resting), 'slot')} there rest, as their workers died young"
        for wait in host.member_waits:
            sentence += f"; {plural(wait.members, 'member does', 'members do')} not come: {wait.reason}"
        sentences.append(sentence)
    return sentences


async def apply_decision(
    connection: AsyncConnection,
    decision: Decision,
    pool: Pool,
    due_starts: DueStarts,
    starts: Mapping[Host, int],
    max_workers: int,
) -> AppliedChanges:
    """Write the changes of a decision, `starts` being its new workers by host; the caller holds the pool."""
    assignments = _new_assignments(decision, pool.staying)
    leaving = _leavers(decision.plan, pool.usual, max_workers)
    of_classes = {host.host: _class_leavers(decision, pool, host) for host in pool.classes}
    # Those that change and those that leave at once, in the order of heartbeats: one after the other, a batch of
    # heartbeats could wait for us while we wait for it.
    everybody = [*leaving, *(worker_id for ids in of_classes.values() for worker_id in ids)]
    await roster.lock(connection, {*everybody, *assignments})
    await roster.assign(connection, assignments)
    if decision.new_workers:
        new_workers = [(worker_id, decision.assignments[worker_id]) for worker_id in decision.new_workers]
        await roster_service.request(connection, pool, starts, due_starts, new_workers)
    drained_ids = await _drain(connection, leaving, decision.reasons[0])
    drained = len(drained_ids)
    drained_of_classes: dict[str, int] = {}
    for host in pool.classes:
        if (plan := decision.class_plans.get(host.host)) is not None:
            starts = {**starts, host: plan.start}
            gone = await _drain(connection, of_classes[host.host], plan.reasons[0])
            drained_ids |= gone
            if gone:
                drained_of_classes[host.host] = len(gone)
    resized_hosts = await _resize(connection, pool, due_starts, starts, drained_ids, _kept_with_blocks(decision, pool))
    if any(starts.values()) or drained_ids:
        notify.note(connection, notify.FLEET, notify.LAUNCHES)
    return AppliedChanges(
        started=len(decision.new_workers),
        drained=drained,
        assigned=len(assignments),
        resized=resized_hosts,
        drained_of_classes=drained_of_classes,
    )


async def _drain(connection: AsyncConnection, leaving: Sequence[UUID], reason: str) -> set[UUID]:
    if not leaving:
        return set()
    workers = await directives.direct(connection, WorkerSelector(ids=leaving), Directive.DRAIN, reason)
    return {worker.worker_id for worker in workers}


def _new_assignments(decision: Decision, workers: Sequence[Worker]) -> dict[UUID, Assignment]:
    """Assignments of the workers that have another one today; compared as tuples, since nearly all have theirs."""
    return {
        worker.id: assignment
        for worker in workers
        if (assignment := decision.assignments.get(worker.id)) is not None and worker[ASSIGNED_FIELDS] != assignment
    }


def _class_leavers(decision: Decision, pool: Pool, host: Host) -> list[UUID]:
    plan = decision.class_plans.get(host.host)
    return [] if plan is None else _leavers(plan, pool.part(host), host.max_size or 0)


def _leavers(plan: ScalingPlan, pool: Pool, max_workers: int) -> list[UUID]:
    """Ids of the workers to drain, those of the highest slots first, and those of a block together.

    One that no provisioner of ours started goes only after all others, and only while there are more than allowed.
    """
    if plan.current <= plan.target:
        return []
    is_over = plan.current > max_workers
    if pool.has_blocks:
        return _leavers_by_group(plan, pool, is_over=is_over)
    candidates = [worker for worker in pool.workers if is_over or worker.provisioner is not None]
    # The highest slots leave first, so that the slots in use stay dense.
    candidates.sort(key=lambda worker: (worker.provisioner is None, -(worker.slot or 0)))
    starting = [worker.id for worker in candidates if worker.state == WorkerState.STARTING]
    idle = [worker.id for worker in candidates if worker.state == WorkerState.READY and not worker.busy]
    busy = [worker.id for worker in candidates if worker.state == WorkerState.READY and worker.busy]
    return [*starting[: plan.remove_starting], *idle[: plan.remove_idle], *busy[: plan.drain_busy]]


def _leavers_by_group(plan: ScalingPlan, pool: Pool, *, is_over: bool) -> list[UUID]:
    candidates, count = pool.removable_groups, plan.remove_idle + plan.drain_busy
    # Above a bound whoever is too many leaves, be it after a task.
    is_bound = is_over or plan.drain_busy > 0
    if is_bound:
        candidates = [group for group in pool.groups if group[0].provisioner is not None]
    chosen = groups_to_remove(worker_groups(candidates), count, whatever_they_do=is_bound)
    leaving: list[UUID] = [worker.id for index in chosen for worker in candidates[index]]
    if is_over:
        others = [group[0] for group in pool.groups if group[0].provisioner is None]
        elsewhere = [worker.id for worker in others if worker.state == WorkerState.READY]
        leaving += elsewhere[: count - len(leaving)]
    return leaving


def _kept_with_blocks(decision: Decision, pool: Pool) -> dict[Host, int]:
    """Workers above the size of a host that stay for others of their block: its replacement may be a smaller one."""
    plans = {host: decision.class_plans.get(host.host) for host in pool.classes}
    with_blocks = (host for host in pool.usual.hosts if any(worker.block for worker in pool.of(host)))
    if (first := next(with_blocks, None)) is not None:
        plans[first] = decision.plan
    return {host: plan.kept_with_blocks for host, plan in plans.items() if plan is not None}


async def _resize(
    connection: AsyncConnection,
    pool: Pool,
    due_starts: DueStarts,
    starts: Mapping[Host, int],
    drained_ids: set[UUID],
    kept_with_blocks: Mapping[Host, int],
) -> int:
    """Let every host keep the workers that stay, are due and are new; return the number of hosts that changed."""
    resized_hosts = 0
    for host in pool.hosts:
        # A host must keep what it is about to start, or its own loop would drain it as surplus.
        staying = sum(w.state != WorkerState.DRAINING and w.id not in drained_ids for w in pool.of(host))
        size = max(0, staying + due_starts[host] + starts.get(host, 0) - kept_with_blocks.get(host, 0))
        if size != host.size:
            await hosts.resize(connection, host, size)
            resized_hosts += 1
    return resized_hosts
