"""Traces from files, and drawings of what became of them."""

import gzip
import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from app.kernel.agents import AgentType
from app.scaling.rules.target import ScalingPolicy
from app.scaling.simulation import traces
from app.scaling.simulation.comparison import BASELINES, STATIC, compare, percentile
from app.scaling.simulation.drawing import svg
from app.scaling.simulation.engine import World
from app.scaling.simulation.workloads import Workload

_HISTORY = "arrival,service_seconds,agent_type\n2026-11-24T00:00:10Z,4.5,Generation\n2026-11-24T00:00:00,3,ranking\n"


def written(folder: Path, content: str | bytes) -> str:
    path = folder / "trace"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def columns(load: Workload) -> tuple[list[float], list[float], list[AgentType]]:
    return list(load.arrivals), list(load.seconds), [list(AgentType)[place] for place in load.agents]


def test_the_traces_that_come_along() -> None:
    code, conv = traces.read("azure-code"), traces.read("azure-conv")
    assert (len(code), len(conv)) == (8819, 19366)
    assert code.seconds[0] == pytest.approx(3 + 0.05 * 10 + 4808 / 2000)
    assert code.arrivals[1] == pytest.approx(0.052, abs=1e-3)
    assert "GeneratedTokens" in code.assumption


@pytest.mark.parametrize("name", traces.MADE_UP)
def test_the_made_up_ones(name: str) -> None:
    load = traces.read(name)
    assert len(load) > 100
    assert list(load.arrivals) == sorted(load.arrivals)
    assert not load.assumption


def test_a_history_of_ones_own_as_csv(tmp_path: Path) -> None:
    expected = ([0.0, 10.0], [3.0, 4.5], [AgentType.RANKING, AgentType.GENERATION])
    assert columns(traces.read(written(tmp_path, _HISTORY))) == expected
    assert columns(traces.read(written(tmp_path, gzip.compress(_HISTORY.encode())))) == expected
    assert columns(traces.read(written(tmp_path, "\ufeff" + _HISTORY))) == expected


def test_a_history_of_ones_own_as_json(tmp_path: Path) -> None:
    rows = [{"arrival": 5, "service_seconds": 2, "agent_type": "meta-review"}, {
        "agent_type": "ranking",
        "created_at": "1970-01-01T00:00:07Z",
        "leased_at": "1970-01-01T00:00:08Z",
        "finished_at": "1970-01-01T00:00:10Z",
    }]  # fmt: skip
    expected = ([0.0, 2.0], [2.0, 2.0], [AgentType.META_REVIEW, AgentType.RANKING])
    for text in ("\n".join(map(json.dumps, rows)), json.dumps(rows), json.dumps({"items": rows, "next": None})):
        assert columns(traces.read(written(tmp_path, text))) == expected


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no tasks"),
        ("arrival,service_seconds\n1,2\n", "task 1 has no agent_type"),
        ("arrival,service_seconds,agent_type\n1,2,ranking\nsoon,2,ranking\n", "task 2: .*soon"),
        ("arrival,service_seconds,agent_type\n1,2,cook\n", "unknown agent type 'cook'"),
        ("arrival,service_seconds,agent_type\n1,-2,ranking\n", "makes no sense"),
        ('{"arrival": 1, "service_seconds": null, "agent_type": "ranking"}', "task 1"),
        ("[1, 2]", "must hold objects"),
        ("{broken\n", "line 1.*Expecting"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, content: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        traces.read(written(tmp_path, content))


def test_a_drawing_is_well_formed_and_not_larger_than_a_screen_needs() -> None:
    runs = compare(traces.read("step"), ScalingPolicy(min_workers=2), World(min_workers=2), [*BASELINES, STATIC])
    drawn = svg("a <title> & more", runs)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert all(run.scaler in drawn for run in runs)
    assert len(drawn) < 300_000
    assert svg("nothing", [])


def test_percentiles_are_by_nearest_rank() -> None:
    hundred = [float(value) for value in range(1, 101)]
    assert [percentile(hundred, share) for share in (0.5, 0.95, 0.99, 1.0)] == [50, 95, 99, 100]
    assert percentile([7.0], 0.5) == 7
    assert percentile([], 0.5) == 0
