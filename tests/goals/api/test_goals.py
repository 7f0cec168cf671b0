"""Research goals over HTTP: from creation through iterations to the stop, and everything that is refused."""

import asyncio
from typing import Any

import pytest

from app.db.database import Database
from app.goals.service import budget_enforcement
from app.kernel.access import Role
from app.queue.rules.status import TOTALS
from tests.support.problems import is_problem
from tests.support.service import Service
from tests.support.sql import execute, value

GOAL = {"id": "kepler", "objective": "what moves the planets?"}


async def create_goal(service: Service, **constraints: Any) -> Any:
    return await service.post("/goals", {**GOAL, "constraints": constraints}, key=Role.SUPERVISOR)


async def report(service: Service, number: int, quality: float | None, **fields: Any) -> Any:
    body = {"iteration": number, "quality": quality, **fields}
    return await service.ask("POST", "/goals/kepler/iterations", body, key=Role.SUPERVISOR)


async def test_a_goal_is_created_once(service: Service) -> None:
    first = await service.ask("POST", "/goals", GOAL, key=Role.SUPERVISOR)
    assert first.status_code == 201
    again = await service.ask("POST", "/goals", GOAL, key=Role.SUPERVISOR)
    assert again.status_code == 200
    assert again.json()["created_at"] == first.json()["created_at"]
    is_problem(await service.ask("POST", "/goals", {**GOAL, "objective": "another"}), 409, "goal_conflict")
    assert first.json()["state"] == "running"
    assert first.json()["judged_by"]["threshold"] == 0.01
    assert first.json()["usage"] == [{"limit": "iterations", "used": 0, "allowed": 100, "share": 0}]


async def test_keys_without_content_get_no_words_back(service: Service) -> None:
    made = await service.post("/keys", {"role": "supervisor", "label": "blind", "withheld": ["content:read"]})
    await create_goal(service)
    await service.post("/goals/kepler/pause", {"reason": "the budget of the lab"})
    for status, body in ((200, {**GOAL, "constraints": {}}), (201, {**GOAL, "id": "newton"})):
        answer = await service.ask("POST", "/goals", body, key=made["key"])
        assert answer.status_code == status
        assert (answer.json()["objective"], answer.json()["reason"]) == (None, None)
        assert "the budget of the lab" not in answer.text
        assert GOAL["objective"] not in answer.text
    seen = await service.ask("POST", "/goals", {**GOAL, "constraints": {}}, key=Role.SUPERVISOR)
    assert (seen.json()["objective"], seen.json()["reason"]) == (GOAL["objective"], "the budget of the lab")


async def test_a_goal_without_an_id_gets_one(service: Service) -> None:
    goals = [await service.post("/goals", {"objective": "anything"}) for _ in range(2)]
    assert goals[0]["id"] != goals[1]["id"]
    assert (await service.get(f"/goals/{goals[0]['id']}"))["objective"] == "anything"


async def test_a_goal_that_was_weighed_before_keeps_its_weight(service: Service) -> None:
    await service.ask("PUT", "/goals/kepler/weight", {"weight": 3})
    is_problem(await service.ask("GET", "/goals/kepler"), 404, "goal_not_found")
    assert (await service.get("/goals"))["items"] == []
    assert (await create_goal(service))["weight"] == 3
    assert (await service.post("/goals", {"id": "g", "objective": "o", "weight": 2}))["weight"] == 2


async def test_goals_are_listed_by_state_in_pages(service: Service) -> None:
    for name in "abcd":
        await service.post("/goals", {"id": name, "objective": name})
    await service.post("/goals/b/pause")
    await service.post("/goals/c/stop")
    first = await service.get("/goals", limit=3)
    assert [goal["id"] for goal in first["items"]] == ["a", "b", "c"]
    assert [goal["id"] for goal in (await service.get("/goals", after=first["next"]))["items"]] == ["d"]
    assert [goal["id"] for goal in (await service.get("/goals", state=["paused", "stopped"]))["items"]] == ["b", "c"]
    assert (await service.get("/goals", state="running"))["next"] is None


async def test_an_improving_goal_goes_on_and_a_flat_one_stops(service: Service) -> None:
    await create_goal(service, max_iterations=50)
    for number in range(1, 6):
        answer = await report(service, number, 1200 + 50 * number)
        assert answer.status_code == 201
        assert answer.json()["decision"] == "continue"
    assert answer.json()["reason"].startswith("improved by 0.0715")
    for number in range(6, 16):
        last = (await report(service, number, 1450)).json()
    assert last["decision"] == "stop"
    assert last["reason"] == "no improvement of 0.01 in win probability in the last 10 iterations"
    goal = await service.get("/goals/kepler")
    assert (goal["state"], goal["reason"], goal["iterations"]) == ("stopped", last["reason"], 15)
    assert goal["ended_at"] is not None
    is_problem(await report(service, 16, 1500), 409, "goal_stopped")


async def test_a_goal_with_scores_from_0_to_1_goes_on_while_they_rise(service: Service) -> None:
    """As Elo 0.9 is no better than 0.08, and each such goal stopped at its eleventh iteration."""
    await create_goal(service, max_iterations=50)
    for number in range(1, 21):
        last = (await report(service, number, 0.04 + 0.04 * number)).json()
        assert last["decision"] == "continue", last
    assert last["reason"].startswith("improved by 5 %")
    for number in range(21, 31):
        last = (await report(service, number, 0.84)).json()
    assert (last["decision"], last["reason"]) == ("stop", "no improvement of 1 % in the last 10 iterations")
    assert (await service.get("/goals/kepler"))["judged_by"]["unit"] == "relative"
    assert (await service.get("/goals/kepler/iterations/30/replay"))["identical"]


async def test_example_3_goes_on_up_to_the_maximum(service: Service) -> None:
    """An increase of 0.05 an iteration, and a maximum of 12."""
    await create_goal(service, max_iterations=12, improvement_threshold=0.05)
    answers = [(await report(service, number, 1200 + 35 * number)).json() for number in range(1, 13)]
    assert [answer["decision"] for answer in answers] == ["continue"] * 11 + ["stop"]
    assert "improved by 0.05" in answers[10]["reason"]
    assert answers[11]["reason"] == "the limit of 12 iterations (12 so far) is used up"


async def test_a_report_is_taken_once_and_in_order(service: Service) -> None:
    await create_goal(service)
    first = await report(service, 1, 1200)
    again = await report(service, 1, 1200)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    is_problem(await report(service, 1, 1201), 409, "iteration_conflict")
    assert "iteration 2 is the next" in is_problem(await report(service, 3, 1), 409, "iteration_conflict")["detail"]


async def test_two_reports_at_once_are_one(service: Service) -> None:
    await create_goal(service)
    answers = await asyncio.gather(*(report(service, 1, 1200) for _ in range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.text for answer in answers}) == 1
    rivals = await asyncio.gather(*(report(service, 2, quality) for quality in (1, 2)))
    assert sorted(answer.status_code for answer in rivals) == [201, 409]


async def test_every_decision_replays(service: Service) -> None:
    await create_goal(service, max_iterations=10, compute_budget_seconds=100, time_limit_seconds=1000, money_budget=5)
    for number, quality in enumerate([1200, 1230, None, 1210, 1300.5], 1):
        await report(service, number, quality, new_best="exploration" if number == 2 else None, money=0.5)
    await service.ask("PUT", "/goals/kepler/weight", {"weight": 9})
    for number in range(1, 6):
        found = await service.get(f"/goals/kepler/iterations/{number}/replay")
        assert found["identical"], found
    is_problem(await service.ask("GET", "/goals/kepler/iterations/6/replay"), 404, "iteration_not_found")


async def test_iterations_are_listed(service: Service) -> None:
    await create_goal(service)
    for number in range(1, 4):
        await report(service, number, 1200 + number, top_quality=1100, top_matches=4, compute_seconds=12, tasks=3)
    first = await service.get("/goals/kepler/iterations", limit=2)
    rest = await service.get("/goals/kepler/iterations", after=first["next"])
    assert [row["iteration"] for row in (*first["items"], *rest["items"])] == [1, 2, 3]
    assert first["items"][0]["claimed_compute_seconds"] == 12
    assert first["items"][0]["iteration_compute_seconds"] == 0, "no lease, no compute, whatever a client says"
    assert rest["next"] is None
    is_problem(await service.ask("GET", "/goals/tycho/iterations"), 404, "goal_not_found")


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("min_iterations", 0),
        ("max_iterations", 1001),
        ("max_iterations", 3.5),
        ("improvement_threshold", 0.0009),
        ("improvement_threshold", 0.11),
        ("improvement_unit", "elo"),
        ("rule", "hope"),
        ("time_limit_seconds", 0),
        ("compute_budget_seconds", -1),
        ("money_budget", 0),
        ("patience", True),
        ("depth", 3),
    ],
)
async def test_constraints_that_make_no_sense(service: Service, field: str, wrong: object) -> None:
    answer = await service.ask("POST", "/goals", {**GOAL, "constraints": {field: wrong}})
    is_problem(answer, 422, "invalid_request", f"constraints.{field}")
    assert (await service.get("/goals"))["items"] == []


async def test_bounds_of_iterations_must_agree(service: Service) -> None:
    body = {**GOAL, "constraints": {"min_iterations": 9, "max_iterations": 8}}
    is_problem(await service.ask("POST", "/goals", body), 422, "invalid_request")


@pytest.mark.parametrize("quality", [1e13, "high", True, [1]])
async def test_a_quality_that_is_none(service: Service, quality: Any) -> None:
    await create_goal(service)
    is_problem(await report(service, 1, quality), 422, "invalid_request", "quality")


async def test_nan_is_no_quality(service: Service) -> None:
    await create_goal(service)
    headers = {"content-type": "application/json"}
    body = b'{"iteration": 1, "quality": NaN}'
    answer = await service.ask("POST", "/goals/kepler/iterations", content=body, headers=headers)
    assert answer.status_code in (400, 422)


async def test_goals_are_for_supervisors(service: Service) -> None:
    for key in (Role.READER, Role.POOL):
        is_problem(await service.ask("POST", "/goals", GOAL, key=key), 403, "forbidden")
    await create_goal(service)
    is_problem(await service.ask("POST", "/goals/kepler/stop", {}, key=Role.READER), 403, "forbidden")
    assert (await service.ask("GET", "/goals/kepler", key=Role.READER)).status_code == 200


async def test_what_is_done_to_goals_is_told(service: Service) -> None:
    await create_goal(service)
    await report(service, 1, 1200)
    for what in ("pause", "resume", "stop"):
        await service.post(f"/goals/kepler/{what}", {"reason": f"because of {what}"})
    found = await service.get("/events", goal_id="kepler")
    assert [event["kind"] for event in found["items"]] == [
        "goal.created",
        "goal.iteration",
        "goal.paused",
        "goal.resumed",
        "goal.stopped",
    ]
    assert found["items"][-1]["detail"]["reason"] == "because of stop"
    assert found["items"][-1]["task_id"] is None
    only = await service.get("/events", kind="goal.stopped")
    assert [event["goal_id"] for event in only["items"]] == ["kepler"]


async def test_moves_may_be_repeated_until_the_goal_has_stopped(service: Service) -> None:
    await create_goal(service)
    for what, state in (("pause", "paused"), ("pause", "paused"), ("resume", "running"), ("resume", "running")):
        assert (await service.post(f"/goals/kepler/{what}"))["state"] == state
    stopped = [await service.post("/goals/kepler/stop", {"reason": reason}) for reason in ("enough", "again")]
    assert [goal["reason"] for goal in stopped] == ["enough", "enough"]
    for what in ("pause", "resume"):
        assert (
            "enough"
            in is_problem(await service.ask("POST", f"/goals/kepler/{what}", {}), 409, "goal_stopped")["detail"]
        )
    is_problem(await service.ask("POST", "/goals/kepler/extend", {"constraints": {}}), 409, "goal_stopped")
    for what in ("pause", "resume", "stop"):
        is_problem(await service.ask("POST", f"/goals/tycho/{what}", {}), 404, "goal_not_found")


async def test_limits_that_do_not_go_together_are_refused_in_two_bodies_as_in_one(
    service: Service, database: Database
) -> None:
    await create_goal(service, min_iterations=5, max_iterations=20)
    before = await value(database, "SELECT (SELECT count(*) FROM every_event) || goals::text FROM goals")
    for name, limit in (("min_iterations", 21), ("max_iterations", 4)):
        answer = await service.ask("POST", "/goals/kepler/extend", {"constraints": {name: limit}})
        is_problem(answer, 422, "limits_refused", f"constraints.{name}")
    assert await value(database, "SELECT (SELECT count(*) FROM every_event) || goals::text FROM goals") == before
    for limits in ({"max_iterations": 5}, {"min_iterations": 30, "max_iterations": 40}, {"patience": 7}):
        await service.post("/goals/kepler/extend", {"constraints": limits})


async def test_no_limit_is_lowered_to_what_is_used_of_it(service: Service, database: Database) -> None:
    """It would end the goal for good, and cancel its tasks, where somebody has left out a zero."""
    await create_goal(service, compute_budget_seconds=100)
    await report(service, 1, 1200)
    await execute(database, "UPDATE goals SET started_at = now() - interval '61 s'")
    spent = "INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds) VALUES ('kepler', 'generation', 1, 50)"
    await execute(database, spent)
    before = await value(database, "SELECT (SELECT count(*) FROM every_event) || goals::text FROM goals")
    for name, limit in (("time_limit_seconds", 60), ("compute_budget_seconds", 50), ("max_iterations", 1)):
        answer = await service.ask("POST", "/goals/kepler/extend", {"constraints": {name: limit, "patience": 7}})
        problem = is_problem(answer, 422, "limits_refused", f"constraints.{name}")
        assert "which is used already; to end the goal, stop it" in problem["detail"]
    assert await value(database, "SELECT (SELECT count(*) FROM every_event) || goals::text FROM goals") == before
    for limits in ({"compute_budget_seconds": 51}, {"time_limit_seconds": 3600, "max_iterations": 2}):
        await service.post("/goals/kepler/extend", {"constraints": limits})


async def test_what_is_beyond_a_limit_hinders_no_change_of_others(service: Service, database: Database) -> None:
    """Tasks may end beyond the budget; the same one once more lowers nothing, and what is raised ends nothing."""
    await create_goal(service, compute_budget_seconds=100)
    spent = "INSERT INTO goal_compute (goal_id, agent_type, attempts, seconds) VALUES ('kepler', 'generation', 1, 105)"
    await execute(database, spent)
    for limits in ({"compute_budget_seconds": 100, "patience": 7}, {"compute_budget_seconds": 104}):
        await service.post("/goals/kepler/extend", {"constraints": limits})


async def test_an_extension_that_is_sent_again_is_told_once(service: Service) -> None:
    await create_goal(service)
    for _ in range(2):
        goal = await service.post("/goals/kepler/extend", {"constraints": {"patience": 7}})
        assert goal["constraints"]["patience"] == 7
    assert len((await service.get("/audit", action="goal.extended"))["items"]) == 1
    kinds = [event["kind"] for event in (await service.get("/events"))["items"]]
    assert kinds.count("goal.extended") == 1


async def test_why_a_goal_is_extended_is_kept_where_somebody_says_it(service: Service) -> None:
    await create_goal(service)
    for patience, fields in ((7, {}), (8, {"reason": "nearly there"})):
        await service.post("/goals/kepler/extend", {"constraints": {"patience": patience}} | fields)
    reasons = [entry["reason"] for entry in (await service.get("/audit", action="goal.extended"))["items"]]
    assert reasons == ["nearly there", ""]


async def test_compute_is_measured_by_leases_and_not_by_the_word_of_a_client(
    service: Service, database: Database
) -> None:
    await create_goal(service)
    worker = await service.worker()
    await service.submitted(goal_id="kepler")
    lease = await worker.lease()
    running = (await service.get("/goals/kepler"))["compute"]
    assert (running["running"], running["spent_seconds"]) == (1, 0)
    await execute(database, "UPDATE tasks SET leased_at = leased_at - interval '30 s'")
    await worker.on_lease(lease, "complete", result={})
    done = (await service.get("/goals/kepler"))["compute"]
    assert done["spent_seconds"] == pytest.approx(30, abs=3)
    assert done["by_agent"] == {"generation": done["spent_seconds"]}
    answer = (await report(service, 1, 1200, compute_seconds=7)).json()
    assert answer["iteration_compute_seconds"] == pytest.approx(30, abs=3)
    assert answer["claimed_compute_seconds"] == 7
    async with database.transaction() as connection:
        await budget_enforcement.fold_compute(connection)
    assert (await service.get("/goals/kepler"))["compute"] == done


async def test_totals_of_its_tasks_count_at_once_and_since_ever(service: Service, database: Database) -> None:
    await create_goal(service)
    nothing = dict.fromkeys(TOTALS, 0)
    assert (await service.get("/goals/kepler"))["tasks"] == nothing
    worker = await service.worker()
    for _ in range(3):
        await service.submitted(agent_type="ranking", goal_id="kepler", retry={"delays_seconds": [0]})
    await service.submitted(agent_type="ranking", goal_id="other", priority="low")
    cancelled = await service.submitted(agent_type="generation", goal_id="kepler")
    await service.post(f"/tasks/{cancelled}/cancel", {})
    error = {"code": "c", "message": "m"}
    await worker.on_lease(await worker.lease(), "complete", result={})
    given_up = await worker.lease()
    await worker.on_lease(given_up, "fail", error=error | {"retryable": False})
    await worker.on_lease(await worker.lease(), "fail", error=error)
    await service.post(f"/dead-letters/{given_up['task_id']}/requeue", {"reason": "another try"})
    expected = nothing | {"submitted": 4, "completed": 1, "failed": 1, "cancelled": 1, "retried": 1, "requeued": 1}
    assert (await service.get("/goals/kepler"))["tasks"] == expected
    async with database.transaction() as connection:
        await budget_enforcement.fold_compute(connection)
    assert (await service.get("/goals/kepler"))["tasks"] == expected
    await service.submitted(agent_type="ranking", goal_id="kepler")
    assert (await service.get("/goals/kepler"))["tasks"] == expected | {"submitted": 5}


async def test_a_stopped_goal_takes_no_new_tasks_but_answers_for_old_ones(service: Service, database: Database) -> None:
    await create_goal(service)
    task = {"id": "00000000-0000-4000-8000-000000000001", "agent_type": "ranking", "goal_id": "kepler"}
    assert (await service.ask("POST", "/tasks", task)).status_code == 201
    await service.post("/goals/kepler/stop")
    is_problem(await service.ask("POST", "/tasks", {**task, "id": None}), 409, "goal_stopped")
    assert (await service.ask("POST", "/tasks", task)).status_code == 200
    await budget_enforcement.process_holds(database)
    assert (await service.get(f"/tasks/{task['id']}"))["state"] == "cancelled"
    assert (await service.get(f"/tasks/{task['id']}"))["error"]["message"].startswith("the research goal has stopped")
    assert await value(database, "SELECT count(*) FROM tasks") == 0


async def test_the_last_iteration_of_a_goal_that_was_stopped_meanwhile_is_taken(service: Service) -> None:
    await create_goal(service)
    await report(service, 1, 1200)
    await service.post("/goals/kepler/stop", {"reason": "time for lunch"})
    late = (await report(service, 2, 1300)).json()
    assert (late["decision"], late["reason"]) == ("stop", "time for lunch")
    assert (await service.get("/goals/kepler/iterations/2/replay"))["identical"]
    is_problem(await report(service, 3, 1400), 409, "goal_stopped")


async def test_what_people_do_to_goals_is_audited(service: Service) -> None:
    await create_goal(service, max_iterations=20)
    for what in ("pause", "pause", "resume", "stop", "stop"):
        await service.post(f"/goals/kepler/{what}", {"reason": f"because of {what}"})
    entries = (await service.get("/audit"))["items"]
    told = [entry for entry in entries if entry["action"].startswith("goal.")]
    assert [entry["action"] for entry in sorted(told, key=lambda entry: entry["seq"])] == [
        "goal.created",
        "goal.paused",
        "goal.resumed",
        "goal.stopped",
    ]
    stopped = next(entry for entry in told if entry["action"] == "goal.stopped")
    assert stopped["before"]["state"] == "running"
    constraints = {"max_iterations": 20}
    assert stopped["after"] == {"goal_id": "kepler", "state": "stopped", "weight": 1, "constraints": constraints}
    assert stopped["reason"] == "because of stop"
