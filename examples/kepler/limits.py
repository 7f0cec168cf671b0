"""Limits of the research goal; the service enforces them, and judges whether going on pays."""

from dataclasses import asdict, dataclass

from examples.supervising.task import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The constraints of the goal, by the names of the service. Quality is one over the error: 1 % more counts."""

    min_iterations: int = 3
    max_iterations: int = 25
    time_limit_seconds: float = 300.0
    patience: int = 8
    improvement_threshold: float = 0.01
    improvement_unit: str = "relative"

    def constraints(self) -> Json:
        """The limits as the service takes them; a small maximum of iterations lowers the minimum too."""
        return {**asdict(self), "min_iterations": min(self.min_iterations, self.max_iterations)}
