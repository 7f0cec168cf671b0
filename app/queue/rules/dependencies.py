"""Search for cycles among the dependencies of a batch: tasks on a cycle could never run."""

from collections.abc import Mapping, Sequence
from uuid import UUID

Edges = Mapping[UUID, Sequence[UUID]]


def find_cycle(edges: Edges) -> list[UUID] | None:
    """A cycle in the graph `task -> tasks it waits for`, with its first task repeated at the end, or None.

    Depth-first without recursion, so linear in the number of edges and safe for long chains.
    """
    acyclic: set[UUID] = set()
    for start in edges:
        cycle = _cycle_from(start, edges, acyclic)
        if cycle is not None:
            return cycle
    return None


def _cycle_from(start: UUID, edges: Edges, acyclic: set[UUID]) -> list[UUID] | None:
    if start in acyclic:
        return None
    path, on_path = [start], {start}
    # One iterator for each task on the path stands in for the call stack.
    branches = [iter(edges[start])]
    while path:
        successor = next(branches[-1], None)
        if successor is None:
            acyclic.add(path[-1])
            on_path.discard(path.pop())
            branches.pop()
        elif successor in on_path:
            return [*path[path.index(successor) :], successor]
        elif successor in edges and successor not in acyclic:
            path.append(successor)
            on_path.add(successor)
            branches.append(iter(edges[successor]))
    return None
