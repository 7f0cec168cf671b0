"""Values by which a service can work: the database takes others into the columns of a checkpoint as well."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import GenericAlias
from typing import Any, get_args

from app.kernel import resources
from app.kernel.agents import AgentType
from app.kernel.lanes import Priority

# Beyond it programs tell neighbouring integers apart no more, and sums come to the ends of what the database holds.
_MOST = 2**53
# The ends of the calendar are read as infinity. The API takes the years between them in any zone, so up to a day more.
_FIRST, _LAST = datetime(1, 12, 31, tzinfo=UTC), datetime(9999, 1, 2, tzinfo=UTC)


def find_odd_values(
    part: str, rows: Sequence[Mapping[str, Any]], types: Mapping[str, type | GenericAlias]
) -> Iterator[str]:
    """A sentence for each value that a service cannot read; types are Python's, as `list[float]` of an array."""
    for row in rows:
        for name, value in row.items():
            item_types = get_args(types[name])
            is_usable = _BY_NAME.get(name) or _SCALARS.get(item_types[0] if item_types else types[name])
            values = value if item_types and isinstance(value, list) else [value]
            if is_usable and value is not None and not all(map(is_usable, values)):
                yield f"{name} of its {part} cannot be read: {value!r:.60}"


def _is_moment(value: Any) -> bool:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return moment.tzinfo is not None and _FIRST <= moment <= _LAST


def _is_start(value: Any) -> bool:
    return value == "infinity" or _is_moment(value)


def _is_amount(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _MOST


def _is_count(value: Any) -> bool:
    return _is_amount(value) and value >= 0


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_divisor(value: Any) -> bool:
    return _is_amount(value) and value > 0


def _is_limit(value: Any) -> bool:
    return _is_amount(value) and value >= 1


def _is_agent_type(value: Any) -> bool:
    return value in list(AgentType)


def _is_priority(value: Any) -> bool:
    return value in list(Priority)


def _is_base(value: Any) -> bool:
    # Of weights a document; of a hold a number, below 0 where tasks that were let through have never begun.
    return _is_record(value) or _is_amount(value)


def _are_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(map(_is_text, value.values()))


def _is_progress(value: Any) -> bool:
    message = value.get("message") if isinstance(value, dict) else None
    return isinstance(value, dict) and _is_amount(value.get("percent")) and isinstance(message, str | None)


def _is_division(value: Any) -> bool:
    return isinstance(value, dict) and all(_is_amount(value.get(agent)) for agent in AgentType)


def _is_text_of_record(value: Any) -> bool:
    try:
        return _is_record(json.loads(value))
    except (TypeError, ValueError, RecursionError):
        return False


def _are_resources(value: Any) -> bool:
    try:
        resources.read(value)
    except (AttributeError, TypeError, ValueError, OverflowError):
        return False
    return True


def _is_error(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("code")) and _is_text(value.get("message"))


def _is_record(value: Any) -> bool:
    return isinstance(value, dict)


_SCALARS: Mapping[Any, Callable[[Any], bool]] = {
    datetime: _is_moment,
    float: _is_amount,
    int: _is_count,
    str: _is_text,
}
_BY_NAME: Mapping[str, Callable[[Any], bool]] = {
    # Infinity while its goal holds the task back.
    "run_at": _is_start,
    "agent_type": _is_agent_type,
    "priority": _is_priority,
    "submitted_priority": _is_priority,
    **dict.fromkeys(("requests_per_window", "tokens_per_window", "window_seconds", "max_concurrency"), _is_limit),
    **dict.fromkeys(("burst", "token_burst"), _is_limit),
    **dict.fromkeys(("weight", "money_budget", "token_budget"), _is_divisor),
    **dict.fromkeys(("input_price", "output_price"), _is_count),
    "weights": _is_division,
    "resources": _are_resources,
    "labels": _are_texts,
    "payload": _is_record,
    # It goes as it is into the answer to a request for a lease.
    "payload_text": _is_text_of_record,
    "checkpoint": _is_record,
    "progress": _is_progress,
    "error": _is_error,
    "shifts": _is_record,
    "base": _is_base,
    "callers": _is_record,
    "worker_tats": _is_record,
}
