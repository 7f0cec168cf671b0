"""PBS's answers, in the form that sites have published of OpenPBS 19 to 23, and its commands as they are called."""

import json
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from app.workers.provisioners.pbs import Pbs, clock, read_jobs, seconds_of
from app.workers.provisioners.scheduler import JobRequest, JobState, SchedulerError
from tests.support.processes import program

HEAD = '{\n    "timestamp":1664911414,\n    "pbs_version":"22.05.11",\n    "pbs_server":"pbs"'
RUNNING: dict[str, Any] = {
    "Job_Name": "convener-0b1b",
    "Job_Owner": "alice@login1",
    "resources_used": {"cpupercent": 0, "cput": "00:00:00", "mem": "5620kb", "ncpus": 2, "walltime": "00:00:40"},
    "job_state": "R",
    "queue": "workq",
    "ctime": "Tue Oct  4 21:23:20 2022",
    "exec_host": "n1/0*2+n2/0*2",
    "exec_vnode": "(n1:ncpus=2)+(n2:ncpus=2)",
    "Hold_Types": "n",
    "Resource_List": {"ncpus": 4, "nodect": 2, "place": "scatter", "select": "2:ncpus=2", "walltime": "00:02:00"},
    "stime": "Tue Oct  4 21:23:33 2022",
    "substate": 42,
    "Variable_List": {"PBS_O_HOME": "/home/alice", "PBS_O_WORKDIR": "/home/alice"},
    "comment": "Job run at Tue Oct 04 at 21:23 on (n1:ncpus=2)+(n2:ncpus=2)",
    "run_count": 1,
}
QUEUED = {name: RUNNING[name] for name in ("Job_Owner", "queue", "ctime", "Resource_List")} | {
    "Job_Name": "convener-0b1c",
    "job_state": "Q",
    "comment": "Not Running: Not enough free nodes available",
}
FINISHED = RUNNING | {"Job_Name": "convener-0b1a", "job_state": "F", "Exit_status": 271, "comment": "finished"}
ALICE: dict[str, Any] = {"owner": "alice", "now": 1664911414.0}


def printed(**jobs: dict[str, Any]) -> str:
    """What qstat prints of these jobs."""
    return f'{HEAD},\n    "Jobs":{json.dumps(jobs)}\n}}'


def test_jobs_are_read_with_their_states_and_times() -> None:
    text = printed(**{"11.pbs": FINISHED, "12.pbs": RUNNING, "13.pbs": QUEUED})
    finished, running, queued = read_jobs(text, **ALICE)
    assert (finished.state, finished.reason) == (JobState.ENDED, "F: exit status 271: finished")
    assert (running.id, running.name, running.state) == ("12.pbs", "convener-0b1b", JobState.RUNNING)
    assert (running.started_at, running.ends_at) == (ALICE["now"] - 40, ALICE["now"] + 80)
    assert (queued.state, queued.ends_at) == (JobState.QUEUED, None)
    assert queued.reason == "Q: Not Running: Not enough free nodes available"


def test_a_job_that_is_held_starts_by_nothing_but_a_release() -> None:
    """By its owner, or by PBS after 20 starts that failed."""
    held = QUEUED | {"job_state": "H", "comment": "job held, too many failed attempts to run"}
    queued, stuck = read_jobs(printed(**{"13.pbs": QUEUED, "14.pbs": held}), **ALICE)
    assert (queued.is_stuck, stuck.is_stuck, stuck.state) == (False, True, JobState.QUEUED)


def test_a_job_that_has_just_begun_has_used_nothing() -> None:
    just_begun = {name: value for name, value in RUNNING.items() if name != "resources_used"}
    (job,) = read_jobs(printed(**{"12.pbs": just_begun}), **ALICE)
    assert job.ends_at == ALICE["now"] + 120


def test_a_job_that_is_suspended_or_exits_has_the_end_that_follows_from_its_use() -> None:
    (running,) = read_jobs(printed(**{"12.pbs": RUNNING}), **ALICE)
    for letter, state in (("S", JobState.SUSPENDED), ("U", JobState.SUSPENDED), ("E", JobState.ENDING)):
        (job,) = read_jobs(printed(**{"12.pbs": RUNNING | {"job_state": letter}}), **ALICE)
        assert (job.state, job.ends_at) == (state, running.ends_at)


def test_jobs_of_others_are_left_out() -> None:
    assert list(read_jobs(printed(**{"12.pbs": RUNNING | {"Job_Owner": "alicia@login1"}}), **ALICE)) == []


def test_a_server_without_jobs_names_none() -> None:
    assert list(read_jobs(HEAD + "\n}", **ALICE)) == []
    assert list(read_jobs("", **ALICE)) == []


def test_control_characters_in_variables_do_no_harm() -> None:
    raw = printed(**{"12.pbs": RUNNING}).replace("/home/alice", "/home/alice\x1b")
    assert len(list(read_jobs(raw, **ALICE))) == 1


@pytest.mark.parametrize("text", ["qstat: error", "[]", '{"Jobs": 3}'])
def test_anything_else_is_an_error(text: str) -> None:
    with pytest.raises(SchedulerError, match="no JSON of jobs"):
        list(read_jobs(text, **ALICE))


def test_lengths_of_time() -> None:
    assert (clock(125), clock(86_400 * 2)) == ("00:02:05", "48:00:00")
    assert [seconds_of(text) for text in ("00:02:05", "90", "1:30", "", None)] == [125, 90, 90, None, None]


async def test_a_job_is_submitted_with_its_script_as_input(tmp_path: Path) -> None:
    program(tmp_path, "qsub", 'printf "%s\\n" "$@" > $(dirname $0)/words; cat > $(dirname $0)/script; echo 17.pbs')
    job = JobRequest(name="convener-1", comment="", nodes=2, walltime_seconds=120, script="#!/bin/sh\n", log="/x/log")
    assert await scheduler(tmp_path, ["-q", "debug", "-A", "bio"]).submit(job) == "17.pbs"
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-4:] == ["-q", "debug", "-A", "bio"]
    assert {"select=2", "walltime=00:02:00", "convener-1"} <= {*words}
    assert (tmp_path / "script").read_text() == "#!/bin/sh\n"


async def test_its_jobs_are_found_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervisors that change the user leave USER and LOGNAME as they were."""
    monkeypatch.setenv("LOGNAME", "alice")
    own = RUNNING | {"Job_Owner": f"{pwd.getpwuid(os.geteuid()).pw_name}@login1"}
    program(tmp_path, "qstat", f"cat <<'END'\n{printed(**{'12.pbs': RUNNING, '13.pbs': own})}\nEND")
    assert [job.id for job in await scheduler(tmp_path).jobs()] == ["13.pbs"]


async def test_the_history_of_all_users_is_not_asked_for(tmp_path: Path) -> None:
    """A site keeps it for weeks, and all of it would be read every few seconds."""
    program(tmp_path, "qstat", f"echo \"$@\" > $(dirname $0)/words; cat <<'END'\n{HEAD}}}\nEND")
    assert await scheduler(tmp_path).jobs() == []
    assert (tmp_path / "words").read_text() == "-f -F json\n"


async def test_a_server_that_is_away_is_no_refusal(tmp_path: Path) -> None:
    away = "Connection refused\nqstat: cannot connect to server pbs (errno=15010)"
    program(tmp_path, "qstat", f"echo '{away}' >&2; echo '{HEAD}}}'; exit 255")
    with pytest.raises(SchedulerError, match="cannot connect to server pbs") as error:
        await scheduler(tmp_path).jobs()
    assert not error.value.is_refusal


@pytest.mark.parametrize("said", ["qdel: Unknown Job Id 17.pbs", "qdel: Job has finished 17.pbs"])
async def test_a_job_that_has_ended_is_cancelled_already(tmp_path: Path, said: str) -> None:
    program(tmp_path, "qdel", f"echo '{said}' >&2; exit 35")
    await scheduler(tmp_path).cancel(["17.pbs"])


def scheduler(place: Path, options: list[str] | None = None) -> Pbs:
    """PBS whose commands are programs in this directory."""
    return Pbs({**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}, options or [])
