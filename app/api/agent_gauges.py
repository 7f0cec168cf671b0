"""Gauges of what agents achieve and of the weights in force, for Prometheus."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from app.operations.agents import Agent


class AgentGauges:
    """A line for each agent; none for what is not known of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, meaning: str) -> Gauge:
            return Gauge(f"convener_agent_{name}", meaning, ["agent"], registry=registry)

        self._weight = gauge("weight", "Share of the leases in force")
        self._target = gauge("target_weight", "Where the share is headed")
        self._effectiveness = gauge("effectiveness", "Lower bound of success times quality of the last results")
        self._quality = gauge("quality", "Mean quality of the last results that were judged")
        self._gain = gauge("quality_gain", "Quality by each doubling of a task's time")

    def forget(self) -> None:
        """Tell nothing."""
        for gauge in (self._weight, self._target, self._effectiveness, self._quality, self._gain):
            gauge.clear()

    def show(self, agents: Sequence[Agent]) -> None:
        """All agents, as they were looked at."""
        for agent in agents:
            achieved = agent.achievement
            self._weight.labels(agent.agent_type.value).set(agent.weight)
            self._target.labels(agent.agent_type.value).set(agent.target_weight)
            known = (
                (self._effectiveness, achieved.effectiveness if achieved else None),
                (self._quality, achieved.quality if achieved else None),
                (self._gain, agent.quality_gain),
            )
            for gauge, value in known:
                if value is not None:
                    gauge.labels(agent.agent_type.value).set(value)
