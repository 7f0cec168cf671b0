"""Whether the dependencies of a batch can be met at all."""

from collections.abc import Mapping, Sequence
from uuid import UUID

Edges = Mapping[UUID, Sequence[UUID]]


def find_cycle(edges: Edges) -> list[UUID] | None:
    """A cycle among `task -> the tasks it waits for`, first task repeated at its end; None where there is none.

    Depth-first without recursion, so linear in the number of edges and safe for long chains.
    """
    done: set[UUID] = set()
    for start in edges:
        cycle = _cycle_from(start, edges, done)
        if cycle is not None:
            return cycle
    return None


def _cycle_from(start: UUID, edges: Edges, done: set[UUID]) -> list[UUID] | None:
    if start in done:
        return None
    path, on_path = [start], {start}
    waits = [iter(edges[start])]
    while path:
        following = next(waits[-1], None)
        if following is None:
            done.add(path[-1])
            on_path.discard(path.pop())
            waits.pop()
        elif following in on_path:
            return [*path[path.index(following) :], following]
        elif following in edges and following not in done:
            path.append(following)
            on_path.add(following)
            waits.append(iter(edges[following]))
    return None
