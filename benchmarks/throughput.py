"""Cycles over HTTP by the number of workers, beside the yardsticks of the same run, in rounds."""

from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace

from benchmarks import baseline, cycles, empty_route, invariants
from benchmarks.backlog import Backlog
from benchmarks.chart import Curve, Level
from benchmarks.cycles import Cycles, Ledger
from benchmarks.figures import Figure, Section
from benchmarks.percentiles import percentile
from benchmarks.progress import say
from benchmarks.relay import start_relay
from benchmarks.testbed import Testbed
from benchmarks.workers import Worker, register_workers, retire_workers

PLAIN, RELAYED, EXCHANGED = "HTTP, one task a request", "through the relay", "through the exchange"
# At these the targets are set.
_MANY, _FEWEST = 128, 32
Measure = Callable[[Sequence[Worker], float], Awaitable[Cycles]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Numbers of workers, and how often and how long each is measured with how many tasks waiting."""

    workers: Sequence[int]
    rounds: int
    seconds: float
    tasks: int


@dataclass(slots=True)
class Results:
    """Everything measured: by way and number of workers, and the yardsticks."""

    ways: defaultdict[str, defaultdict[int, list[Cycles]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    bare: list[baseline.Baseline] = field(default_factory=list)
    with_events: list[baseline.Baseline] = field(default_factory=list)
    empty_routes: defaultdict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def rates(self, way: str) -> Mapping[int, Sequence[float]]:
        """Cycles a second of each round, by number of workers."""
        return {size: [c.per_second for c in rounds] for size, rounds in self.ways[way].items()}


async def measure(testbed: Testbed, plan: Plan) -> tuple[list[Section], list[Curve | Level]]:
    """Measure all ways and yardsticks in turns; a ratio is taken within its round, whose sides had the same machine."""
    backlog, results = Backlog(testbed=testbed, tasks=plan.tasks), Results()
    workers = await register_workers(testbed, max(plan.workers))
    ledger, finished_before = Ledger(), await invariants.count_finished(testbed)
    async with AsyncExitStack() as running:
        ways = await running.enter_async_context(_ways(testbed, ledger))
        empty_port = await running.enter_async_context(empty_route.start_empty_route())
        for number in range(1, plan.rounds + 1):
            await _round(testbed, plan, backlog, results, ways, workers, empty_port, f"round {number} of {plan.rounds}")
    await retire_workers(testbed, workers)
    say("invariants")
    by_pgbench = sum(run.processed for run in (*results.bare, *results.with_events))
    broken = await invariants.check(testbed, ledger, finished_otherwise=finished_before + by_pgbench)
    return _sections(results, broken), _drawing(results)


@asynccontextmanager
async def _ways(testbed: Testbed, ledger: Ledger) -> AsyncIterator[Mapping[str, Measure]]:
    """The ways by which tasks reach workers, each while its processes run."""

    async def plain(workers: Sequence[Worker], seconds: float) -> Cycles:
        return await cycles.measure(testbed, workers, seconds, ledger)

    async with start_relay(f"http://127.0.0.1:{testbed.port}") as relay:
        behind = replace(testbed, between=[relay.process])

        async def relayed(workers: Sequence[Worker], seconds: float) -> Cycles:
            return await cycles.measure(behind, workers, seconds, ledger, relay.port)

        async def exchanged(workers: Sequence[Worker], seconds: float) -> Cycles:
            return await cycles.measure_exchange(testbed, workers, seconds, ledger)

        yield {PLAIN: plain, RELAYED: relayed, EXCHANGED: exchanged}


async def _round(
    testbed: Testbed,
    plan: Plan,
    backlog: Backlog,
    results: Results,
    ways: Mapping[str, Measure],
    workers: Sequence[Worker],
    empty_port: int,
    name: str,
) -> None:
    """Measure one way after the other, as the machine changes its speed by the minute, and yardsticks between."""
    compared = compared_sizes(plan.workers)
    for way, run in ways.items():
        for size in plan.workers:
            await backlog.fill()
            say(f"{name}: {way}, {size} workers")
            results.ways[way][size].append(await run(workers[:size], plan.seconds))
            if way == PLAIN and size in compared:
                say(f"{name}: an empty route of Starlette, {size} clients")
                rate = await cycles.pings_per_second(testbed, empty_port, size, plan.seconds)
                results.empty_routes[size].append(rate)
            if way == PLAIN and size == compared[0]:
                await _measure_pgbench(testbed, plan, backlog, results, name)


async def _measure_pgbench(testbed: Testbed, plan: Plan, backlog: Backlog, results: Results, name: str) -> None:
    for script, baselines in ((baseline.PLAIN, results.bare), (baseline.WITH_EVENTS, results.with_events)):
        await backlog.fill()
        say(f"{name}: pgbench")
        baselines.append(await baseline.measure(testbed, script, plan.seconds))


def _sections(results: Results, broken: Sequence[Figure]) -> list[Section]:
    sections = [
        Section(title=f"cycles: {way}", figures=[f for size in sizes for f in _of_size(size, sizes[size])])
        for way, sizes in results.ways.items()
    ]
    return [
        *sections,
        Section(title="yardsticks of the same run", figures=_yardsticks(results)),
        Section(title="ratios, each within its round", figures=_ratios(results)),
        Section(title="invariants, broken", figures=broken),
    ]


def _of_size(size: int, rounds: Sequence[Cycles]) -> list[Figure]:
    name = f"{size:,} workers"
    milliseconds = [[seconds * 1000 for seconds in c.latencies] for c in rounds if c.latencies]
    figures = [
        Figure.of(name, [c.per_second for c in rounds], "cycles/s"),
        *(
            Figure.of(f"{name}, p{p}", [percentile(values, p / 100) for values in milliseconds], "ms")
            for p in (50, 99)
            if milliseconds
        ),
        Figure.of(f"{name}, CPU of the API", [c.api_cpu_ms for c in rounds], "ms/cycle"),
        Figure.of(f"{name}, CPU of PostgreSQL", [c.postgres_cpu_ms for c in rounds], "ms/cycle"),
        Figure.of(f"{name}, CPU of the load generator", [c.generator_cpu_ms for c in rounds], "ms/cycle"),
    ]
    if any(c.between_cpu_ms for c in rounds):
        figures.append(Figure.of(f"{name}, CPU of the relay", [c.between_cpu_ms for c in rounds], "ms/cycle"))
    return figures


def _yardsticks(results: Results) -> list[Figure]:
    figures = []
    for name, runs in (("pgbench, lease and complete", results.bare), ("the same with events", results.with_events)):
        figures += [
            Figure.of(f"{name}, {baseline.CLIENTS} clients", [run.per_second for run in runs], "cycles/s"),
            Figure.of(f"{name}, CPU of PostgreSQL", [run.postgres_cpu_ms for run in runs], "ms/cycle"),
        ]
    figures += [
        Figure.of(f"an empty route of Starlette, {size:,} clients", rates, "/s")
        for size, rates in sorted(results.empty_routes.items())
    ]
    return figures


def _ratios(results: Results) -> list[Figure]:
    rates = results.rates(PLAIN)
    figures = []
    for size in compared_sizes(rates):
        pairs = list(zip(rates[size], results.bare, strict=True))
        target = 2.0 if size == _MANY else None
        figures.append(Figure.of(f"{size:,} workers / pgbench", [r / b.per_second for r, b in pairs], target=target))
        against = list(zip(rates[size], results.empty_routes[size], strict=True))
        target = 0.3 if size == _MANY else None
        figures.append(Figure.of(f"{size:,} workers / the empty route", [r / e for r, e in against], target=target))
    many = [size for size in sorted(rates) if size >= _FEWEST]
    if len(many) > 1:
        rounds = range(len(results.bare))
        figures.append(
            Figure.of("least / best until then, 32 workers on", [_fall(rates, many, n) for n in rounds], target=0.9)
        )
    best = max((rates for way in (RELAYED, EXCHANGED) for rates in results.rates(way).values()), key=_median)
    figures.append(Figure.of("best through the relay or the exchange", best, "cycles/s", target=15_000))
    return figures


def compared_sizes(sizes: Iterable[int]) -> Sequence[int]:
    """Numbers of workers that are set against yardsticks: that of the targets or the largest below, and the largest."""
    measured = sorted(sizes)
    return sorted({max((size for size in measured if size <= _MANY), default=measured[0]), measured[-1]})


def _fall(rates: Mapping[int, Sequence[float]], sizes: Sequence[int], number: int) -> float:
    """The least share of the best rate so far, as the number of workers grows, in one round."""
    best, share = 0.0, 1.0
    for size in sizes:
        best = max(best, rates[size][number])
        share = min(share, rates[size][number] / best)
    return share


def _drawing(results: Results) -> list[Curve | Level]:
    curves: list[Curve | Level] = [
        Curve(name=way, points={size: _median(values) for size, values in results.rates(way).items()})
        for way in results.ways
    ]
    levels = {
        "pgbench": [run.per_second for run in results.bare],
        "pgbench with events": [run.per_second for run in results.with_events],
        "empty Starlette route": results.empty_routes[max(results.empty_routes)],
    }
    return [*curves, *(Level(name=name, value=_median(values)) for name, values in levels.items())]


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
