"""Blocks of workers: jobs of a batch scheduler that end at their walltime, and which of them come, stay and go."""

import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

# Of the workers of a block, with its launch token.
BLOCK_LABEL = "block"
_NAME = re.compile(
    r"convener-(?P<pool>.+)-(?P<submitted>[0-9a-f]{8})(?P<token>[0-9a-f]{8})-(?P<nodes>\d+)x(?P<slots>\d+)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPolicy:
    """Size and times of blocks: `slots` workers on each of `min_nodes` to `max_nodes` nodes.

    A replacement is asked for `lead_seconds` before a block ends, earlier where blocks lately had to wait longer, but
    never before half of its time is over. `start_seconds` after its start a job counts as one whose workers are there,
    and `drain_seconds` before its end they begin to leave. After a refusal nothing is submitted for
    `first_rest_seconds`, after each further one for twice as long, `longest_rest_seconds` at most. A job that ends by
    itself within `early_seconds` counts as one.
    """

    slots: int
    min_nodes: int
    max_nodes: int
    walltime_seconds: int
    lead_seconds: float
    drain_seconds: float
    start_seconds: float = 10.0
    # Each refusal is a call of the scheduler that everybody shares, and what it says seldom changes by itself.
    first_rest_seconds: float = 5.0
    longest_rest_seconds: float = 120.0
    early_seconds: float = 60.0

    @property
    def size(self) -> int:
        """Workers of the smallest block."""
        return self.slots * self.min_nodes

    def lost_nodes(self, nodes: int, left: int | None) -> int:
        """Nodes to replace of a block that has so many left of them: what is left counts as whole smallest blocks."""
        return 0 if left is None or left >= nodes else nodes - left // self.min_nodes * self.min_nodes


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A job that has not ended: its launch token, the id of its job, and what its name and its scheduler tell.

    One that is stuck does not start by itself. Times are seconds since 1970. One that is suspended, or has lost so many
    nodes, has their workers no more, and others take their places. One that is ending goes whatever is done.
    """

    token: str
    job_id: str
    nodes: int
    slots: int
    submitted_at: float
    is_running: bool
    reason: str = ""
    is_stuck: bool = False
    started_at: float | None = None
    ends_at: float | None = None
    is_suspended: bool = False
    is_ending: bool = False
    lost_nodes: int = 0

    @property
    def places(self) -> int:
        """Number of its workers with those of lost nodes, of which some may be there still."""
        return self.nodes * self.slots

    @property
    def size(self) -> int:
        """Number of its workers."""
        return (self.nodes - self.lost_nodes) * self.slots

    @property
    def queue_seconds(self) -> float | None:
        """For how long it waited for its nodes; None while it does."""
        return None if self.started_at is None else max(0.0, self.started_at - self.submitted_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """Blocks by what becomes of them.

    Those that stay count for the size of the pool. Those that expire are replaced; they serve on until their
    replacements run, and then are those that leave.
    """

    staying: Sequence[Block] = ()
    expiring: Sequence[Block] = ()
    leaving: Sequence[Block] = ()

    @property
    def capacity(self) -> int:
        """Workers of the blocks that stay, be they queued."""
        return sum(block.size for block in self.staying)


def name_block(pool: str, token: str, nodes: int, slots: int) -> str:
    """The name of the job of a block, by which a control plane that starts anew finds it."""
    return f"convener-{pool}-{token}-{nodes}x{slots}"


def make_token(now: float, random: str) -> str:
    """A launch token: the time of the submit, and 8 random hexadecimal digits."""
    return f"{int(now) & 0xFFFFFFFF:08x}{random}"


def is_token(text: str) -> bool:
    """Whether this is the form of a launch token."""
    return re.fullmatch(r"[0-9a-f]{16}", text) is not None


def read_name(name: str, pool: str) -> tuple[str, float, int, int] | None:
    """Token, time of the submit, nodes and slots in the name of a job; None where it is none of this pool."""
    match = _NAME.fullmatch(name)
    if match is None or match["pool"] != pool:
        return None
    submitted = int(match["submitted"], 16)
    return match["submitted"] + match["token"], float(submitted), int(match["nodes"]), int(match["slots"])


def member_names(pool: str, block: Block) -> list[str]:
    """The names of the workers of a block, those of lost nodes as well, as nobody tells which these are."""
    prefix = member_prefix(pool, block.token)
    return [f"{prefix}-{node}-{slot}" for node in range(block.nodes) for slot in range(block.slots)]


def member_prefix(pool: str, token: str) -> str:
    """The beginning of the names of all workers of a block."""
    return f"{pool}-{token}"


def plan_blocks(blocks: Collection[Block], policy: BlockPolicy, size: int, now: float) -> BlockPlan:
    """Sort blocks by what becomes of them; `size` is the number of workers that was asked for last, 0: none yet.

    One that expires leaves only when enough others run, so that the pool is not smaller for a moment.
    """
    ending = [block for block in blocks if block.is_ending]
    lasting = (block for block in blocks if not block.is_ending)
    all_blocks = sorted(lasting, key=lambda block: (block.ends_at or math.inf, block.token))
    lead = lead_seconds(all_blocks, policy)
    expiring = [block for block in all_blocks if block.is_running and _expires(block, now + lead)]
    staying = [block for block in all_blocks if block not in expiring]
    capacity = sum(block.size for block in staying)
    running = sum(b.size for b in staying if b.is_running and now - (b.started_at or now) >= policy.start_seconds)
    # What is beyond whole blocks was asked for nobody, see `nodes_to_ask_for`.
    need = max(size // policy.size * policy.size, capacity)
    serving, leaving = list(expiring), ending
    for block in expiring:
        rest = sum(other.size for other in serving if other is not block and not other.is_suspended)
        is_replaced = need > 0 and running + rest >= need
        if is_replaced or (block.ends_at or math.inf) - now <= policy.drain_seconds:
            serving.remove(block)
            leaving.append(block)
    return BlockPlan(staying=staying, expiring=serving, leaving=leaving)


def _expires(block: Block, by: float) -> bool:
    return block.is_suspended or not block.size or (block.ends_at is not None and block.ends_at <= by)


def lead_seconds(blocks: Iterable[Block], policy: BlockPolicy) -> float:
    """For how long before its end a block is replaced: half as long again as those that run had to wait, at least."""
    waits = [block.queue_seconds for block in blocks if block.queue_seconds is not None]
    longest = 1.5 * max(waits, default=0.0)
    return min(policy.walltime_seconds / 2, max(policy.lead_seconds, longest))


def rest_seconds(refusals: int, policy: BlockPolicy) -> float:
    """Seconds for which nothing is submitted after so many refusals in a row: doubled each time, up to a bound."""
    return min(policy.longest_rest_seconds, policy.first_rest_seconds * 2.0 ** min(refusals - 1, 30))


def nodes_to_ask_for(missing: int, policy: BlockPolicy) -> list[int]:
    """Numbers of nodes of new blocks for so many workers, in few blocks; less than the smallest block is left out."""
    # Sizes are whole blocks, and what is beyond stands for workers that leave a place which stays.
    nodes = missing // policy.size * policy.min_nodes
    # Else what a block that ends leaves to ask for would be no whole number of them, and the pool short of the rest.
    largest = policy.max_nodes - policy.max_nodes % policy.min_nodes
    return [min(largest, nodes - taken) for taken in range(0, nodes, largest)]


def blocks_to_give_up(queued: Iterable[Block], surplus: int) -> list[Block]:
    """Queued blocks that can be cancelled without missing a worker, the newest first."""
    given_up = []
    for block in sorted(queued, key=lambda block: block.token, reverse=True):
        if block.size <= surplus:
            given_up.append(block)
            surplus -= block.size
    return given_up


def blocks_to_remove(pool: str, plan: BlockPlan, removable: Collection[str], surplus: int) -> list[Block]:
    """Whole blocks of members that may all go, `surplus` at most: queued ones before those that run.

    Those that expire are no surplus: they go when their replacements are there.
    """
    removed = []
    for block in sorted(plan.staying, key=lambda block: (block.is_running, block.ends_at or math.inf, block.token)):
        if block.size <= surplus and all(name in removable for name in member_names(pool, block)):
            removed.append(block)
            surplus -= block.size
    return removed
