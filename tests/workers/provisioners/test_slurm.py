"""Slurm's answers as recorded from version 24.11, and its commands as they are called."""

import os
from pathlib import Path

import pytest

from app.workers.provisioners.scheduler import JobRequest, JobState, SchedulerError
from app.workers.provisioners.slurm import Slurm, read_jobs
from tests.support.processes import program

# squeue --noheader --states=all --format='%i|%j|%T|%S|%e|%D|%r', SLURM_TIME_FORMAT=%s
RECORDED = """\
14|convener-0b1c|PENDING|N/A|N/A|2|Resources
15|convener-0b1d|PENDING|1795898271|1795898391|2|Priority
13|convener-0b1b|RUNNING|1795898271|1795898391|2|None
12|convener-0b1a|COMPLETING|1795898044|1795898164|1|None
11|convener-0b1e|SUSPENDED|1795898044|1795898164|2|None
10|convener-0b1f|RUNNING|1795898271|1795898391|1K|None
9|convener-0b19|CANCELLED|1795898044|1795898050|2|None
8|convener-0b18|TIMEOUT|1795897900|1795897962|2|TimeLimit
7|convener-0b17|NODE_FAIL|1795897900|1795897921|1|NodeDown
6|convener-0b16|PREEMPTED|1795897900|1795897922|2|None
5|other|PENDING|N/A|N/A|1|ReqNodeNotAvail, UnavailableNodes:n[1-2]
4_[1-9]|array|PENDING|N/A|N/A|1|(Dependency|never)
"""


def test_jobs_are_read_with_their_states_and_times() -> None:
    jobs = {job.id: job for job in read_jobs(RECORDED)}
    assert {job_id: job.state for job_id, job in jobs.items()} == {
        "14": JobState.QUEUED,
        "15": JobState.QUEUED,
        "13": JobState.RUNNING,
        "12": JobState.ENDING,
        "11": JobState.SUSPENDED,
        "10": JobState.RUNNING,
        "9": JobState.ENDED,
        "8": JobState.ENDED,
        "7": JobState.ENDED,
        "6": JobState.ENDED,
        "5": JobState.QUEUED,
        "4_[1-9]": JobState.QUEUED,
    }
    assert (jobs["13"].name, jobs["13"].started_at, jobs["13"].ends_at) == ("convener-0b1b", 1795898271, 1795898391)
    assert jobs["14"].started_at is None
    assert jobs["14"].reason == "PENDING: Resources"
    assert jobs["5"].reason == "PENDING: ReqNodeNotAvail, UnavailableNodes:n[1-2]"
    assert jobs["4_[1-9]"].reason == "PENDING: (Dependency|never)"
    assert jobs["9"].reason == "CANCELLED"
    assert {job_id: job.nodes for job_id, job in jobs.items() if job.nodes is not None} == {"13": 2}


@pytest.mark.parametrize(
    ("state", "reason", "is_stuck"),
    [
        ("PENDING", "Resources", False),
        ("PENDING", "QOSMaxJobsPerUserLimit", False),
        ("PENDING", "AssocGrpNodeMinutes", False),
        ("PENDING", "QOSMaxWallDurationPerJobLimit", True),
        ("PENDING", "QOSMaxNodePerJobLimit", True),
        ("PENDING", "AssocMaxMemPerJob", True),
        ("PENDING", "QOSMaxGRESPerNode", True),
        ("PENDING", "QOSMinGRES", True),
        ("PENDING", "JobHeldUser", True),
        ("PENDING", "JobHeldAdmin", True),
        ("PENDING", "DependencyNeverSatisfied", True),
        ("PENDING", "BadConstraints", True),
        ("PENDING", "PartitionTimeLimit", True),
        ("PENDING", "job requeued in held state", True),
        ("PENDING", "launch failed requeued held", True),
        ("REQUEUE_HOLD", "None", True),
        ("RUNNING", "None", False),
    ],
)
def test_a_job_that_waiting_does_not_help_is_told(state: str, reason: str, *, is_stuck: bool) -> None:
    (job,) = read_jobs(f"1|convener|{state}|N/A|N/A|1|{reason}")
    assert job.is_stuck is is_stuck


def test_lines_of_another_form_are_passed_over() -> None:
    assert list(read_jobs("welcome to the login node\n\n||||||\n")) == []


async def test_a_job_is_submitted_with_its_script_as_input_and_no_secret_as_argument(tmp_path: Path) -> None:
    program(tmp_path, "sbatch", 'printf "%s\\n" "$@" > $(dirname $0)/words; cat > $(dirname $0)/script; echo "17;lab"')
    slurm = Slurm({**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, ["--partition=debug", "--account=bio"])
    job = JobRequest(
        name="convener-1", comment="a block", nodes=2, walltime_seconds=125, script="#!/bin/sh\necho", log="/x/%j"
    )
    assert await slurm.submit(job) == "17"
    words = (tmp_path / "words").read_text().splitlines()
    assert words[-2:] == ["--partition=debug", "--account=bio"]
    assert {"--nodes=2", "--time=2", "--job-name=convener-1", "--comment=a block", "--no-requeue"} <= {*words}
    assert (tmp_path / "script").read_text() == "#!/bin/sh\necho"


@pytest.mark.parametrize(
    ("said", "is_refusal"),
    [
        ("sbatch: error: invalid partition specified: none", True),
        ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)", False),
        ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", False),
    ],
)
async def test_a_refusal_is_told_from_a_controller_that_is_away(tmp_path: Path, said: str, *, is_refusal: bool) -> None:
    program(tmp_path, "sbatch", f"cat >/dev/null; echo '{said}' >&2; exit 1")
    slurm = Slurm({**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    job = JobRequest(name="convener-1", comment="", nodes=1, walltime_seconds=60, script="", log="/x")
    with pytest.raises(SchedulerError) as error:
        await slurm.submit(job)
    assert error.value.is_refusal is is_refusal


async def test_its_jobs_are_found_whatever_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Supervisors that change the user leave LOGNAME as it was, and SQUEUE_PARTITION of a shell hides jobs."""
    program(tmp_path, "squeue", 'printf "%s\\n" "$@" "$SQUEUE_PARTITION" > $(dirname $0)/words')
    monkeypatch.setenv("LOGNAME", "somebody")
    monkeypatch.setenv("SQUEUE_PARTITION", "debug")
    slurm = Slurm({**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"})
    assert await slurm.jobs() == []
    words = (tmp_path / "words").read_text().splitlines()
    assert (f"--user={os.geteuid()}" in words, words[-1]) == (True, "")


@pytest.mark.parametrize(("own_job", "left"), [({}, "1 2048"), ({"SLURM_JOB_ID": "5"}, "")])
async def test_the_job_that_the_loops_run_in_says_nothing_about_theirs(
    tmp_path: Path, own_job: dict[str, str], left: str
) -> None:
    """As in `srun --pty bash`, whose one core would be all that a block takes of its nodes."""
    program(
        tmp_path, "sbatch", 'echo $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE, $SLURM_CONF > "$(dirname $0)/said"; echo 1'
    )
    allocation = {"SLURM_CPUS_PER_TASK": "1", "SLURM_MEM_PER_NODE": "2048", "SLURM_CONF": "/etc/slurm.conf"}
    slurm = Slurm({"PATH": f"{tmp_path}:{os.environ['PATH']}", **allocation, **own_job})
    job = JobRequest(name="convener-1", comment="", nodes=1, walltime_seconds=60, script="", log="/x")
    await slurm.submit(job)
    assert (tmp_path / "said").read_text().strip() == f"{left}, /etc/slurm.conf"
