"""The task service in one process: enough of its HTTP contract for a supervisor, with the faults of a real network."""

import json
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import httpx

from app.goals.api.schemas import GoalIn
from app.goals.rules.budgets import Limits, Usage
from app.goals.rules.goals import GoalAction, GoalPolicy, GoalSnapshot, MeasuredIteration, decide
from app.goals.rules.stopping import Quality, StoppingPolicy, Unit
from examples.kepler.handlers import HANDLERS

Json = dict[str, Any]


class InstantTask:
    """What a worker would hand to an agent."""

    def __init__(self, payload: Json, batch_factor: float = 1.0) -> None:
        self.payload = payload
        self.batch_factor = batch_factor

    def progress(self, percent: float, message: str) -> None:
        pass


class FakeConvener:
    """Runs tasks in an order of its own choice; with `faults`, answers get lost, come twice, or are refused for now."""

    def __init__(
        self,
        *,
        chaos_seed: int = 0,
        faults: float = 0.0,
        handlers: Mapping[str, Callable[[Any], Json]] = HANDLERS,
        make_task: Callable[[Json], Any] = InstantTask,
    ) -> None:
        self.handlers, self.make_task = handlers, make_task
        self.rng, self.faults = Random(chaos_seed), faults
        self.tasks: dict[str, Json] = {}
        self.judgements: dict[str, Json] = {}
        self.qualities: dict[str, float] = {}
        self.events: list[Json] = []
        self.order_of_completion: list[int] = []
        self.lost_answers = self.refusals = 0
        self.goals: dict[str, Json] = {}
        self.reports: dict[int, tuple[Json, Json]] = {}
        self.stopped: str | None = None

    @property
    def transport(self) -> httpx.MockTransport:
        return httpx.MockTransport(self.answer)

    def answer(self, request: httpx.Request) -> httpx.Response:
        if self.rng.random() < self.faults:
            self.refusals += 1
            raise httpx.ConnectError("connection refused") if self.rng.random() < 0.5 else httpx.ReadError("reset")
        if self.rng.random() < self.faults:
            self.refusals += 1
            return httpx.Response(503, headers={"Retry-After": "1"}, json={"code": "database_unavailable"})
        response = self.route(request)
        if self.rng.random() < self.faults:
            self.lost_answers += 1
            raise httpx.ReadTimeout("the answer was lost")
        return response

    def route(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["Authorization"].startswith("Bearer ")
        match request.method, request.url.path.strip("/").split("/"):
            case "POST", ["tasks", "batch"]:
                return self.submitted(json.loads(request.content)["tasks"])
            case "POST", ["goals"]:
                return self.create(json.loads(request.content))
            case "POST", ["goals", _, "iterations"]:
                return self.report(json.loads(request.content))
            case "POST", ["metrics", "performance"]:
                return self.judged(json.loads(request.content))
            case "GET", ["tasks", task_id]:
                return httpx.Response(200, json=self.tasks[task_id])
            case "GET", ["events"]:
                return self.news(request.url.params)
            case _:
                pass
        return httpx.Response(404, json={"code": "not_found"})

    def create(self, goal: Json) -> httpx.Response:
        GoalIn.model_validate(goal)
        known = self.goals.setdefault(goal["id"], goal)
        return httpx.Response(201, json=known) if known == goal else self.conflict("goal_conflict", "another goal")

    def report(self, said: Json) -> httpx.Response:
        """As the service decides, by its own rule."""
        number = said["iteration"]
        if number in self.reports:
            assert self.reports[number][0] == said, "one iteration, two different reports"
            return httpx.Response(200, json=self.reports[number][1])
        if self.stopped is not None:
            return self.conflict("goal_stopped", self.stopped)
        assert number == len(self.reports) + 1
        (goal,) = self.goals.values()
        bounds = goal["constraints"]
        policy = GoalPolicy(
            stopping=StoppingPolicy(
                unit=Unit(bounds["improvement_unit"]),
                threshold=bounds["improvement_threshold"],
                min_iterations=bounds["min_iterations"],
                patience=bounds["patience"],
            ),
            limits=Limits(max_iterations=bounds["max_iterations"]),
        )
        told = [*(known for known, _ in self.reports.values()), said]
        reports = [MeasuredIteration(number=one["iteration"], quality=Quality(best=one["quality"])) for one in told]
        found = decide(GoalSnapshot(goal_id=goal["id"], iterations=reports, usage=Usage(iterations=number)), policy)
        self.reports[number] = (
            said,
            {"decision": found.action.value, "reason": found.reason, "exploration_share": found.exploration_share},
        )
        if found.action is GoalAction.STOP:
            self.stop(found.reason)
        return httpx.Response(201, json=self.reports[number][1])

    def judged(self, said: Json) -> httpx.Response:
        known = self.judgements.setdefault(said["request_id"], said)
        assert known == said, "one request, two different judgements"
        for item in said["items"]:
            assert self.tasks[item["task_id"]]["state"] == "completed"
            self.qualities[item["task_id"]] = item["quality"]
        return httpx.Response(202, json={"accepted": len(said["items"])})

    def stop(self, reason: str) -> None:
        self.stopped = reason
        for task in self.tasks.values():
            if task["state"] == "pending":
                task["state"] = "cancelled"
                self.note("task.cancelled", task)

    def conflict(self, code: str, reason: str) -> httpx.Response:
        return httpx.Response(409, json={"code": code, "detail": reason, "reason": reason})

    def submitted(self, tasks: list[Json]) -> httpx.Response:
        if self.stopped is not None and any(task["id"] not in self.tasks for task in tasks):
            return self.conflict("goal_stopped", self.stopped)
        return httpx.Response(201, json={"tasks": [self.accept(task) for task in tasks]})

    def accept(self, task: Json) -> Json:
        known = self.tasks.get(task["id"])
        if known:
            assert known["submitted"] == task, "one id, two different tasks"
        else:
            self.tasks[task["id"]] = task | {"submitted": task, "state": "pending", "result": None, "usage": None}
        return {"id": task["id"], "state": self.tasks[task["id"]]["state"], "created": not known}

    def news(self, params: httpx.QueryParams) -> httpx.Response:
        if params.get("after") == "now":
            return httpx.Response(200, json={"items": [], "next": str(len(self.events))})
        after = int(params.get("after", "0"))
        if after == len(self.events):
            self.work()
        items = [event for event in self.events[after:] if event["goal_id"] == params["goal_id"]]
        return httpx.Response(200, json={"items": items, "next": str(len(self.events))})

    def work(self) -> None:
        """Up to three waiting tasks, any three; with faults, a worker may die after its work and before its answer."""
        waiting = [task for task in self.tasks.values() if task["state"] == "pending"]
        for task in self.rng.sample(waiting, min(3, len(waiting))):
            result = self.handlers[task["agent_type"]](self.make_task(json.loads(json.dumps(task["payload"]))))
            if self.rng.random() < self.faults:
                self.note("task.expired", task)
            else:
                self.complete(task, result)

    def complete(self, task: Json, result: Json) -> None:
        number = int(task["labels"]["number"])
        # JSONB gives keys back in an order of its own.
        task["result"] = json.loads(json.dumps(result, sort_keys=True, allow_nan=False))
        task["usage"] = {"wall_seconds": 0.2, "cpu_seconds": 0.1 + number % 7 / 100}
        task["state"] = "completed"
        self.order_of_completion.append(number)
        self.note("task.completed", task)

    def note(self, kind: str, task: Json) -> None:
        cursor = str(len(self.events) + 1)
        self.events.append({"cursor": cursor, "kind": kind, "task_id": task["id"], "goal_id": task["goal_id"]})
