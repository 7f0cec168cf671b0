"""The task as a handler receives it: the whole interface for people who write agents.

Every task starts a fresh interpreter that imports this file, so it imports nothing that costs time (dataclasses alone
would add milliseconds to each task).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from worker_agent.language_model import LanguageModel

    Json = dict[str, Any]
    Report = Callable[[Json], None]

# The largest value that the control plane accepts.
MAX_METRIC_VALUE = 1e12


def is_metric_name(name: str) -> bool:
    """Whether the name is lower case, digits and underscores, a letter first; a pattern would cost an import."""
    plain = name.replace("_", "a")
    return plain.isascii() and plain.isalnum() and name.islower() and name[0].isalpha() and len(name) <= 100


class Task:
    """One attempt at one task. Make one yourself to test a handler: `Task(agent_type="ranking", payload={...})`."""

    __slots__ = (
        "_llm",
        "_report",
        "agent_type",
        "attempt",
        "checkpoint",
        "degradation",
        "goal_id",
        "labels",
        "payload",
        "priority",
        "resources",
        "task_id",
        "timeout_seconds",
        "trace_context",
    )

    def __init__(
        self,
        *,
        agent_type: str,
        payload: Json,
        task_id: str = "",
        goal_id: str | None = None,
        attempt: int = 1,
        priority: str = "medium",
        labels: dict[str, str] | None = None,
        timeout_seconds: float = 600.0,
        checkpoint: Json | None = None,
        trace_context: str | None = None,
        degradation: Json | None = None,
        resources: Json | None = None,
        report: Report | None = None,
        llm: LanguageModel | None = None,
    ) -> None:
        self.agent_type = agent_type
        self.payload = payload
        self.task_id = task_id
        self.goal_id = goal_id
        self.attempt = attempt
        self.priority = priority
        self.labels = labels or {}
        self.timeout_seconds = timeout_seconds
        self.checkpoint = checkpoint
        self.trace_context = trace_context
        self.degradation = degradation
        self.resources = resources
        self._report = report
        self._llm = llm

    @property
    def llm(self) -> LanguageModel:
        """The language model that this worker may call: `task.llm.ask("Why?").text`."""
        if self._llm is None:
            from worker_agent.language_model import LanguageModel

            self._llm = LanguageModel()
        return self._llm

    @property
    def max_depth(self) -> int | None:
        """Deepest level allowed while resources are short; None when there is no limit."""
        return self.degradation.get("max_depth") if self.degradation else None

    @property
    def batch_factor(self) -> float:
        """Factor for the usual size of a batch; below 1 while resources are short."""
        return float(self.degradation.get("batch_factor", 1.0)) if self.degradation else 1.0

    def progress(self, percent: float, message: str | None = None, checkpoint: Json | None = None) -> None:
        """Report progress; a checkpoint is handed to the next attempt should this one fail.

        Raises ValueError when percent is outside 0..100 or the checkpoint is no JSON object of at most 10 MiB.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be within 0..100, not {percent}")
        if checkpoint is not None and not isinstance(checkpoint, dict):
            raise ValueError(f"a checkpoint is a dict, not {type(checkpoint).__name__}")
        if self._report is not None:
            self._report({"percent": percent, "message": message, "checkpoint": checkpoint})

    def quality(self, value: float) -> None:
        """Rate the result from 0 to 1; agents whose results are good get a larger share of the leases.

        The key `quality` of the result means the same; this call takes precedence. Raises ValueError outside 0..1.
        """
        if not 0 <= value <= 1:
            raise ValueError(f"quality must be within 0..1, not {value}")
        if self._report is not None:
            self._report({"quality": float(value)})

    def measure(self, name: str, value: float, *, counter: bool = False, by_goal: bool = False) -> None:
        """Record a metric: the value of a gauge, or the increase of a counter since the last call.

        Metrics are kept by minute and agent type, and by research goal with `by_goal`; their number is limited. Raises
        ValueError for a name that is not like `gpu_memory_percent`, and for an impossible value.
        """
        if not is_metric_name(name):
            raise ValueError(f"a metric is named by lower case, digits and underscores, not {name!r}")
        if not -MAX_METRIC_VALUE <= value <= MAX_METRIC_VALUE or (counter and value < 0):
            raise ValueError(f"{name}: {value} is no value for it")
        if self._report is not None:
            self._report({"measured": name, "value": float(value), "counter": counter, "by_goal": by_goal})
