"""What a worker is told, and never above what there is."""

from hypothesis import given
from hypothesis import strategies as st

from app.admin.rules.config import LimitsConfig
from app.kernel.agents import AgentType
from app.workers.rules.assignment import Assignment, in_force, version

amounts = st.none() | st.floats(0.1, 64)
assignments = st.builds(
    Assignment,
    agent=st.none() | st.sampled_from(AgentType),
    memory_gb=amounts,
    cpu_cores=amounts,
    compute_seconds=st.none() | st.floats(600, 3600),
)
limits = st.builds(LimitsConfig, max_memory_per_worker_gb=st.floats(1, 64), max_cpu_per_worker=st.floats(0.5, 16))


@given(decided=assignments, limits=limits, memory_gb=amounts, cpu_cores=amounts)
def test_never_more_than_the_worker_has_or_the_configuration_allows_or_was_decided(
    decided: Assignment, limits: LimitsConfig, memory_gb: float | None, cpu_cores: float | None
) -> None:
    told = in_force(decided, limits, memory_gb=memory_gb, cpu_cores=cpu_cores)
    memory = [decided.memory_gb, memory_gb, limits.max_memory_per_worker_gb]
    cores = [decided.cpu_cores, cpu_cores, limits.max_cpu_per_worker]
    assert told.memory_gb == min(amount for amount in memory if amount is not None)
    assert told.cpu_cores == min(amount for amount in cores if amount is not None)
    assert (told.agent, told.compute_seconds) == (decided.agent, decided.compute_seconds)


@given(one=assignments, other=assignments)
def test_a_version_names_the_values_and_nothing_else(one: Assignment, other: Assignment) -> None:
    assert version(one) == version(one._replace())
    assert (version(one) == version(other)) == (one == other)
