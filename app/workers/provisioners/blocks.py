"""Workers in blocks: an engine whose members are places in jobs of a batch scheduler.

Nothing is stored: the name of a job carries its launch token, its nodes and its slots, so that whoever starts anew
finds all blocks in the list of jobs. Of the directory of blocks it carries a digest: whoever shares that keeps the same
pool, and other control planes of the same user and host name do not. A key by which the workers of a block register is
made when its job runs, lies in a file that only our user can read, and is exchanged by each worker for one of its own.
"""

import asyncio
import hashlib
import json
import logging
import os
import secrets
import shlex
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from app.secrecy import PRIVATE_DIRECTORY, write_private
from app.workers.provisioners.block_scripts import UnusableTemplate, filled
from app.workers.provisioners.early_ends import EarlyEnds
from app.workers.provisioners.engine import POOL_LABEL, EngineUnavailable, pool_label
from app.workers.provisioners.scheduler import BatchScheduler, Job, JobRequest, JobState, SchedulerError
from app.workers.rules.blocks import (
    BLOCK_LABEL,
    Block,
    BlockPlan,
    BlockPolicy,
    blocks_to_give_up,
    blocks_to_remove,
    is_token,
    make_token,
    member_names,
    member_prefix,
    name_block,
    nodes_to_ask_for,
    plan_blocks,
    read_name,
    rest_seconds,
)
from app.workers.rules.classes import WorkerClass
from app.workers.rules.engines import EngineMember, EngineState, MemberState

log = logging.getLogger(__name__)
# A key is good for twice as long as until the next one; a file system that is shared is slow to show it.
KEY_SECONDS, _RENEW_SECONDS = 600.0, 300.0
# Of one turn; more come with the next.
_MAX_SUBMITS = 8
_KEEP_LOGS_SECONDS = 7 * 86_400.0
# A start that began longer ago was that of another worker of the same place.
_YOUNG_SECONDS = 120.0
# A refusal is told until the next try, which may be some turns after its rest, and not when nobody wants more.
_RECENT_SECONDS = 30.0
SECRETS_FILE = "secrets"
_LOGS = "logs"

# Makes the key with which the workers of the block with this token register, so many at most.
MakeKey = Callable[[str, int], Awaitable[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockLaunch:
    """The content of a job: `pilot` is its command on each node, `template` the Jinja template around it."""

    directory: Path
    pilot: Sequence[str]
    worker_arguments: Sequence[str]
    template: str
    other_secrets: Mapping[str, str]


class BlockEngine:
    """Keeps blocks of a batch scheduler."""

    serves: WorkerClass | None = None

    def __init__(
        self,
        *,
        scheduler: BatchScheduler,
        name: str,
        max_size: int,
        policy: BlockPolicy,
        launch: BlockLaunch,
        make_key: MakeKey,
        poll_seconds: float,
    ) -> None:
        """`poll_seconds`: how long the list of jobs is believed while nothing is to change."""
        self.kind = scheduler.kind
        self.name = name
        self._mark = f"{name}-{hashlib.sha256(os.fsencode(launch.directory.absolute())).hexdigest()[:8]}"
        self.max_size = max_size
        self.block_size = policy.size
        # Jobs are ended one by one.
        self.admits_unseen = True
        self._scheduler = scheduler
        self._policy = policy
        self._launch = launch
        self._make_key = make_key
        self._poll_seconds = poll_seconds
        self._blocks: Sequence[Block] = ()
        self._looked_at = float("-inf")
        self._size = 0
        # Why nothing could be submitted or lasted, how often in a row, and until when it is not tried again.
        self._refusal: str | None = None
        self._refusals = 0
        self._rests_until = float("-inf")
        self._early_ends = EarlyEnds(min(policy.early_seconds, policy.walltime_seconds / 2))
        # Of jobs whose end is told by what they have used, which is told late: the earliest end that was.
        self._ends: dict[str, float] = {}

    async def state(self, *, fresh: bool) -> EngineState:
        """The blocks and their members. Raises EngineUnavailable."""
        if fresh or time.monotonic() - self._looked_at >= self._poll_seconds:
            await self._look()
        plan = self._plan()
        members = [
            *(member for block in plan.staying for member in self._members(block, is_leaving=False)),
            *(member for block in plan.expiring for member in self._members(block, is_leaving=False)),
            *(member for block in plan.leaving for member in self._members(block, is_leaving=True)),
        ]
        is_recent = time.monotonic() < self._rests_until + _RECENT_SECONDS
        return EngineState(
            requested=plan.capacity,
            expiring=sum(member.state is not MemberState.LEAVING for member in members) - plan.capacity,
            members=members,
            refusal=self._refusal if is_recent else None,
            is_resting=self._is_resting(),
        )

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        """The members of whole blocks that may go."""
        blocks = blocks_to_remove(self.name, self._plan(), removable, surplus)
        return [name for block in blocks for name in member_names(self.name, block)]

    async def scale(self, state: EngineState, size: int, victims: Sequence[str]) -> None:
        """Cancel the blocks of the victims, and submit or cancel queued ones until the rest has this size.

        Nothing is submitted for a while after a refusal. Raises EngineUnavailable.
        """
        self._size = size
        plan, gone = self._plan(), set(victims)
        removed = [b for b in (*plan.staying, *plan.leaving) if gone.issuperset(member_names(self.name, b))]
        surplus = plan.capacity - sum(block.size for block in removed if block in plan.staying) - size
        if surplus > 0:
            queued = [block for block in plan.staying if not block.is_running and block not in removed]
            removed += blocks_to_give_up(queued, surplus)
        self._early_ends.excuse(block.job_id for block in removed)
        try:
            await self._scheduler.cancel([block.job_id for block in removed])
            await self._submit_all(nodes_to_ask_for(-surplus, self._policy)[:_MAX_SUBMITS])
        except (SchedulerError, OSError, UnusableTemplate) as error:
            raise EngineUnavailable(str(error)) from None
        finally:
            # Whatever was done of it, the list of jobs tells.
            self._looked_at = float("-inf")

    async def run(self) -> None:
        """Wait: a batch scheduler announces nothing."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Leave all blocks to run: their jobs end at their walltime, or with whoever starts anew."""

    def _plan(self) -> BlockPlan:
        return plan_blocks(self._blocks, self._policy, self._size, time.time())

    async def _look(self) -> None:
        try:
            jobs = await self._scheduler.jobs()
        except SchedulerError as error:
            # Jobs go on without it, and their workers may have to start again.
            await self._hand_over_keys(is_known=False)
            raise EngineUnavailable(str(error)) from None
        self._blocks = [block for job in jobs if (block := self._block(job)) is not None]
        self._ends = {b.job_id: b.ends_at for b in self._blocks if b.ends_at is not None}
        self._looked_at = time.monotonic()
        self._rest_after_early_ends(jobs)
        await self._hand_over_keys(is_known=True)

    def _block(self, job: Job) -> Block | None:
        read = read_name(job.name, self._mark)
        if read is None or job.state is JobState.ENDED:
            return None
        token, submitted_at, nodes, slots = read
        is_running = job.state is not JobState.QUEUED
        # Of one that waits the end is a guess, before which it may well not even begin.
        ends = (self._ends.get(job.id), job.ends_at) if is_running else ()
        return Block(
            token=token,
            job_id=job.id,
            nodes=nodes,
            slots=slots,
            submitted_at=submitted_at,
            is_running=is_running,
            reason=job.reason,
            is_stuck=job.is_stuck,
            started_at=job.started_at if is_running else None,
            ends_at=min((end for end in ends if end is not None), default=None),
            is_suspended=job.state is JobState.SUSPENDED,
            is_ending=job.state is JobState.ENDING,
            lost_nodes=self._policy.lost_nodes(nodes, job.nodes),
        )

    def _members(self, block: Block, *, is_leaving: bool) -> Iterable[EngineMember]:
        state = MemberState.READY if block.is_running else MemberState.PENDING
        is_young = block.started_at is not None and time.time() - block.started_at < _YOUNG_SECONDS
        for name in member_names(self.name, block):
            yield EngineMember(
                name=name,
                state=MemberState.LEAVING if is_leaving else state,
                # What ends by itself needs nobody to remove it.
                block=None if block.is_ending else block.token,
                created_at=datetime.fromtimestamp(block.started_at, UTC) if is_young and block.started_at else None,
                reason=self._reason(block),
                is_failure=block.is_stuck,
            )

    def _reason(self, block: Block) -> str | None:
        """Why its workers do not come; None where nobody knows."""
        if block.is_suspended:
            return f"its job is suspended by {self.kind} ({block.reason})"
        if block.is_running:
            return None
        return f"its job {'is stuck' if block.is_stuck else 'waits'} in the queue of {self.kind} ({block.reason})"

    def _is_resting(self) -> bool:
        return time.monotonic() < self._rests_until

    def _rest(self, reason: str, times: int) -> None:
        self._refusal = reason
        self._rests_until = time.monotonic() + rest_seconds(times, self._policy)

    def _rest_after_early_ends(self, jobs: Sequence[Job]) -> None:
        # One that has too few nodes from the start, as options of the site win, would be replaced at once as well.
        lasting = [block for block in self._blocks if not block.is_ending and block.size]
        ended = self._early_ends.look(lasting, self._looked_at)
        if not ended:
            return
        reasons = {job.id: job.reason for job in jobs}
        nodes = {job.id: job.nodes for job in jobs}
        few = (block for block in self._blocks if not block.size)
        reasons |= {b.job_id: f"{b.reason}, on {nodes[b.job_id]} of {b.nodes} nodes" for b in few}
        reason = reasons.get(ended[0], f"{self.kind} does not list it")
        logs = self._launch.directory / _LOGS
        self._rest(f"job {ended[0]} did not last ({reason}): see its output in {logs}", self._early_ends.count)
        log.warning("%d blocks did not last; %s", len(ended), self._refusal)

    async def _submit_all(self, sizes: Sequence[int]) -> None:
        if sizes and self._is_resting():
            raise EngineUnavailable(self._refusal)
        failures = self._early_ends.count
        # Where jobs end at once, one at a time shows whether that is over.
        for nodes in sizes[:1] if failures else sizes:
            try:
                await self._submit(nodes)
            # A turn whose commands together take too long is cancelled in the middle of one.
            except (SchedulerError, OSError, UnusableTemplate, asyncio.CancelledError) as error:
                self._refusals += 1
                self._rest(str(error) or f"{self.kind} has not taken a job in time", self._refusals)
                raise
            self._refusals = 0
            if failures:
                self._rest(self._refusal or "jobs did not last", failures)
            else:
                self._refusal = None

    async def _submit(self, nodes: int) -> None:
        token = make_token(time.time(), secrets.token_hex(4))
        name = name_block(self._mark, token, nodes, self._policy.slots)
        await asyncio.to_thread(self._make_directories)
        job_id = await self._scheduler.submit(
            JobRequest(
                name=name,
                comment=f"{POOL_LABEL}={pool_label(self.kind, self.name)} {token}",
                nodes=nodes,
                walltime_seconds=self._policy.walltime_seconds,
                script=self._script(name, token, nodes),
                log=str(self._launch.directory / _LOGS / f"{token}.log"),
            )
        )
        self._early_ends.expect(job_id, time.monotonic())
        log.info("submitted job %s as block %s with %d nodes", job_id, token, nodes)

    def _script(self, name: str, token: str, nodes: int) -> str:
        launch = self._launch
        words = [*launch.pilot, "--name", member_prefix(self.name, token), "--slots", str(self._policy.slots)]
        words += ["--secrets", str(self._secrets(token)), "--", *launch.worker_arguments]
        words += ["--labels", f"{POOL_LABEL}={pool_label(self.kind, self.name)}", f"{BLOCK_LABEL}={token}"]
        # Of no block, as it may lie where the code of handlers does.
        words += ["--hide", str(launch.directory)]
        return filled(
            launch.template,
            command=shlex.join(words),
            name=name,
            nodes=nodes,
            slots=self._policy.slots,
            walltime_seconds=self._policy.walltime_seconds,
        )

    def _secrets(self, token: str) -> Path:
        return self._launch.directory / token / SECRETS_FILE

    def _make_directories(self) -> None:
        for directory in (self._launch.directory, self._launch.directory / _LOGS):
            directory.mkdir(mode=PRIVATE_DIRECTORY, parents=True, exist_ok=True)

    async def _hand_over_keys(self, *, is_known: bool) -> None:
        """Give each block that runs a key before its last one expires. Raises EngineUnavailable.

        Where it is known which run, those of blocks that are over are taken away.
        """
        running = {block.token: block for block in self._blocks if block.is_running}
        try:
            if is_known:
                await asyncio.to_thread(self._remove_what_is_over, running.keys())
            for token in await asyncio.to_thread(self._without_key, running.keys()):
                # Each place may lose its worker once until the next key.
                key = await self._make_key(token, 2 * running[token].places)
                values = {**self._launch.other_secrets, "CONVENER_KEY": key}
                await asyncio.to_thread(_write, self._secrets(token), values)
        except OSError as error:
            raise EngineUnavailable(f"the keys of blocks cannot be written: {error}") from None

    def _without_key(self, running: Set[str]) -> list[str]:
        return sorted(token for token in running if _age(self._secrets(token)) >= _RENEW_SECONDS)

    def _remove_what_is_over(self, running: Set[str]) -> None:
        self._make_directories()
        for directory in self._launch.directory.iterdir():
            if is_token(directory.name) and directory.name not in running:
                shutil.rmtree(directory, ignore_errors=True)
        for file in (self._launch.directory / _LOGS).iterdir():
            if _KEEP_LOGS_SECONDS < _age(file) < float("inf"):
                file.unlink(missing_ok=True)


def _age(path: Path) -> float:
    try:
        return abs(time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return float("inf")


def _write(path: Path, values: Mapping[str, str]) -> None:
    path.parent.mkdir(mode=PRIVATE_DIRECTORY, exist_ok=True)
    write_private(path, json.dumps(dict(values)))
    # By our clock, as that of a file system which is shared may be minutes off.
    os.utime(path, (time.time(),) * 2)
