"""Workers that can only be removed together, as those of a block: which of them go, and how many stay for the others.

A pool of blocks is too large by a whole block or not at all, and no more blocks leave it than workers may.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """Number of workers that can only be removed together, and of those among them that idle."""

    size: int
    idle: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """Groups of a pool of blocks that may leave now, and the number of workers of its smallest group of all."""

    removable: Sequence[WorkerGroup]
    smallest: int

    def kept_of(self, count: int) -> int:
        """Number of workers of so many that are to leave which stay, as others of their groups do."""
        return count - sum(self.removable[index].size for index in groups_to_remove(self.removable, count))


def groups_to_remove(groups: Sequence[WorkerGroup], count: int, *, whatever_they_do: bool = False) -> list[int]:
    """Indexes of groups of `count` workers at most in which the most idle; or of the most workers, then the idlest.

    Early groups are taken where there is a choice.
    """
    worth = [group.idle + (group.size * (count + 1) if whatever_they_do else 0) for group in groups]
    if len({group.size for group in groups}) == 1:
        order = sorted(range(len(groups)), key=lambda index: -worth[index])
        return sorted(index for index in order[: count // groups[0].size] if worth[index])
    # The knapsack problem: best[n] is the most that groups so far are worth that together have n workers at most.
    best, taken = [0] * (count + 1), list[set[int]]()
    for index, group in enumerate(groups):
        taken.append(set())
        for room in range(count, group.size - 1, -1):
            if best[room - group.size] + worth[index] > best[room]:
                best[room] = best[room - group.size] + worth[index]
                taken[index].add(room)
    chosen, room = [], count
    for index in reversed(range(len(groups))):
        if room in taken[index]:
            chosen.append(index)
            room -= groups[index].size
    return chosen[::-1]
