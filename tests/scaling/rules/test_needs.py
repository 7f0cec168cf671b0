"""Which pool a task is a need of: whoever offers least of what can run it."""

import json

import pytest

from app.kernel.agents import AgentType
from app.kernel.resources import NOTHING, Resources
from app.scaling.rules.needs import USUAL, Pools, destination
from app.workers.rules.classes import WorkerClass, read

_SMALL, _LARGE = Resources(cores=1, memory_gb=2), Resources(cores=8, memory_gb=32)
_GPU, _TWO = Resources(gpus=1), Resources(gpus=2)
_CLASSES = {
    "gpu": WorkerClass(agents=frozenset([AgentType.GENERATION]), offer=Resources(cores=4, memory_gb=16, gpus=1)),
    "two": WorkerClass(offer=Resources(cores=8, memory_gb=64, gpus=2)),
    "ranking": WorkerClass(agents=frozenset([AgentType.RANKING]), offer=Resources(cores=2, memory_gb=4)),
    "scope": WorkerClass(offer=Resources(cores=1, memory_gb=1, named=frozenset([("scope", 1)]))),
}
_ALL = Pools(usual={agent: [_SMALL] for agent in AgentType}, classes=_CLASSES)


@pytest.mark.parametrize(
    ("agent", "request_", "place"),
    [
        (AgentType.GENERATION, NOTHING, USUAL),
        (AgentType.GENERATION, _SMALL, USUAL),
        (AgentType.GENERATION, _GPU, "gpu"),
        (AgentType.GENERATION, _TWO, "two"),
        # A class for certain agents has what they ask for, before the pool for all.
        (AgentType.RANKING, NOTHING, "ranking"),
        (AgentType.RANKING, Resources(cores=2), "ranking"),
        (AgentType.RANKING, _GPU, "two"),
        (AgentType.RANKING, Resources(named=frozenset([("scope", 1)])), "scope"),
        (AgentType.RANKING, Resources(named=frozenset([("scope", 2)])), None),
        # More than the usual pool and any class without GPUs offers.
        (AgentType.GENERATION, Resources(cores=4), "gpu"),
        (AgentType.EVOLUTION, Resources(memory_gb=64), "two"),
        (AgentType.EVOLUTION, Resources(memory_gb=65), None),
    ],
)
def test_a_task_belongs_to_those_who_offer_least_of_what_can_run_it(
    agent: AgentType, request_: Resources, place: str | None
) -> None:
    assert destination(agent, request_, _ALL) == place


def test_of_what_the_usual_workers_offer_is_not_known_only_what_no_class_serves_is_theirs() -> None:
    pools = Pools(usual=None, classes=_CLASSES)
    assert destination(AgentType.GENERATION, _GPU, pools) == "gpu"
    assert destination(AgentType.GENERATION, Resources(gpus=4), pools) == USUAL
    assert destination(AgentType.GENERATION, NOTHING, pools) == USUAL
    assert destination(AgentType.RANKING, NOTHING, pools) == "ranking"


def test_what_nobody_serves_stays_with_the_usual_pool_which_says_so() -> None:
    only = {"ranking": _CLASSES["ranking"]}
    pools = Pools(usual={AgentType.GENERATION: [_SMALL, _LARGE]}, classes=only)
    assert destination(AgentType.EVOLUTION, NOTHING, pools) == USUAL
    assert destination(AgentType.RANKING, NOTHING, pools) == "ranking"
    assert destination(AgentType.RANKING, _GPU, pools) is None
    assert destination(AgentType.GENERATION, _LARGE, pools) == USUAL
    assert destination(AgentType.GENERATION, _GPU, pools) is None


@pytest.mark.parametrize("worker_class", [*_CLASSES.values(), WorkerClass()])
def test_a_class_is_read_back_from_its_text(worker_class: WorkerClass) -> None:
    assert read(json.loads(worker_class.text())) == worker_class
