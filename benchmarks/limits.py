"""Limits of one PostgreSQL: measured on 2 cores, modelled for more. `python -m benchmarks.limits` prints the tables.

The model multiplies: processor time of a task, bytes of the log of a task, connections of a process. Of the processor
it counts the share that was reached where it was measured: there the processor time of API and PostgreSQL would allow
11,111 cycles/s, and 8,095 were reached. It does not know what only many cores show, such as waits for locks inside of
PostgreSQL: its figures are upper bounds.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil

# Processor time of a cycle, which is a result with the next task, measured through `POST /leases/exchange` with 256
# workers on 2 cores, which API, PostgreSQL and load generator shared.
API_CYCLE_MS, POSTGRES_CYCLE_MS = 0.075, 0.105
CYCLES, SUBMITS = 8_095, 24_246
SHARE = CYCLES / (2_000 / (API_CYCLE_MS + POSTGRES_CYCLE_MS))
# Of submits in batches of 500 the speed was measured alone; API and PostgreSQL are taken to share it as they do cycles.
_SUBMIT = (2_000 * SHARE / SUBMITS) / (API_CYCLE_MS + POSTGRES_CYCLE_MS)
API_MS, POSTGRES_MS = API_CYCLE_MS * (1 + _SUBMIT), POSTGRES_CYCLE_MS * (1 + _SUBMIT)
REACHED = 1 / (1 / CYCLES + 1 / SUBMITS)
# Of a task with all that follows it: between checkpoints, and right after one, when each page is written whole once.
LOG_BYTES, LOG_BYTES_AFTER_CHECKPOINT = 2_117, 5.1 * 1024
# Submitted, assigned, executing, completed.
EVENTS_OF_A_TASK = 4
# A heartbeat, as 64 idle workers sent 60 each at once, on a machine that carried much else: API, and PostgreSQL.
BEAT_API_MS, BEAT_POSTGRES_MS = 0.37, 0.076
BEAT_SECONDS = 5.0
# `app/db/database.py::Database`: the hot path, submits, what writes and what reads with what they may have besides, and
# LISTEN.
CONNECTIONS_OF_A_PROCESS = 6 + 3 + (6 + 4) + (4 + 2) + 1
# Two processes of the loops, and people with commands and backups.
OTHER_CONNECTIONS = 2 * CONNECTIONS_OF_A_PROCESS + 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """A machine for PostgreSQL alone: cores, what its disk writes of the log for hours on end, and its connections."""

    cores: int
    log_megabytes_per_second: float
    connections: int


MACHINES = (
    Machine(cores=8, log_megabytes_per_second=250, connections=400),
    Machine(cores=64, log_megabytes_per_second=1000, connections=2000),
)
TASK_SECONDS = (0.1, 1.0, 10.0, 60.0, 600.0)
BEAT_INTERVALS = (5.0, 30.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The most that one machine carries, and what ends first."""

    tasks_per_second: float
    bound: str
    api_processes: int
    connections: int

    @property
    def events_per_second(self) -> float:
        """Events that these tasks write."""
        return EVENTS_OF_A_TASK * self.tasks_per_second


def limits(machine: Machine) -> Limits:
    """Return what a machine carries where the API has machines of its own."""
    bounds = {
        "processor": machine.cores * 1000 * SHARE / POSTGRES_MS,
        "log": machine.log_megabytes_per_second * 1e6 / LOG_BYTES_AFTER_CHECKPOINT,
        "connections": (machine.connections - OTHER_CONNECTIONS) // CONNECTIONS_OF_A_PROCESS * tasks_of_a_process(),
    }
    bound = min(bounds, key=lambda name: bounds[name])
    processes = ceil(bounds[bound] / tasks_of_a_process())
    return Limits(
        tasks_per_second=bounds[bound],
        bound=bound,
        api_processes=processes,
        connections=processes * CONNECTIONS_OF_A_PROCESS + OTHER_CONNECTIONS,
    )


def tasks_of_a_process() -> float:
    """Return the tasks a second of one API process, which has one core."""
    return 1000 * SHARE / API_MS


def workers(machine: Machine, task_seconds: float, beat_seconds: float = BEAT_SECONDS) -> float:
    """Return how many workers one machine carries that are always busy with tasks of this length."""
    by_processor = machine.cores * 1000 * SHARE / (POSTGRES_MS / task_seconds + BEAT_POSTGRES_MS / beat_seconds)
    return min(by_processor, limits(machine).tasks_per_second * task_seconds)


def api_processes(count: float, task_seconds: float, beat_seconds: float = BEAT_SECONDS) -> int:
    """Return how many API processes so many busy workers need."""
    return ceil(count * (API_MS / task_seconds + BEAT_API_MS / beat_seconds) / (1000 * SHARE))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """Return the lines of a table as Markdown has them."""
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(row)} |"


def tasks_table() -> list[str]:
    """Lines of the table of tasks by machine."""
    head = ["PostgreSQL has", "tasks/s", "events/s", "log, MB/s", "ends first", "API processes", "connections"]
    rows = [["2 cores, shared with all (measured)", _about(REACHED), _about(EVENTS_OF_A_TASK * REACHED)]]
    rows[0] += [f"{REACHED * LOG_BYTES / 1e6:.0f} to {REACHED * LOG_BYTES_AFTER_CHECKPOINT / 1e6:.0f}"]
    rows[0] += ["processor", "1", str(CONNECTIONS_OF_A_PROCESS + OTHER_CONNECTIONS)]
    for machine in MACHINES:
        most = limits(machine)
        low, high = (most.tasks_per_second * size / 1e6 for size in (LOG_BYTES, LOG_BYTES_AFTER_CHECKPOINT))
        name = f"{machine.cores} cores, {machine.log_megabytes_per_second:,.0f} MB/s of log, max_connections"
        rows.append(
            [
                f"{name} {machine.connections:,} (modelled)",
                _about(most.tasks_per_second),
                _about(most.events_per_second),
                f"{low:.0f} to {high:.0f}",
                most.bound,
                str(most.api_processes),
                str(most.connections),
            ]
        )
    return list(table(head, rows))


def workers_table() -> list[str]:
    """Lines of the table of busy workers by the length of their tasks."""
    head = ["a task takes", *(f"{m.cores} cores, beats every {s:g} s" for m in MACHINES for s in BEAT_INTERVALS)]
    rows = [
        [
            f"{seconds:g} s",
            *(_about(workers(machine, seconds, beat)) for machine in MACHINES for beat in BEAT_INTERVALS),
        ]
        for seconds in TASK_SECONDS
    ]
    return list(table(head, rows))


def million_table() -> list[str]:
    """Lines of the table of what a million busy workers with tasks of ten minutes need."""
    head = ["a million workers, tasks of 600 s", *(f"beats every {seconds:g} s" for seconds in BEAT_INTERVALS)]
    count, seconds = 1_000_000, 600.0
    postgres = [count * (POSTGRES_MS / seconds + BEAT_POSTGRES_MS / beat) / 1000 / SHARE for beat in BEAT_INTERVALS]
    rows = [
        ["tasks/s", *(f"{count / seconds:,.0f}" for _ in BEAT_INTERVALS)],
        ["heartbeats/s", *(f"{count / beat:,.0f}" for beat in BEAT_INTERVALS)],
        ["cores of PostgreSQL", *(f"{cores:.0f}" for cores in postgres)],
        ["API processes", *(str(api_processes(count, seconds, beat)) for beat in BEAT_INTERVALS)],
    ]
    return list(table(head, rows))


def _about(value: float) -> str:
    """The number with two digits that say something."""
    digits = max(0, len(str(int(value))) - 2)
    return f"{int(value) // 10**digits * 10**digits:,}"


def main() -> None:
    """Print the tables."""
    print("\n\n".join("\n".join(lines) for lines in (tasks_table(), workers_table(), million_table())))


if __name__ == "__main__":
    main()
