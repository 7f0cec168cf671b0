"""Every name by which the outside world calls an agent type."""

import pytest

from app.kernel.agents import AgentType, agent_type


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        *((agent.value, agent) for agent in AgentType),
        *((f"{agent.value}_agent", agent) for agent in AgentType),
        *((agent.value.title().replace("_", ""), agent) for agent in AgentType),
        ("meta-review", AgentType.META_REVIEW),
        ("Meta_Review", AgentType.META_REVIEW),
        ("generate_hypothesis", AgentType.GENERATION),
        ("reflect_on_hypothesis", AgentType.REFLECTION),
        ("rank_hypotheses", AgentType.RANKING),
        ("evolve_hypothesis", AgentType.EVOLUTION),
        ("find_similar_hypotheses", AgentType.PROXIMITY),
    ],
)
def test_aliases(name: str, meant: AgentType) -> None:
    assert agent_type(name) is meant


@pytest.mark.parametrize("name", ["", "agent", "generation agent", "generator", "ranking\x00"])
def test_anything_else_is_refused_with_the_names_that_exist(name: str) -> None:
    with pytest.raises(ValueError, match="known are generation, reflection"):
        agent_type(name)
