"""Requests and offers: who can run what, in which order, and in which words."""

import pytest

from app.kernel.agents import AgentType
from app.kernel.lanes import SPAN, Lane, Priority, class_of
from app.kernel.resources import MAX_CLASSES, NOTHING, Resources, in_words, parse

BIG = Resources(cores=8, memory_gb=64, gpus=2, named=frozenset({("microscope", 1)}))


@pytest.mark.parametrize(
    ("request_", "missing"),
    [
        (NOTHING, {}),
        (Resources(cores=8, memory_gb=64, gpus=2), {}),
        (Resources(cores=8.5), {"cores": 8}),
        (Resources(gpus=3, memory_gb=65), {"gpus": 2, "memory_gb": 64}),
        (Resources(named=frozenset({("microscope", 2)})), {"microscope": 1}),
        (Resources(named=frozenset({("laser", 1)})), {"laser": 0}),
    ],
)
def test_an_offer_covers_what_is_not_more_than_it(request_: Resources, missing: dict[str, float]) -> None:
    assert BIG.missing(request_) == missing
    assert BIG.covers(request_) is not bool(missing)


def test_the_text_is_the_same_for_equal_requests_and_leads_back() -> None:
    one = Resources(memory_gb=16, gpus=1, named=frozenset({("b", 1), ("a", 2)}))
    assert one.text() == Resources(named=frozenset({("a", 2), ("b", 1)}), gpus=1, memory_gb=16.0).text()
    assert parse(one.text()) == one
    assert NOTHING.text() == "{}"


def test_what_few_workers_have_ranks_higher() -> None:
    order = [
        Resources(gpus=1),
        Resources(named=frozenset({("laser", 1)})),
        Resources(memory_gb=512),
        Resources(cores=64),
    ]
    assert sorted(order, key=lambda request: request.rank, reverse=True) == order


def test_amounts_in_words() -> None:
    assert in_words(Resources(gpus=1, cores=2.5, memory_gb=16).amounts()) == "1 GPU, 16 GB of memory and 2.5 cores"
    assert in_words(Resources(gpus=2, named=frozenset({("laser", 1)})).amounts()) == "2 GPUs and 1 of laser"
    assert in_words({}) == ""


def test_the_tags_of_a_class_are_a_range_of_their_own() -> None:
    lanes = [
        Lane(agent_type=AgentType.RANKING, priority=Priority.LOW, resource_class=number)
        for number in range(MAX_CLASSES + 1)
    ]
    for lane in lanes:
        for step in (0.0, 0.5, 1e9, SPAN - 0.01):
            assert class_of(lane.bottom + step) == lane.resource_class
            assert lane.bottom + step < lane.ceiling
    assert [lane.ceiling for lane in lanes[1:]] == [lane.bottom for lane in lanes[:-1]]
