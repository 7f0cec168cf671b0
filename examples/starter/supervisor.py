"""The supervisor: pursues one research goal, and lets the service say when thinking no longer pays.

Started again with the same goal it takes up where it was: its tasks have the same ids, and so the same answers.
"""

import sys
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from app.terminal.connection import Access
from examples.supervising.client import Convener, Stopped
from examples.supervising.command import supervise

TASKS = 3
FINISHED = ("completed", "failed", "cancelled")
# A displaced task has failed too: the queue was full.
ENDS = ("task.completed", "task.failed", "task.cancelled", "task.displaced")


def pursue(service: Convener, goal_id: str) -> dict[str, Any]:
    """Report iteration after iteration until the service stops the goal; return the best answer."""
    service.create_goal({"id": goal_id, "objective": "find the number whose square is 2"})
    best: dict[str, Any] = {"number": 1.0, "quality": 0.5}
    cursor = service.events(goal_id, "now", 0).next
    for iteration in range(1, 1001):
        tasks = [_task(goal_id, iteration, n, best) for n in range(TASKS)]
        try:
            cursor = _carry_out(service, goal_id, tasks, cursor)
            finished = [service.task(task["id"]) for task in tasks]
            if all(task["result"] is None for task in finished):
                raise SystemExit(
                    f"no task of iteration {iteration} succeeded: `convener tasks get {finished[0]['id']}` says why; "
                    "once that is mended, name another goal"
                )
            results = [task["result"] or best for task in finished]
            if any("quality" not in result for result in results):
                raise SystemExit(
                    "other agents than those of this folder have run: start `convener up --handlers my_agents` here, "
                    "and name another goal, as in `python supervisor.py second`: this one has their results"
                )
            best = max([best, *results], key=lambda result: result["quality"])
            decision = service.report(goal_id, {"iteration": iteration, "quality": best["quality"], "tasks": TASKS})
        except Stopped as stop:
            return {**best, "iterations": iteration - 1, "reason": str(stop)}
        print(f"iteration {iteration}: {best['number']:.9f}; {decision['reason']}", flush=True)
        if decision["decision"] == "stop":
            return {**best, "iterations": iteration, "reason": decision["reason"]}
    raise AssertionError("a goal has 1000 iterations at most")


def _task(goal_id: str, iteration: int, n: int, best: dict[str, Any]) -> dict[str, Any]:
    payload = {"best": best["number"], "width": 1 / iteration, "seed": f"{goal_id}/{iteration}/{n}"}
    task_id = str(uuid5(NAMESPACE_URL, payload["seed"]))
    return {"id": task_id, "agent_type": "generation", "goal_id": goal_id, "payload": payload}


def _carry_out(service: Convener, goal_id: str, tasks: list[dict[str, Any]], cursor: str) -> str:
    """Submit these tasks and wait until all have finished; events tell when, each exactly once."""
    open_ids = _submit(service, tasks)
    while open_ids:
        page = service.events(goal_id, cursor, wait_seconds=20)
        cursor = page.next
        open_ids -= {event["task_id"] for event in page.items if event["kind"] in ENDS}
        if not page.items:
            # A restore of an older state takes tasks away, of which no event tells; these ids make each once.
            open_ids = _submit(service, tasks)
    return cursor


def _submit(service: Convener, tasks: list[dict[str, Any]]) -> set[str]:
    return {task_id for task_id, state in service.submit(tasks).items() if state not in FINISHED}


def _tell_of_pause(cause: str, _: float) -> None:
    print(f"{cause}, trying again: `convener up --handlers my_agents` starts the service", flush=True)


def main(access: Access) -> int:
    with Convener(access.url, access.key, waiting=_tell_of_pause) as convener:
        print(pursue(convener, sys.argv[1] if len(sys.argv) > 1 else "square-root"))
    return 0


if __name__ == "__main__":
    # As the command line does: CONVENER_URL and CONVENER_KEY, else what `convener up` has left on this machine.
    sys.exit(supervise(main))
