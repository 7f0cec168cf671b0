"""Sections of the run, in the order in which they are measured: first what needs an empty queue."""

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

from benchmarks import (
    batch_cost,
    claim_cost,
    dashboard,
    decision_latency,
    heartbeats,
    idle_latency,
    paced,
    peer_runs,
    report,
    start_estimates,
    submit,
    throughput,
    waiting_memory,
    writes,
)
from benchmarks.backlog import Backlog
from benchmarks.chart import Curve, Level
from benchmarks.cycles import Ledger
from benchmarks.figures import Figure, Section
from benchmarks.machine import Machine
from benchmarks.percentiles import percentile
from benchmarks.processes import rss_mb
from benchmarks.progress import say
from benchmarks.testbed import Testbed, start_testbed
from benchmarks.workers import register_workers, retire_workers

_PACES = {200: None, 1_000: 25.0}
Drawing = list[Curve | Level]


@dataclass(slots=True)
class Run:
    """A run: its options, the system that most sections share, and what has been measured."""

    options: argparse.Namespace
    testbed: Testbed
    sections: list[Section] = field(default_factory=list)
    drawing: Drawing = field(default_factory=list)

    def add(self, title: str, figures: Sequence[Figure]) -> None:
        """Keep a section."""
        self.sections.append(Section(title=title, figures=figures))


async def measure(options: argparse.Namespace, machine: Machine) -> tuple[list[Section], Drawing]:
    """Measure the sections that were asked for."""
    chosen = options.only or [name for name in NAMES if name != "peers"]
    if options.peers is not None:
        chosen = [*chosen, "peers"]
    results: list[Section] = []
    async with AsyncExitStack() as running:
        shared = [name for name in SHARED if name in chosen]
        run = Run(options=options, testbed=await running.enter_async_context(start_testbed())) if shared else None
        for name in shared:
            assert run is not None
            say(name)
            await SHARED[name](run)
            _show(machine, run.sections, results)
        drawing = run.drawing if run else []
    for name in (name for name in OWN if name in chosen):
        say(name)
        results.append(await OWN[name](options))
        _show(machine, results[-1:], [])
    return results, drawing


def _show(machine: Machine, new: Sequence[Section], results: list[Section]) -> None:
    """Tell at once what has been measured, as a run is long and may be interrupted."""
    fresh = [section for section in new if section not in results]
    results += fresh
    sys.stderr.write(report.table(machine, fresh).partition("\n")[2] + "\n")


async def _idle(run: Run) -> None:
    seconds = await idle_latency.seconds_to_lease(run.testbed)
    p50, p99 = (percentile(seconds, share) * 1000 for share in (0.5, 0.99))
    figures = [
        Figure(name="p50", value=p50, unit="ms", target=5, more_is_better=False),
        Figure(name="p99", value=p99, unit="ms", target=15, more_is_better=False),
    ]
    run.add("submit to lease, idle", figures)


async def _memory(run: Run) -> None:
    empty = rss_mb(run.testbed.api)
    waiting = await waiting_memory.api_rss_mb(run.testbed)
    figures = [
        Figure(name="API", value=empty, unit="MiB"),
        Figure(name=f"API with {waiting_memory.WORKERS:,} waiting workers", value=waiting, unit="MiB"),
    ]
    run.add("memory", figures)


async def _submit(run: Run) -> None:
    count = run.options.tasks // 3
    rates = [await submit.tasks_per_second(run.testbed, count) for _ in range(run.options.rounds)]
    name = f"batches of {submit.BATCH}, {submit.CLIENTS} clients"
    figures = [Figure.of(name, rates, "tasks/s", target=30_000)]
    for clients in submit.SINGLE_CLIENTS:
        rates = [
            await submit.single_tasks_per_second(run.testbed, clients, run.options.seconds)
            for _ in range(run.options.rounds)
        ]
        figures.append(Figure.of(f"one by one, {clients} clients, a goal each", rates, "tasks/s"))
    run.add("submit over HTTP", figures)


async def _cycles(run: Run) -> None:
    options = run.options
    workers = sorted(set(options.workers))
    plan = throughput.Plan(workers=workers, rounds=options.rounds, seconds=options.seconds, tasks=options.tasks)
    sections, drawing = await throughput.measure(run.testbed, plan)
    run.sections += sections
    run.drawing += drawing


async def _batches(run: Run) -> None:
    options, values = run.options, dict[int, list[float]]()
    backlog = Backlog(testbed=run.testbed, tasks=options.tasks)
    workers = await register_workers(run.testbed, max(batch_cost.SIZES))
    for _ in range(options.rounds):
        for size in batch_cost.SIZES:
            await backlog.fill()
            cost = await batch_cost.cpu_ms(run.testbed, workers[:size], options.seconds, options.tasks)
            values.setdefault(size, []).append(cost)
    await retire_workers(run.testbed, workers)
    figures = [
        Figure.of(
            f"batches of {size}",
            costs,
            "ms/cycle",
            target=0.045 if size == batch_cost.AIMED_AT else None,
            more_is_better=False,
        )
        for size, costs in values.items()
    ]
    run.add("CPU of PostgreSQL, one connection leases and completes", figures)


async def _paced(run: Run) -> None:
    seconds = 5.0 if run.options.quick else 15.0
    figures = []
    for pace, target in _PACES.items():
        await Backlog(testbed=run.testbed, tasks=int(2 * pace * seconds)).fill()
        latencies = await paced.latencies(run.testbed, pace, seconds, Ledger())
        for share in (50, 99):
            name = f"{pace:,} cycles/s, p{share}"
            value, aim = percentile(latencies, share / 100) * 1000, target if share == 99 else None
            figures.append(Figure(name=name, value=value, unit="ms", target=aim, more_is_better=False))
    run.add("latency of cycles at a fixed pace, from when each was due", figures)


async def _peers(run: Run) -> None:
    options = run.options
    names = options.peers or list(peer_runs.PEERS)
    figures, levels = await peer_runs.measure(run.testbed, names, options.rounds, 0.2 if options.quick else 1.0)
    run.add("other queues on the same PostgreSQL, jobs that do nothing", figures)
    run.drawing += levels


async def _log(options: argparse.Namespace) -> Section:
    cost, of_goals = [await writes.measure(options.tasks, options.seconds, goals) for goals in (1, writes.GOALS)]
    cycle = f"lease and complete, {writes.WORKERS} workers"
    figures = [
        Figure(name="submit", value=cost.submit / 1024, unit="KiB/task"),
        Figure(name=cycle, value=cost.cycle / 1024, unit="KiB/task"),
        Figure(
            name="together", value=(cost.submit + cost.cycle) / 1024, unit="KiB/task", target=1.8, more_is_better=False
        ),
        Figure(
            name=f"together, of {writes.GOALS} goals", value=(of_goals.submit + of_goals.cycle) / 1024, unit="KiB/task"
        ),
        Figure(name=f"{cycle}, tasks from before the checkpoint", value=cost.old_cycle / 1024, unit="KiB/task"),
    ]
    return Section(title="write-ahead log", figures=figures)


async def _claims(options: argparse.Namespace) -> Section:
    figures = await claim_cost.measure(options.depths, options.finished)
    return Section(title="claims by depth, and after churn under an old snapshot", figures=figures)


async def _decisions(options: argparse.Namespace) -> Section:
    pending, ticks = (100_000, 50) if options.quick else (1_000_000, 200)
    figures = await decision_latency.measure(workers=1_000, pending=pending, ticks=ticks)
    return Section(title=f"decisions on the pool: 1,000 workers, {pending:,} waiting", figures=figures)


async def _heartbeats(options: argparse.Namespace) -> Section:
    figures = await heartbeats.measure(1_000, 10 if options.quick else 30)
    return Section(title="heartbeats of idle workers", figures=figures)


async def _dashboard(options: argparse.Namespace) -> Section:
    tasks, seconds = (100_000, 10.0) if options.quick else (1_000_000, 60.0)
    figures = await dashboard.measure(tasks, seconds)
    return Section(title=f"dashboard: {tasks:,} tasks wait, and as many have finished", figures=figures)


async def _estimates(_: argparse.Namespace) -> Section:
    return Section(title="estimates of starts in live bursts", figures=await start_estimates.measure())


SHARED: dict[str, Callable[[Run], Awaitable[None]]] = {
    "idle": _idle,
    "memory": _memory,
    "submit": _submit,
    "batches": _batches,
    "cycles": _cycles,
    "paced": _paced,
    "peers": _peers,
}
OWN: dict[str, Callable[[argparse.Namespace], Awaitable[Section]]] = {
    "log": _log,
    "claims": _claims,
    "decisions": _decisions,
    "heartbeats": _heartbeats,
    "dashboard": _dashboard,
    "estimates": _estimates,
}
NAMES = [*SHARED, *OWN]
