"""Reads the messages of a handler's process from the message pipe."""

import json
import logging
import math
from collections.abc import Callable
from typing import Any, NoReturn

from worker_agent.failures import MAX_POSTPONEMENT_SECONDS
from worker_agent.json_weight import TOO_HEAVY, is_too_heavy
from worker_agent.task import MAX_METRIC_VALUE, is_metric_name
from worker_agent.wire import JsonObject, Postponement, Progress, TaskError

# The most memory that it believes.
MAX_MEMORY_MB = 1e9
log = logging.getLogger(__name__)


class NotAnObject(ValueError):
    """The text is not one JSON object."""


def read_json_object(text: bytes) -> JsonObject:
    """Parse one JSON object; raises NotAnObject, also for NaN, infinity, and what the control plane would not take."""
    # 10 MB of empty lists take 550 MB here, which no limit of the task counts.
    if is_too_heavy(text):
        raise NotAnObject(f"JSON {TOO_HEAVY}")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise NotAnObject(f"not JSON: {error}") from error
    if not isinstance(value, dict):
        raise NotAnObject(f"JSON, but {type(value).__name__} where an object was expected")
    return value


def read_quality(value: JsonObject) -> float | None:
    """Number from 0 to 1 under the key `quality`; None without one. Raises ValueError for anything else."""
    quality = value.get("quality")
    if quality is None:
        return None
    is_number = isinstance(quality, int | float) and not isinstance(quality, bool)
    if not is_number or not 0 <= quality <= 1:
        shown = str(quality)[:100] if is_number else type(quality).__name__
        raise ValueError(f"quality must be a number within 0..1, not {shown}")
    return float(quality)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


class HandlerMessages:
    """Newest progress, and the result or error of one handler; measurements are passed on, unreadable lines counted."""

    def __init__(self, on_measurement: Callable[[JsonObject], None] = lambda _: None) -> None:
        self._on_measurement = on_measurement
        self.result: JsonObject | None = None
        self.error: TaskError | None = None
        self.quality: float | None = None
        self.postponement: Postponement | None = None
        self.shortage: str | None = None
        """What this machine had too little of to confine the handler, which has not begun."""
        self.peak_memory_mb: float | None = None
        self.unreadable_count = 0
        self._progress: Progress | None = None
        self._is_confined = False

    def receive(self, line: bytes) -> None:
        try:
            message = read_json_object(line)
            if not self._is_of_launch(message):
                self._dispatch(message)
        # OverflowError: JSON allows whole numbers that no float can hold.
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            if not self.unreadable_count:
                log.warning("a message of the handler is left out", extra={"fields": {"why": str(error)[:300]}})
            self.unreadable_count += 1

    def take_progress(self) -> Progress | None:
        progress, self._progress = self._progress, None
        return progress

    def _is_of_launch(self, message: JsonObject) -> bool:
        """Take what is said before the handler begins, and nobody else can say; return whether it was that."""
        if self._is_confined:
            return False
        self._is_confined = "confined" in message
        if "shortage" in message:
            self.shortage = str(message["shortage"])
        return self._is_confined or self.shortage is not None

    def _dispatch(self, message: JsonObject) -> None:
        if "percent" in message:
            self._update_progress(message)
        elif "quality" in message:
            self.quality = read_quality(message)
        elif "measured" in message:
            self._on_measurement(_read_measurement(message))
        elif "result" in message:
            self.result = dict(message["result"])
        elif "error" in message:
            self.error = _read_error(message["error"])
        elif "postponed" in message:
            self.postponement = _read_postponement(message["postponed"])
        elif "peak_memory_mb" in message:
            self.peak_memory_mb = _read_size(message["peak_memory_mb"])

    def _update_progress(self, message: JsonObject) -> None:
        text, checkpoint = message.get("message"), message.get("checkpoint")
        progress = Progress(
            percent=min(100.0, max(0.0, float(message["percent"]))),
            message=None if text is None else str(text),
            checkpoint=checkpoint if isinstance(checkpoint, dict) else None,
        )
        self._progress = progress.replacing(self._progress)


def _read_measurement(message: JsonObject) -> JsonObject:
    name, value, counter = message["measured"], float(message["value"]), bool(message.get("counter"))
    if not isinstance(name, str) or not is_metric_name(name):
        raise ValueError("no name of a metric")
    if not -MAX_METRIC_VALUE <= value <= MAX_METRIC_VALUE or (counter and value < 0):
        raise ValueError("no value of a metric")
    kind = "counter" if counter else "gauge"
    return {"name": name, "kind": kind, "value": value, "by_goal": bool(message.get("by_goal"))}


def _read_size(value: Any) -> float:
    size = float(value)
    # A report with any other would be refused, however the task ended.
    if not 0 <= size <= MAX_MEMORY_MB:
        raise ValueError("no size of memory")
    return size


def _read_postponement(value: Any) -> Postponement:
    seconds = float(value["seconds"])
    if not 0 <= seconds < math.inf:
        raise ValueError("no time to wait")
    return Postponement(seconds=min(seconds, MAX_POSTPONEMENT_SECONDS), reason=str(value.get("reason") or "postponed"))


def _read_error(error: Any) -> TaskError:
    return TaskError(
        code=str(error["code"]),
        message=str(error.get("message", "")),
        retryable=bool(error.get("retryable", True)),
        detail=dict(error.get("detail") or {}),
    )
