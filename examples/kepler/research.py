"""Rounds of research: propose and reflect, merge duplicates, rank, review; until thinking no longer pays."""

import math
import time
from collections.abc import Sequence
from itertools import count

from examples.kepler.data import sample
from examples.kepler.judging import judgements
from examples.kepler.law import judge
from examples.kepler.limits import Limits
from examples.kepler.notation import formula
from examples.kepler.progress import Observer, Progress
from examples.kepler.report import Point, Report
from examples.kepler.tournament import Hypothesis, Tournament
from examples.supervising.client import Convener, Refused, Stopped
from examples.supervising.dispatch import Dispatch, Order, Outcome
from examples.supervising.task import Json

GENERATION_TASKS = 3
EVOLUTION_TASKS = 4
RANKING_TASKS = 3
FORMULAS_PER_TASK = 5
# Too few to fit an exponent at once: formulas become exact over generations.
FITTING_EVALUATIONS = 8
PARENTS = 16
REVIEWED = 8
# An error below this is none; one over it is still a number that the service takes for a quality.
LEAST_ERROR = 1e-9
OBJECTIVE = "How does the period of a planet depend on its distance from its star?"


class Research:
    """The state of one goal.

    Phases are barriers and results are used in the order of their numbers, so that it does not matter which worker did
    what, or when. Only the reflection on a proposal starts as soon as the proposal is there.
    """

    def __init__(self, service: Convener, *, goal_id: str, seed: int, limits: Limits, observer: Observer) -> None:
        self._started = time.monotonic()
        self._service, self._goal_id = service, goal_id
        self._dispatch = Dispatch(service, goal_id=goal_id)
        self._seed, self._limits, self._observer = seed, limits, observer
        self._numbers = count()
        self._tournament = Tournament()
        self._guidance: Json = {"operators": {}, "variables": {}, "exponent": None}
        self._summary = ""
        self._points: list[Point] = []
        self._round, self._phase = 0, "starting"
        self._spent_seconds: list[float] = []
        self._reviewed = self._discarded = self._failed = 0
        self._origins: dict[str, str] = {}
        self._proposers: dict[str, int] = {}
        self._champion: str | None = None
        self._reported_tasks, self._reported_seconds = 0, 0.0

    def pursue(self) -> str:
        """Rounds until the service stops the goal; its reason. A stop cancels what is still out."""
        goal = {"id": self._goal_id, "objective": OBJECTIVE, "constraints": self._limits.constraints()}
        self._service.create_goal(goal)
        try:
            for number in count(1):
                self._round = number
                self._think()
                decision = self._service.report(self._goal_id, self._iteration())
                if decision["decision"] == "stop":
                    return str(decision["reason"])
        except Stopped as stopped:
            return str(stopped)
        raise AssertionError("count() does not end")

    def _iteration(self) -> Json:
        """The report on this round as the service takes it; a new leader is credited to the agent that proposed it."""
        leader, compute_seconds = self._tournament.leader, self._compute_seconds
        task_count = sum(self._dispatch.done.values())
        has_error = leader is not None and leader.held_out_error is not None
        new_best = self._origins.get(leader.id.partition(".")[0]) if leader and leader.id != self._champion else None
        self._champion = leader.id if leader else None
        since = self._reported_tasks, self._reported_seconds
        self._reported_tasks, self._reported_seconds = task_count, compute_seconds
        return {
            "iteration": self._round,
            "quality": 1.0 / max(LEAST_ERROR, _fraction(leader.held_out_error)) if leader and has_error else None,
            "new_best": new_best,
            "tasks": task_count - since[0],
            "compute_seconds": max(0.0, compute_seconds - since[1]),
        }

    def _think(self) -> None:
        self._tournament.admit(self._propose())
        self._merge()
        self._rank()
        if best := self._tournament.ranked()[:REVIEWED]:
            self._review(best)
            self._points.append(Point(self._compute_seconds, best[0].elo, _fraction(best[0].held_out_error)))
            self.tell(f"round {self._round}: {formula(best[0].tree, best[0].scale)}")

    def _propose(self) -> list[tuple[str, Json]]:
        """New formulas with their reviews, under ids made of the number of the task and the place in it."""
        self._phase = "proposing"
        proposals = self._proposals()
        reflections = {order.number: next(self._numbers) for order in proposals}
        self._proposers |= {str(reflections[order.number]): order.number for order in proposals}
        self._origins |= {str(reflections[order.number]): _ARMS[order.agent_type] for order in proposals}
        self._dispatch.submit(proposals)
        reviewed: list[Outcome] = []
        for outcome in self._dispatch.outcomes():
            self._account(outcome)
            if outcome.order.number not in reflections:
                reviewed.append(outcome)
            elif outcome.result:
                self._dispatch.submit([_reflection(reflections[outcome.order.number], outcome.result)])
        return self._reviews(reviewed)

    def _proposals(self) -> list[Order]:
        parents = [{"id": entry.id, "tree": entry.tree} for entry in self._tournament.parents(PARENTS)]
        if not parents:
            return [self._proposal("generation", {}) for _ in range(GENERATION_TASKS + EVOLUTION_TASKS)]
        generated = [self._proposal("generation", {}) for _ in range(GENERATION_TASKS)]
        return generated + [self._proposal("evolution", {"parents": parents}) for _ in range(EVOLUTION_TASKS)]

    def _proposal(self, agent_type: str, extra: Json) -> Order:
        number = next(self._numbers)
        common = {"seed": f"{self._seed}/{number}", "count": FORMULAS_PER_TASK, "guidance": self._guidance}
        return Order(number=number, agent_type=agent_type, payload=common | extra)

    def _reviews(self, outcomes: Sequence[Outcome]) -> list[tuple[str, Json]]:
        reviews = []
        for outcome in _in_order(outcomes):
            result = outcome.result or {"reviews": [], "discarded": []}
            reviews += [(f"{outcome.order.number}.{review['place']}", review) for review in result["reviews"]]
            self._discarded += len(result["discarded"])
        self._reviewed += len(reviews)
        return reviews

    def _merge(self) -> None:
        entries = [
            {"id": entry.id, "tree": entry.tree, "scale": entry.scale, "score": entry.score, "age": entry.age}
            for entry in self._tournament.ranked()
        ]
        for result in self._results("merging", "proximity", [{"hypotheses": entries}]):
            self._tournament.merge(result["groups"])

    def _rank(self) -> None:
        pairs = self._tournament.pairs()
        share = max(1, math.ceil(len(pairs) / RANKING_TASKS))
        payloads = [self._matches(pairs[start : start + share]) for start in range(0, len(pairs), share)]
        for result in self._results("ranking", "ranking", payloads):
            self._tournament.record(result["outcomes"])
            self._tournament.note_errors(result["held_out_errors"])
        self._judge()
        self._tournament.close_round()

    def _judge(self) -> None:
        """Send judgements to the service; the research does not depend on them, so a refusal does not end it."""
        round_judgements = judgements(self._goal_id, self._round, self._tournament.ranked(), self._proposers)
        if round_judgements is not None:
            try:
                self._service.judge(round_judgements)
            except Refused as refused:
                self.tell(f"the judgements were refused: {refused}")

    def _matches(self, pairs: Sequence[tuple[str, str]]) -> Json:
        players = {key: self._tournament[key] for pair in pairs for key in pair}
        contestants = {k: {"tree": h.tree, "scale": h.scale, "size": h.size} for k, h in players.items()}
        return {"pairs": pairs, "contestants": contestants}

    def _review(self, best: Sequence[Hypothesis]) -> None:
        entries = [
            {"tree": h.tree, "scale": h.scale, "held_out_error": h.held_out_error, "remarks": h.remarks} for h in best
        ]
        for result in self._results("reviewing", "meta_review", [{"best": entries}]):
            self._guidance, self._summary = result["guidance"], result["summary"]

    def _results(self, phase: str, agent_type: str, payloads: Sequence[Json]) -> list[Json]:
        """Do all of one kind of task; a task that failed for good leaves a gap."""
        self._phase = phase
        self._dispatch.submit(
            [Order(number=next(self._numbers), agent_type=agent_type, payload=p, priority="high") for p in payloads]
        )
        outcomes = []
        for outcome in self._dispatch.outcomes():
            self._account(outcome)
            outcomes.append(outcome)
        return [outcome.result for outcome in _in_order(outcomes) if outcome.result]

    def _account(self, outcome: Outcome) -> None:
        self._spent_seconds.append(outcome.compute_seconds)
        self._failed += outcome.result is None
        self.tell("" if outcome.result else f"a {outcome.order.agent_type} task has failed for good")

    @property
    def _compute_seconds(self) -> float:
        # An exact sum does not depend on the order of completion.
        return math.fsum(self._spent_seconds)

    def tell(self, news: str) -> None:
        """Show the state of the research to the observer."""
        leader = self._tournament.leader
        self._observer(
            Progress(
                round=self._round,
                phase=self._phase,
                submitted=dict(self._dispatch.submitted),
                done=dict(self._dispatch.done),
                best_formula=formula(leader.tree, leader.scale) if leader else None,
                best_error=_fraction(leader.held_out_error) if leader else None,
                best_elo=leader.elo if leader else None,
                points=tuple(self._points),
                compute_seconds=self._compute_seconds,
                news=news,
            )
        )

    def report(self, stopped_because: str) -> Report:
        """The report on the research, the only place that uses the test body."""
        leader = self._tournament.leader
        tree, scale = (leader.tree, leader.scale) if leader else (1.0, 1.0)
        verdict = judge(tree, scale)
        return Report(
            law_found=verdict.found,
            verdict=verdict.reason,
            formula=formula(tree, scale),
            exponent=verdict.exponent,
            held_out_error=verdict.held_out_error,
            test_error=verdict.test_error,
            test_body=sample("test").names[0],
            best_elo=leader.elo if leader else 0.0,
            stopped_because=stopped_because,
            summary=self._summary,
            points=tuple(self._points),
            tasks=dict(sorted(self._dispatch.done.items())),
            failed_tasks=self._failed,
            rounds=len(self._points),
            matches=self._tournament.played,
            duplicates_dropped=self._tournament.dropped,
            formulas_reviewed=self._reviewed,
            formulas_discarded=self._discarded,
            compute_seconds=self._compute_seconds,
            wall_seconds=time.monotonic() - self._started,
        )


_ARMS = {"generation": "exploration", "evolution": "exploitation"}


def _reflection(number: int, proposals: Json) -> Order:
    payload = {"formulas": proposals["formulas"], "evaluations": FITTING_EVALUATIONS}
    return Order(number=number, agent_type="reflection", payload=payload, priority="high")


def _in_order(outcomes: Sequence[Outcome]) -> list[Outcome]:
    return sorted(outcomes, key=lambda outcome: outcome.order.number)


def _fraction(log_error: float | None) -> float:
    """A root mean square of ln(predicted / published) as a relative error."""
    return math.inf if log_error is None else math.expm1(min(100.0, log_error))
