"""Simulations of compute budgets: tasks of unlike lengths, wrong priors, any number of workers, with fixed seeds."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from app.goals.rules.budgets import Compute, Limits, Usage
from app.goals.rules.compute_budget import OVERRUN, Room, room
from app.goals.rules.goals import EnforcementAction, LeaseCapacity, enforce

_MEAN = 20.0
# True lengths over expected ones.
_FACTORS = (0.2, 1.0, 10.0)
# Lengths of tasks in means.
_LENGTHS: dict[str, Callable[[random.Random], float]] = {
    "constant": lambda _: 1.0,
    "uniform": lambda chance: chance.uniform(0.5, 1.5),
    "lognormal": lambda chance: chance.lognormvariate(-0.125, 0.5),
    "exponential": lambda chance: chance.expovariate(1.0),
    "long-tailed": lambda chance: chance.lognormvariate(-0.5, 1.0),
    "one in ten long": lambda chance: 0.5 if chance.random() < 0.9 else 5.5,
}


@dataclass(kw_only=True)
class Task:
    """A task that runs, in seconds."""

    left: float
    age: float = 0.0


@dataclass(kw_only=True)
class Simulation:
    """A goal with more tasks than its budget has room for, whose workers are checked once a second."""

    budget: float
    workers: int
    prior: float
    length: Callable[[random.Random], float]
    chance: random.Random
    running: list[Task] = field(default_factory=list)
    spent: float = 0.0
    completed: float = 0.0
    attempts: int = 0
    # None: nothing bounds the tasks that begin.
    allowed: int | None = 0
    is_metered: bool = True
    longest: float = 0.0

    def run(self) -> None:
        """Run until the goal stops."""
        limits, capacity = Limits(max_iterations=1, compute_seconds=self.budget), LeaseCapacity(workers=self.workers)
        for _ in range(100_000):
            compute = Compute(spent_seconds=self.spent, attempts=self.attempts, prior_seconds=self.prior)
            ages = [task.age for task in self.running]
            due = enforce(Usage(compute=compute), limits, capacity, ages=ages, is_metered=self.is_metered)
            if due.action is EnforcementAction.STOP:
                self.spent += sum(ages)
                return
            self._obey(due.action, due.remaining_attempts)
            self._take_back(due.excess_attempts)
            self._work()
        raise AssertionError("it never stops")

    def _obey(self, action: EnforcementAction, remaining: int) -> None:
        if action is EnforcementAction.METER:
            # A goal is metered first, and the next check lets tasks through.
            self.allowed = max(self.allowed or 0, remaining) if self.is_metered else 0
        else:
            self.allowed = None if action is EnforcementAction.ALLOW else 0
        self.is_metered = action is EnforcementAction.METER

    def _take_back(self, count: int) -> None:
        self.running.sort(key=lambda task: task.age)
        self.spent += sum(task.age for task in self.running[:count])
        self.attempts += count
        del self.running[:count]

    def _work(self) -> None:
        """Let a second pass; whoever ends a task takes the next one at once."""
        slots: list[Task | None] = [*self.running, *[None] * (self.workers - len(self.running))]
        self.running = []
        for held in slots:
            left, task = 1.0, held or self._next_task()
            while task is not None and left > 0:
                seconds = min(left, task.left)
                left, task.left, task.age = left - seconds, task.left - seconds, task.age + seconds
                if task.left > 0:
                    self.running.append(task)
                    break
                self.spent, self.completed = self.spent + task.age, self.completed + task.age
                self.attempts += 1
                task = self._next_task()

    def _next_task(self) -> Task | None:
        if self.allowed == 0:
            return None
        if self.allowed is not None:
            self.allowed -= 1
        task = Task(left=_MEAN * self.length(self.chance))
        self.longest = max(self.longest, task.left)
        return task


def simulate(kind: str, tasks: int, workers: int, seeds: int) -> list[Simulation]:
    """Simulations of budgets of so many mean tasks, where these take 0.2 to 10 times what is expected of them."""
    results = []
    for factor in _FACTORS:
        for seed in range(seeds):
            chance = random.Random(f"{workers}/{factor}/{seed}")
            budget, prior = tasks * _MEAN, _MEAN / factor
            results.append(
                Simulation(budget=budget, workers=workers, prior=prior, length=_LENGTHS[kind], chance=chance)
            )
            results[-1].run()
    return results


def shares(results: list[Simulation]) -> list[float]:
    """The shares of budgets that tasks have used which ended, where no task was longer than 0.3 of the budget."""
    return [result.completed / result.budget for result in results if result.longest <= 0.3 * result.budget]


@pytest.mark.parametrize("workers", [1, 8, 64])
@pytest.mark.parametrize("tasks", [3, 10, 30, pytest.param(100, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", _LENGTHS)
def test_a_budget_is_kept_and_spent_on_tasks_that_end(kind: str, tasks: int, workers: int) -> None:
    """Never more than a tenth over, and four fifths are spent on tasks that end unless single tasks are too long."""
    results = simulate(kind, tasks, workers, max(2, 15 // tasks))
    assert max(result.spent / result.budget for result in results) <= 1 + OVERRUN + 1e-6
    assert min(shares(results), default=1.0) >= 0.8


def test_one_runs_alone_until_it_is_known_how_long_they_are() -> None:
    assert room(100, Compute(), [], 1.0) == Room(tasks=1)
    assert room(100, Compute(), [1.0], 1.0) == Room(tasks=0)
    assert room(100, Compute(prior_seconds=0.5), [], 1.0) == Room(tasks=5), "ten times as long, four for each that runs"
    assert room(100, Compute(prior_seconds=1000.0), [], 1.0) == Room(tasks=1), "to see whether it is true"
    assert room(100, Compute(attempts=10, spent_seconds=0.0), [], 1.0).tasks is None


def test_nobody_is_stopped_by_an_estimate_but_by_the_overrun() -> None:
    """Four of 10 s each have ended; 110 s may be used."""
    measured = Compute(attempts=4, spent_seconds=40.0)
    assert room(100, measured, [9.0] * 6, 1.0) == Room(tasks=0)
    assert room(100, measured, [10.0] * 6, 1.0) == Room(tasks=0, excess=2), "each needs a quarter of 10 s at least"
    assert room(100, measured, [2.0, 20.0, 19.0], 1.0) == Room(tasks=0)
    assert room(100, measured, [30.0, 30.0, 5.0], 1.0) == Room(tasks=0, excess=1), "the youngest does not fit"
    assert room(100, measured, [69.5], 1.0).is_over
    assert not room(100, measured, [68.9], 1.0).is_over


def test_the_last_one_may_need_the_overrun_where_too_little_is_spent() -> None:
    assert room(105, Compute(attempts=7, spent_seconds=70.0), [], 1.0).tasks == 1
    assert room(38, Compute(attempts=3, spent_seconds=30.0), [], 1.0).tasks == 1, (
        "0.79 are spent, and 40 are not too much"
    )
    assert room(37, Compute(attempts=3, spent_seconds=30.0), [], 1.0).tasks == 0, "0.81 are spent"
    assert room(35, Compute(attempts=2, spent_seconds=28.0), [], 1.0).tasks == 0, "42 would be too much"
