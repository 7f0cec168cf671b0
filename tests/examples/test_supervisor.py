"""The supervisor against a fake of the service: the same outcome whatever the network and the workers do."""

import dataclasses
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.kernel.states import FINISHED
from app.queue.rules.tasks import TRANSITIONS
from app.terminal.failures import ExitCode
from examples.kepler import __main__ as command
from examples.kepler.limits import Limits
from examples.kepler.progress import Progress
from examples.kepler.report import Report
from examples.kepler.supervisor import run
from examples.starter import supervisor as starter
from examples.supervising import dispatch as supervising
from examples.supervising.client import Convener, Refused, Unreachable
from examples.supervising.command import supervise
from examples.supervising.dispatch import Dispatch, Order, task_id
from tests.examples.fake_convener import FakeConvener

LIMITS = Limits(time_limit_seconds=3600.0)


def pursue(service: FakeConvener, *, seed: int = 1619, **options: Any) -> Report:
    settings: dict[str, Any] = {"limits": LIMITS, "sleep": lambda seconds: None} | options
    return run(
        base_url="http://fake", key="cvn_x_y", goal_id="goal", seed=seed, transport=service.transport, **settings
    )


def outcome(report: Report) -> Report:
    return dataclasses.replace(report, wall_seconds=0.0)


def test_the_default_seed_finds_the_law() -> None:
    report = pursue(FakeConvener())
    assert report.law_found
    assert report.formula.endswith("* a^1.500")
    assert report.held_out_error < 0.01
    assert report.test_error < 0.01
    assert report.points[-1].best_error < report.points[0].best_error
    assert report.points[-1].best_elo > report.points[0].best_elo
    assert set(report.tasks) == {"generation", "reflection", "ranking", "evolution", "proximity", "meta_review"}


def test_it_ends_after_as_few_rounds_as_one_likes() -> None:
    assert pursue(FakeConvener(), limits=Limits(max_iterations=1, time_limit_seconds=3600.0)).rounds == 1


def test_the_outcome_does_not_depend_on_order_or_faults() -> None:
    calm, wild = FakeConvener(chaos_seed=1), FakeConvener(chaos_seed=2, faults=0.15)
    assert outcome(pursue(calm)) == outcome(pursue(wild))
    assert calm.order_of_completion != wild.order_of_completion
    assert sorted(calm.order_of_completion) == sorted(wild.order_of_completion)
    assert wild.refusals > 50
    assert wild.lost_answers > 50


def test_proposals_are_judged_by_how_their_formulas_play() -> None:
    service = FakeConvener()
    report = pursue(service)
    judged = {key: (service.tasks[key]["agent_type"], quality) for key, quality in service.qualities.items()}
    assert {agent for agent, _ in judged.values()} == {"generation", "evolution"}
    assert 1 <= len(service.judgements) <= report.rounds
    best = max(quality for _, quality in judged.values())
    assert best == pytest.approx(1 / (1 + 10 ** ((1200 - report.best_elo) / 400)), abs=1e-9)
    assert min(quality for _, quality in judged.values()) < 0.5 < best


def test_research_goes_on_where_nobody_wants_judgements() -> None:
    class Deaf(FakeConvener):
        def judged(self, said: Any) -> httpx.Response:
            return httpx.Response(403, json={"code": "forbidden"})

    assert outcome(pursue(Deaf())) == outcome(pursue(FakeConvener()))


def test_another_seed_takes_another_way() -> None:
    assert outcome(pursue(FakeConvener(), seed=1)) != outcome(pursue(FakeConvener(), seed=2))


def test_a_supervisor_that_starts_again_takes_up_where_it_was() -> None:
    service = FakeConvener()

    def give_up(progress: Progress) -> None:
        if progress.round == 5 and progress.phase == "ranking":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pursue(service, observer=give_up)
    before = len(service.tasks)
    assert len(service.reports) == 4
    resumed = pursue(service)
    assert outcome(resumed) == outcome(pursue(FakeConvener()))
    assert len(service.order_of_completion) == len(service.tasks) > before


def test_results_are_found_when_the_events_are_no_longer_kept() -> None:
    service = FakeConvener()
    first = pursue(service)
    service.events.clear()
    assert outcome(pursue(service)) == outcome(first)


def test_the_observer_sees_every_task_end() -> None:
    seen: list[Progress] = []
    report = pursue(FakeConvener(), observer=seen.append)
    assert seen[-1].done == report.tasks == seen[-1].submitted
    assert [progress.round for progress in seen] == sorted(progress.round for progress in seen)
    assert seen[-1].points == report.points
    assert {progress.phase for progress in seen} == {"proposing", "merging", "ranking", "reviewing"}


def test_the_observer_hears_of_an_absent_service() -> None:
    news: list[str] = []
    pursue(FakeConvener(chaos_seed=5, faults=0.1), observer=lambda progress: news.append(progress.news))
    assert any("HTTP 503: trying again in 1.0 s" in text for text in news)
    assert any("no connection (ConnectError)" in text for text in news)


class Impatient(FakeConvener):
    """Stops the goal in the middle of the third round, as when its time is up."""

    def complete(self, task: dict[str, Any], result: dict[str, Any]) -> None:
        super().complete(task, result)
        if len(self.reports) == 2 and task["agent_type"] == "evolution":
            self.stop("the limit of 60 s of time is used up")


def test_time_runs_out_and_nothing_is_left_behind() -> None:
    service = Impatient()
    report = pursue(service)
    assert report.stopped_because == "the limit of 60 s of time is used up"
    assert not report.law_found
    assert {task["state"] for task in service.tasks.values()} == {"completed", "cancelled"}
    again = pursue(service)
    assert again.stopped_because == report.stopped_because


def test_the_service_says_when_to_stop() -> None:
    service = FakeConvener()
    report = pursue(service)
    assert report.stopped_because == service.stopped
    assert report.stopped_because.startswith("no improvement of 1 % in the last 8 iterations")
    assert {said["new_best"] for said, _ in service.reports.values()} == {None, "exploration", "exploitation"}
    assert outcome(pursue(service)) == outcome(report), "asked again, it has the same to say"


class Failing(FakeConvener):
    """Every reflection fails for good."""

    def complete(self, task: dict[str, Any], result: dict[str, Any]) -> None:
        super().complete(task, result)
        if task["agent_type"] == "reflection":
            task |= {"state": "failed", "result": None, "usage": None}
            self.events[-1]["kind"] = "task.failed"


def test_tasks_that_fail_for_good_are_counted_and_survived() -> None:
    report = pursue(Failing(), limits=dataclasses.replace(LIMITS, max_iterations=2))
    assert report.failed_tasks == report.tasks["reflection"] == 14
    assert not report.law_found
    assert report.stopped_because == "the limit of 2 iterations (2 so far) is used up"


@pytest.mark.slow
def test_the_law_is_found_from_almost_every_seed() -> None:
    found = [pursue(FakeConvener(chaos_seed=seed), seed=seed).law_found for seed in range(1, 21)]
    assert sum(found) >= 18


def plain(service: FakeConvener, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(command, "run", partial(run, transport=service.transport, sleep=lambda seconds: None))
    monkeypatch.setenv("CONVENER_KEY", "cvn_x_y")
    return command.main(arguments)


def test_the_command_says_that_the_law_was_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(FakeConvener(), monkeypatch) == 0
    assert "Law found: T = " in (output := capsys.readouterr().out)
    assert "s compute" in output


def test_the_command_is_honest_when_it_was_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert plain(FakeConvener(), monkeypatch, "--rounds", "1") == 1
    assert "Law not found (" in (output := capsys.readouterr().out)
    assert "the best was: T = " in output
    assert "the limit of 1 iteration (1 so far) is used up" in output


def refusing(status: int, headers: dict[str, str] | None = None) -> httpx.MockTransport:
    return httpx.MockTransport(lambda request: httpx.Response(status, headers=headers, json={"code": "no"}))


def test_the_command_reports_a_refusal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "run", partial(run, transport=refusing(401)))
    monkeypatch.setenv("CONVENER_KEY", "wrong")
    assert command.main([]) == 2
    assert "401" in capsys.readouterr().err


def test_the_command_does_not_wait_for_a_service_to_which_it_has_no_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("CONVENER_KEY", "CONVENER_KEY_FILE", "CONVENER_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(command, "run", partial(run, transport=refusing(401)))
    assert command.main([]) == ExitCode.KEY
    assert "there is no key" in capsys.readouterr().err


def test_the_command_ends_in_order_when_it_is_interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    monkeypatch.setenv("CONVENER_KEY", "cvn_x_y")
    monkeypatch.setattr(command, "run", partial(run, transport=httpx.MockTransport(interrupt)))
    assert command.main([]) == 130
    assert "takes up from there" in capsys.readouterr().err


def test_the_client_waits_as_long_as_it_is_asked_to() -> None:
    pauses: list[float] = []
    with (
        Convener(
            "http://fake", "k", give_up_seconds=0.05, transport=refusing(429, {"Retry-After": "7"}), sleep=pauses.append
        ) as service,
        pytest.raises(Unreachable, match="HTTP 429"),
    ):
        service.task("t")
    assert pauses
    assert min(pauses) >= 7.0


def test_the_client_does_not_repeat_what_was_refused() -> None:
    with Convener("http://fake", "k", transport=refusing(422)) as service, pytest.raises(Refused, match="422"):
        service.submit([{"id": "1"}])


def test_each_result_is_taken_once_though_it_is_announced_twice() -> None:
    fake = FakeConvener()
    with Convener("http://fake", "k", transport=fake.transport) as service:
        dispatch = Dispatch(service, goal_id="goal")
        payload = {"seed": "1", "count": 1, "guidance": {}}
        dispatch.submit([Order(number=n, agent_type="generation", payload=payload) for n in range(3)])
        fake.work()
        fake.events += fake.events
        assert sorted(outcome.order.number for outcome in dispatch.outcomes()) == [0, 1, 2]
    assert dispatch.done == {"generation": 3}


class RestoredConvener(FakeConvener):
    """Put back, at the first wait for events, to a state of before all tasks."""

    reads = 0

    def news(self, params: httpx.QueryParams) -> httpx.Response:
        self.reads += params["after"] != "now"
        assert self.reads < 10, "it waits for ever"
        if self.reads == 1:
            self.tasks.clear()
        return super().news(params)


def test_tasks_that_a_restore_has_taken_away_are_submitted_again() -> None:
    """Supervisors that stayed attached waited for the ends of these for ever."""
    payload = {"seed": "1", "count": 1, "guidance": {}}
    fake = RestoredConvener()
    with Convener("http://fake", "k", transport=fake.transport) as service:
        dispatch = Dispatch(service, goal_id="goal")
        dispatch.submit([Order(number=n, agent_type="generation", payload=payload) for n in range(3)])
        assert sorted(outcome.order.number for outcome in dispatch.outcomes()) == [0, 1, 2]
    fake = RestoredConvener()
    task = {"id": "a", "agent_type": "generation", "goal_id": "g", "payload": payload, "labels": {"number": "1"}}
    with Convener("http://fake", "k", transport=fake.transport) as service:
        starter._carry_out(service, "g", [task], "0")
    assert fake.tasks["a"]["state"] == "completed"


def test_supervisors_know_every_event_with_which_a_task_ends() -> None:
    ends = {event.value for event, (_, state) in TRANSITIONS.items() if state in FINISHED}
    assert (set(starter.ENDS), set(supervising.ENDS)) == (ends, ends)


def test_ids_depend_on_goal_and_number_alone() -> None:
    assert task_id("goal", 1) == task_id("goal", 1)
    assert len({task_id(goal, number) for goal in ("g", "h") for number in range(50)}) == 100


@pytest.mark.parametrize(
    ("task", "advice"),
    [
        (
            {"state": "completed", "result": {"echo": {"best": 1.0}}},
            "convener up --handlers my_agents` here, and name another goal",
        ),
        ({"state": "failed", "result": None}, "convener tasks get a"),
    ],
    ids=["other agents", "failures alone"],
)
def test_the_supervisor_of_the_starter_says_why_it_cannot_go_on(task: dict[str, Any], advice: str) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        assert not request.url.path.endswith("/iterations")
        if request.url.path == "/tasks/batch":
            return httpx.Response(201, json={"tasks": []})
        return httpx.Response(200, json={"items": [], "next": "1-1", "id": "a", **task})

    with (
        Convener("http://fake", "k", transport=httpx.MockTransport(answer)) as service,
        pytest.raises(SystemExit, match=advice),
    ):
        starter.pursue(service, "goal")


def test_the_supervisor_of_the_starter_says_what_to_do_where_another_has_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended with a trace."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/iterations"):
            problem = {"code": "iteration_conflict", "detail": "iteration 1 was reported with other numbers"}
            return httpx.Response(409, json=problem)
        task = {"state": "completed", "result": {"number": 1.4, "quality": 0.9}}
        return httpx.Response(200, json={"items": [], "next": "1-1", "tasks": [], **task})

    monkeypatch.setenv("CONVENER_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("CONVENER_KEY", "cvn_x_y")
    monkeypatch.setattr("sys.argv", ["supervisor"])
    monkeypatch.setattr(starter, "Convener", partial(Convener, transport=httpx.MockTransport(answer)))
    assert supervise(starter.main) == ExitCode.USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert "iteration 1 was reported with other numbers; another program" in line
    assert "pursue a goal of another name" in line


def test_the_supervisor_of_the_starter_says_what_to_do_without_a_key(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVENER_STATE_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("CONVENER_KEY", raising=False)
    assert supervise(starter.main) == ExitCode.KEY
    assert "CONVENER_KEY" in capsys.readouterr().err


def test_a_supervisor_whose_reader_has_gone_ends_without_a_trace() -> None:
    script = "from examples.supervising.command import supervise; supervise(lambda access: print(access.url) or 0)"
    reading, writing = os.pipe()
    os.close(reading)
    variables = {"CONVENER_URL": "http://127.0.0.1:1", "CONVENER_KEY": "cvn_x_y", "PATH": os.environ["PATH"]}
    words = [sys.executable, "-c", script]
    try:
        done = subprocess.run(words, stdout=writing, stderr=subprocess.PIPE, env=variables, timeout=60, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")
