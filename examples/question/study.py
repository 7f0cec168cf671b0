"""Rounds of a study: propose, review, merge, judge, sum up; until the service says that going on does not pay."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

from examples.question.tournament import Hypothesis, Tournament
from examples.supervising.client import Convener, Stopped
from examples.supervising.dispatch import Dispatch, Order, Outcome
from examples.supervising.task import Json

_PROPOSING_TASKS = 4
_PER_TASK = 2
_PARENTS = 4
_MATCHES_PER_TASK = 2
_JUDGED = 3
_ARMS = {"generation": "exploration", "evolution": "exploitation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Result of a study."""

    best: Sequence[Hypothesis]
    summary: str
    rounds: int
    matches: int
    merged: int
    tasks: int
    failed: int
    stopped_because: str


class Study:
    """One research goal. Results are used in the order of their tasks, so that a study started again repeats itself."""

    def __init__(
        self, service: Convener, *, goal_id: str, question: str, constraints: Json, report: Callable[[str], None]
    ) -> None:
        self._service, self._goal_id, self._question = service, goal_id, question
        self._constraints, self._report = constraints, report
        self._dispatch = Dispatch(service, goal_id=goal_id)
        self._numbers = count()
        self._tournament = Tournament()
        self._guidance, self._summary = "", ""
        self._exploration = 1.0
        self._round, self._failed = 0, 0
        self._champion: str | None = None

    def pursue(self) -> Findings:
        """Run rounds until the service stops the goal. Raises Refused, Unreachable."""
        goal = {"id": self._goal_id, "objective": self._question, "constraints": self._constraints}
        self._service.create_goal(goal)
        try:
            return self._findings(self._rounds())
        except Stopped as stopped:
            return self._findings(str(stopped))

    def _rounds(self) -> str:
        for number in count(1):
            self._round = number
            self._run_round()
            decision = self._service.report(self._goal_id, self._iteration())
            self._report(f"round {number}: {decision['decision']}, {decision['reason']}")
            if decision["decision"] == "stop":
                return str(decision["reason"])
            self._exploration = float(decision["exploration_share"])
        raise AssertionError("count() does not end")

    def _run_round(self) -> None:
        self._tournament.admit(self._review(self._propose()))
        entries = self._tournament.ranked()
        for result in self._results("proximity", [{"hypotheses": [entry.as_payload() for entry in entries]}]):
            self._tournament.merge(result["groups"])
        pairs = self._tournament.pairs()
        for result in self._results("ranking", [_matches(part) for part in _split(pairs, _MATCHES_PER_TASK)]):
            self._tournament.record(result["outcomes"])
        self._tournament.close_round()
        best = self._tournament.ranked()[:_PARENTS]
        if best:
            self._report(f"round {self._round}: {best[0].content['title']} leads with Elo {best[0].elo:.0f}")
        for result in self._results("meta_review", [{"best": [entry.as_payload() for entry in best]}] if best else []):
            self._guidance, self._summary = result["guidance"], result["summary"]

    def _propose(self) -> list[tuple[str, str, Json]]:
        """(id, agent type, what the model wrote); the service's advice shares the tasks between new and better."""
        parents = [entry.as_payload() for entry in self._tournament.ranked()[:_PARENTS]]
        new = _PROPOSING_TASKS if not parents else max(1, round(self._exploration * _PROPOSING_TASKS))
        new = min(new, _PROPOSING_TASKS - 1) if parents else new
        titles = [entry.content["title"] for entry in self._tournament.ranked()]
        common = {"count": _PER_TASK, "guidance": self._guidance}
        orders = [self._order("generation", {**common, "known": titles}) for _ in range(new)]
        orders += [self._order("evolution", {**common, "parents": parents}) for _ in range(_PROPOSING_TASKS - new)]
        return [
            (f"{outcome.order.number}.{place}", outcome.order.agent_type, content)
            for outcome in self._run_orders(orders)
            if outcome.result
            for place, content in enumerate(outcome.result["hypotheses"])
        ]

    def _review(self, proposed: Sequence[tuple[str, str, Json]]) -> list[Hypothesis]:
        orders = [self._order("reflection", {"hypothesis": content}) for _, _, content in proposed]
        by_number = dict(zip((order.number for order in orders), proposed, strict=True))
        newcomers = []
        for outcome in self._run_orders(orders):
            key, agent_type, content = by_number[outcome.order.number]
            if outcome.result and not outcome.result["is_refuted"]:
                review = {"critique": outcome.result["critique"], "score": outcome.result["score"]}
                newcomers.append(Hypothesis(id=key, arm=_ARMS[agent_type], content=content, **review))
        return newcomers

    def _iteration(self) -> Json:
        best = self._tournament.ranked()[:_JUDGED]
        leader = best[0] if best else None
        new_best = leader.arm if leader is not None and leader.id != self._champion else None
        self._champion = leader.id if leader else None
        return {
            "iteration": self._round,
            "quality": leader.elo if leader else None,
            "top_quality": math.fsum(entry.elo for entry in best) / len(best) if best else None,
            "top_matches": min(entry.matches for entry in best) if best else None,
            "new_best": new_best,
        }

    def _order(self, agent_type: str, payload: Json) -> Order:
        number = next(self._numbers)
        return Order(number=number, agent_type=agent_type, payload={"question": self._question, **payload})

    def _results(self, agent_type: str, payloads: Sequence[Json]) -> list[Json]:
        outcomes = self._run_orders([self._order(agent_type, payload) for payload in payloads])
        return [outcome.result for outcome in outcomes if outcome.result]

    def _run_orders(self, orders: Sequence[Order]) -> list[Outcome]:
        """Run tasks and return all outcomes in their order; one that failed for good has no result."""
        self._dispatch.submit(orders)
        outcomes = sorted(self._dispatch.outcomes(), key=lambda outcome: outcome.order.number)
        self._failed += sum(outcome.result is None for outcome in outcomes)
        return outcomes

    def _findings(self, reason: str) -> Findings:
        return Findings(
            best=self._tournament.ranked()[:_JUDGED],
            summary=self._summary,
            rounds=self._round,
            matches=self._tournament.played,
            merged=self._tournament.merged,
            tasks=sum(self._dispatch.done.values()),
            failed=self._failed,
            stopped_because=reason,
        )


def _matches(pairs: Sequence[tuple[Hypothesis, Hypothesis]]) -> Json:
    return {"pairs": [[first.as_payload(), second.as_payload()] for first, second in pairs]}


def _split(pairs: Sequence[tuple[Hypothesis, Hypothesis]], size: int) -> list[Sequence[tuple[Hypothesis, Hypothesis]]]:
    return [pairs[start : start + size] for start in range(0, len(pairs), size)]
