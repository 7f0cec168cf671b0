"""Workloads by name or from files: the two traces that come along, synthetic ones, and exported histories."""

import csv
import gzip
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from app.kernel.agents import AgentType, agent_type
from app.scaling.simulation import synthetic
from app.scaling.simulation.workloads import Job, Workload, workload

AZURE_ASSUMPTION = "service seconds = 3 + 0.05 x GeneratedTokens + ContextTokens / 2000, which the trace does not tell"
TRACES = {"azure-code": "azure_llm_2023_code.csv.gz", "azure-conv": "azure_llm_2023_conv.csv.gz"}
MADE_UP: Mapping[str, Callable[[], Workload]] = {
    "step": synthetic.step,
    "on-off": synthetic.on_off,
    "heavy-tailed": synthetic.heavy_tailed,
    "diurnal": synthetic.diurnal,
    "mixed": synthetic.mixed_types,
    "two-lengths": synthetic.two_lengths,
    "flash-crowd": synthetic.flash_crowd,
    "batches": synthetic.batches,
}


# A task that ended within the resolution of the clock still took some time.
_MIN_SECONDS = 0.001


def read(trace: str) -> Workload:
    """A workload by name, or from a file. Raises ValueError with what is wrong and where, and OSError."""
    if trace in MADE_UP:
        return MADE_UP[trace]()
    if trace in TRACES:
        text = _unpack(files("app.scaling.simulation.data").joinpath(TRACES[trace]).read_bytes())
    else:
        text = _unpack(Path(trace).read_bytes())
    rows = list(_rows(text))
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"{trace} holds no tasks" if not rows else f"{trace} must hold objects, one for each task")
    is_azure = "GeneratedTokens" in rows[0]
    jobs = (_job(row, f"{trace}, task {number}", is_azure=is_azure) for number, row in enumerate(rows, 1))
    return workload(Path(trace).name, jobs, assumption=AZURE_ASSUMPTION if is_azure else "")


def _unpack(data: bytes) -> str:
    return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")


def _rows(text: str) -> Iterator[Any]:
    """Objects of a CSV with a header, of JSON lines, of a JSON array, or of a list that our API answered."""
    if text.lstrip()[:1] not in ("{", "["):
        return iter(csv.DictReader(text.splitlines()))
    try:
        value = json.loads(text)
    except ValueError:
        return (_line(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    if isinstance(value, dict):
        value = value.get("items", [value])
    return iter(value)


def _line(line: str, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from None


def _job(row: Mapping[str, Any], where: str, *, is_azure: bool) -> Job:
    try:
        return _azure(row) if is_azure else _history(row)
    except KeyError as error:
        raise ValueError(
            f"{where} has no {error.args[0]}; there must be arrival, service_seconds, agent_type"
        ) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{where}: {error}") from None


def _azure(row: Mapping[str, Any]) -> Job:
    seconds = 3 + 0.05 * int(row["GeneratedTokens"]) + int(row["ContextTokens"]) / 2000
    return Job(_seconds(row["TIMESTAMP"]), seconds, AgentType.GENERATION)


def _history(row: Mapping[str, Any]) -> Job:
    agent = agent_type(row["agent_type"])
    if "service_seconds" not in row and row.get("leased_at") and row.get("finished_at"):
        # A task as our API shows it.
        row = row_of(row)._asdict()
    return Job(_seconds(row["arrival"]), float(row["service_seconds"]), agent)


def _seconds(moment: Any) -> float:
    """Seconds from a number, or from a time in ISO 8601; without a zone it is UTC."""
    try:
        return float(moment)
    except ValueError:
        at = datetime.fromisoformat(moment)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()


def names() -> Iterable[str]:
    """The workloads that need no file."""
    return [*TRACES, *MADE_UP]


class Row(NamedTuple):
    """One line of the file; the names are its header."""

    arrival: str
    service_seconds: float
    agent_type: str


def rows(tasks: Iterable[Mapping[str, Any]]) -> Iterator[Row]:
    """Rows of tasks as our API lists them, in any order; tasks that did not complete are left out."""
    return (row_of(task) for task in tasks if task["state"] == "completed")


def row_of(task: Mapping[str, Any]) -> Row:
    """Row of one task that a worker has finished."""
    ran = datetime.fromisoformat(task["finished_at"]) - datetime.fromisoformat(task["leased_at"])
    # What finished before the database kept it has only the time of its submission.
    arrival = task.get("waiting_since") or task["created_at"]
    seconds = round(max(_MIN_SECONDS, ran.total_seconds()), 3)
    return Row(arrival=arrival, service_seconds=seconds, agent_type=task["agent_type"])
