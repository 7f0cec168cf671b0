"""Interface of engines that keep a number of members, whose workers register by themselves.

A provisioner of `base.py` starts one process for one row of a worker. An engine (a Deployment of Kubernetes, jobs of
Slurm or PBS) is told a number, and starts members without asking anybody. To add one:

1. A class beside `kubernetes/`, with the methods of `Engine`. `app/background.py::engines_for` makes it where
   CONVENER_PROVISIONER names it; its settings have their names as a prefix.
2. Each of its workers starts with `--name` (the name of its member, unlike that of any other: the pod, or job, node
   and number) and `--labels convener-pool=KIND/NAME` (`pool_label`), with a key of the role pool, or an enrolment.
   By these the registration counts it as a member of the pool (`app/workers/service/membership.py`).
3. `state` tells what there is. `app/workers/service/engine_pool.py` asks every few seconds, and whenever a size
   changes; nothing in it may block the loop or take longer than `CALL_SECONDS` altogether.
4. `choose` picks, of the members that may go, those that the engine can be made to remove without another: a job with
   one busy node cannot go, nor can a pod that would be removed after a busy one. It has no effects.
5. `scale` makes it so. It is safe to repeat, fails where the engine has changed since `state` was read, and a crash
   anywhere in it leaves what the next turn finds.

A queue is no failed start: such a member is PENDING with a reason, and `is_failure` only where waiting does not help.
"""

from collections.abc import Sequence
from typing import Protocol

from app.workers.rules.classes import WorkerClass
from app.workers.rules.engines import EngineState

# The label of registrations that names the pool.
POOL_LABEL = "convener-pool"
# A turn, all calls of an engine together: by then the turn gives up, and nobody else begins one before.
CALL_SECONDS = 20.0


class EngineUnavailable(Exception):
    """The engine cannot be asked, or refuses; the message says why, in words that a decision can quote."""


class EngineChanged(Exception):
    """The engine is not any more as the state says; nothing was changed, or only costs of removal."""


class Engine(Protocol):
    """Keeps members; `kind` and `name` are those of its pool, `max_size` what it may have.

    Members come and go in blocks of `block_size`: sizes are rounded up to whole ones. `admits_unseen`: it removes none
    but those that it is told, so that workers may register before a turn has seen their members. `serves` makes the
    pool a class of workers, which is sized apart, by the tasks that belong to it.
    """

    kind: str
    name: str
    max_size: int
    block_size: int
    admits_unseen: bool
    serves: WorkerClass | None

    async def state(self, *, fresh: bool) -> EngineState:
        """Read what it was asked for and what it has; `fresh`: as it is now, and not as last heard of.

        Raises EngineUnavailable.
        """
        ...

    def choose(self, state: EngineState, removable: frozenset[str], surplus: int) -> Sequence[str]:
        """The members that go when the engine is made smaller, at most `surplus`, none of them not `removable`."""
        ...

    async def scale(self, state: EngineState, size: int, victims: Sequence[str]) -> None:
        """Ask for `size` members, of which these go. Raises EngineUnavailable, EngineChanged."""
        ...

    async def run(self) -> None:
        """Follow the engine until cancelled, where it announces changes; no error may end it."""
        ...

    async def close(self) -> None:
        """Release connections."""
        ...


def pool_label(kind: str, name: str) -> str:
    """The value of POOL_LABEL by which workers register as members of a pool."""
    return f"{kind}/{name}"
