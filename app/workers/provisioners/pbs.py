"""OpenPBS and PBS Professional through qsub, qstat and qdel; qstat answers in JSON from version 14 on."""

import json
import os
import pwd
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from app.workers.provisioners.scheduler import Job, JobRequest, JobState, SchedulerCommands, SchedulerError

_QUEUED = frozenset("QHWTM")
_RUNNING = frozenset("RB")
# U: for the user of a workstation.
_SUSPENDED = frozenset("SU")
_JOB_ID = re.compile(r"(?P<id>\d+(\[\d*\])?\.[\w.-]+)")
# A finished job, or one that the server has forgotten: pbs_errno 15001 and what follows.
_GONE = ("unknown job id", "job has finished")
_AWAY = ("cannot connect to server", "connection refused", "no route to host", "timed out")


class Pbs:
    """The PBS complex that its commands speak to on this machine; `options` are the site's, for each job."""

    kind = "pbs"

    def __init__(self, environment: Mapping[str, str], options: Sequence[str] = ()) -> None:
        self._commands = SchedulerCommands(environment, _AWAY)
        self._options = list(options)

    async def submit(self, request: JobRequest) -> str:
        """Submit a job; return its id. Raises SchedulerError."""
        # -r n: what is lost is planned anew by us, with a new token. -V: the environment that we give qsub.
        words = ["-N", request.name, "-r", "n", "-V", "-j", "oe", "-o", request.log]
        words += ["-l", f"select={request.nodes}", "-l", "place=scatter"]
        words += ["-l", f"walltime={clock(request.walltime_seconds)}"]
        return await self._commands.submit("qsub", *words, *self._options, script=request.script, job_id=_JOB_ID)

    async def jobs(self) -> list[Job]:
        """The jobs of this user that have not ended. Raises SchedulerError."""
        printed = await self._commands.run("qstat", "-f", "-F", "json")
        return list(read_jobs(printed, owner=_own_name(), now=time.time()))

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs; one that has ended is no error. Raises SchedulerError."""
        for job_id in job_ids:
            try:
                await self._commands.run("qdel", job_id)
            except SchedulerError as error:
                if not any(sign in str(error).lower() for sign in _GONE):
                    raise


def _own_name() -> str:
    # Not from USER or LOGNAME, which supervisors that change the user leave as they were.
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise SchedulerError(f"the user {os.geteuid()} has no name here, by which PBS would list its jobs") from None


def read_jobs(printed: str, *, owner: str, now: float) -> Iterator[Job]:
    """The jobs of `owner` in the output of qstat; `now` in seconds since 1970. Raises SchedulerError."""
    if not printed.strip():
        return
    try:
        # Values of variables may hold control characters, which qstat does not escape.
        jobs: Any = json.loads(printed, strict=False).get("Jobs", {})
        items = list(jobs.items())
    except (ValueError, AttributeError) as error:
        raise SchedulerError(f"qstat: no JSON of jobs ({error})") from None
    for job_id, job in items:
        if isinstance(job, dict) and str(job.get("Job_Owner", "")).partition("@")[0] == owner:
            yield _job(job_id, job, now)


def _job(job_id: str, job: dict[str, Any], now: float) -> Job:
    letter = str(job.get("job_state", ""))
    state = _state(letter)
    started_at = ends_at = None
    if state in (JobState.RUNNING, JobState.SUSPENDED, JobState.ENDING):
        # Times of day are those of the server's zone, which is not told; what has been used of the walltime is clear.
        used = seconds_of(job.get("resources_used", {}).get("walltime"))
        limit = seconds_of(job.get("Resource_List", {}).get("walltime"))
        started_at = now - (used or 0.0)
        ends_at = None if limit is None else started_at + limit
    status = job.get("Exit_status")
    reason = letter if status is None else f"{letter}: exit status {status}"
    comment = job.get("comment")
    return Job(
        id=job_id,
        name=str(job.get("Job_Name", "")),
        state=state,
        reason=f"{reason}: {comment}" if comment else reason,
        started_at=started_at,
        ends_at=ends_at,
        # By its owner, the site, or PBS itself after too many starts that failed.
        is_stuck=letter == "H",
    )


def _state(letter: str) -> JobState:
    if letter in _QUEUED:
        return JobState.QUEUED
    if letter in _SUSPENDED:
        return JobState.SUSPENDED
    if letter == "E":
        return JobState.ENDING
    return JobState.RUNNING if letter in _RUNNING else JobState.ENDED


def clock(seconds: int) -> str:
    """A length of time as PBS reads it: HH:MM:SS."""
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def seconds_of(text: Any) -> float | None:
    """The seconds of a length of time, [[HH:]MM:]SS; None for anything else."""
    parts = str(text).split(":")
    if not all(part.isdecimal() for part in parts) or len(parts) > 3:
        return None
    return float(sum(int(part) * 60**power for power, part in enumerate(reversed(parts))))
