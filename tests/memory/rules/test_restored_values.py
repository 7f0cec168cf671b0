"""Values of a checkpoint that the database takes and by which no service can work."""

from datetime import datetime
from types import GenericAlias
from typing import Any

import pytest

from app.kernel.agents import AgentType
from app.memory.rules.restored_values import find_odd_values

_TYPES: dict[str, type | GenericAlias] = {
    "at": datetime,
    "run_at": datetime,
    "weight": float,
    "tag": float,
    "retry_delays": GenericAlias(list, float),
    "seq": int,
    "base": int,
    "models": GenericAlias(list, str),
    "agent_type": str,
    "priority": int,
    "window_seconds": float,
    "input_price": float,
    "labels": dict,
    "progress": dict,
    "resources": dict,
    "value": dict,
    "payload_text": str,
    "shifts": dict,
    "error": dict,
    "weights": dict,
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("at", "2026-12-01T04:43:30.5187+05:30"),
        ("at", None),
        ("at", "0001-12-31T10:00:00+00:00"),
        ("at", "9999-01-01T13:59:59.999999+00:00"),
        ("run_at", "infinity"),
        ("tag", -1.5),
        ("retry_delays", [0, 1.5]),
        ("retry_delays", []),
        ("seq", 2**53),
        ("base", -1),
        ("models", ["small"]),
        ("agent_type", "ranking"),
        ("priority", 4),
        ("labels", {"a": "b"}),
        ("progress", {"percent": 40, "message": None}),
        ("resources", {"gpus": 1, "named": {"microscope": 2}}),
        ("value", [["anything"], {"a": None}]),
        ("payload_text", '{"x": 1}'),
        ("error", {"code": "timeout", "message": "too slow", "retryable": True}),
        ("shifts", {}),
        ("weights", dict.fromkeys(AgentType, 0.1)),
    ],
)
def test_what_a_service_has_written_can_be_read(name: str, value: Any) -> None:
    assert list(find_odd_values("tasks", [{name: value}], _TYPES)) == []


_ODD_VALUES: dict[str, list[Any]] = {
    "at": [
        *("infinity", "-infinity", "294276-12-31 23:59:59+00", "0001-01-01 00:00:00 BC", "9999-12-31T23:59:59+00:00"),
        *("2026-12-01", 0, ["2026-12-01T04:43:30"]),
    ],
    "weight": [0, -1],
    "tag": [[1.5], "NaN", "Infinity", float("nan"), 1e308, 10**400, True, [[1]]],
    "retry_delays": [["NaN"], [None], [[1]]],
    "models": [[["small"]], [None], 1],
    "seq": [-1, 2**63 - 1, True],
    "base": [2**63 - 1, -(2**63), "x"],
    "agent_type": ["x", ["ranking"]],
    "priority": [0, 5, "high"],
    "window_seconds": [0.5, "NaN"],
    "input_price": [-0.1],
    "labels": ["x", ["x"], {"a": 1}, {"a": None}],
    "progress": [{}, {"percent": "NaN"}, {"percent": 1, "message": 1}, []],
    "resources": ["x", {"gpus": "many"}, {"gpus": {}}, {"named": ["x"]}, {"cores": None}],
    "payload_text": ["", "{", "[]", "[" * 100_000],
    "error": [{}, {"code": "x"}, {"code": 1, "message": "x"}, []],
    "shifts": [[]],
    "weights": [{}, {"ranking": 1.0}, dict.fromkeys(AgentType, "NaN")],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, odd in _ODD_VALUES.items() for value in odd])
def test_what_none_has_written_is_told_by_its_column(name: str, value: Any) -> None:
    (sentence,) = find_odd_values("tasks", [{"id": 1}, {name: value}], {**_TYPES, "id": int})
    assert sentence.startswith(f"{name} of its tasks cannot be read: ")
    assert len(sentence) < 200
