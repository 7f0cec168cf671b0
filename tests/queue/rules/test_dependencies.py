"""Cycles are found and named, in time linear in the edges."""

from itertools import pairwise
from uuid import UUID

from hypothesis import given
from hypothesis import strategies as st

from app.queue.rules.dependencies import find_cycle


def _id(number: int) -> UUID:
    return UUID(int=number)


graphs = st.dictionaries(st.integers(0, 12), st.lists(st.integers(0, 15), max_size=4), max_size=12)


@given(graph=graphs)
def test_what_is_named_is_a_cycle(graph: dict[int, list[int]]) -> None:
    edges = {_id(task): [_id(on) for on in waits] for task, waits in graph.items()}
    cycle = find_cycle(edges)
    if cycle is not None:
        assert cycle[0] == cycle[-1]
        assert all(following in edges[task] for task, following in pairwise(cycle))


@given(order=st.permutations(range(10)), graph=graphs)
def test_without_edges_back_there_is_none_and_one_edge_back_makes_one(
    order: list[int], graph: dict[int, list[int]]
) -> None:
    forward = {_id(n): [_id(on) for on in graph.get(n, []) if on < n] for n in order}
    assert find_cycle(forward) is None
    chain = {_id(n): [_id(n - 1)] if n else [_id(9)] for n in order}
    assert find_cycle(chain) is not None


def test_a_task_that_waits_for_itself() -> None:
    assert find_cycle({_id(1): [_id(1)]}) == [_id(1), _id(1)]


def test_a_chain_of_a_hundred_thousand_needs_no_deep_stack() -> None:
    chain = {_id(n): [_id(n + 1)] for n in range(100_000)}
    assert find_cycle(chain) is None
