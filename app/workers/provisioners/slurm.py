"""Slurm through sbatch, squeue and scancel.

Jobs are read in a format of our own and not as JSON: `squeue --json` needs a plugin that many sites do not install, and
its fields change with the version of that plugin (`data_parser`), while `--format` is the same in all versions in use.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from app.workers.provisioners.scheduler import Job, JobRequest, JobState, SchedulerCommands

_SEPARATOR = "|"
# The name is ours and holds no separator; the reason comes last, as it may hold anything.
_FORMAT = _SEPARATOR.join(("%i", "%j", "%T", "%S", "%e", "%D", "%r"))
_QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"}
)
_RUNNING = frozenset({"RUNNING", "SIGNALING", "RESIZING"})
# For hours where a node does not answer or an epilog hangs.
_ENDING = frozenset({"COMPLETING", "STAGE_OUT"})
_SUSPENDED = frozenset({"SUSPENDED", "STOPPED"})
# Of jobs that wait for somebody to release or to change them.
_STUCK_STATES = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT"})
_STUCK_REASONS = frozenset(
    {
        *("JobHeldUser", "JobHeldAdmin", "job requeued in held state", "launch failed requeued held"),
        *("DependencyNeverSatisfied", "BadConstraints", "PartitionNodeLimit", "PartitionTimeLimit"),
        *("InvalidAccount", "InvalidQOS", "AccountNotAllowed", "QOSNotAllowed"),
    }
)
# Of jobs that are larger, or smaller, than a limit lets any job be: QOSMaxNodePerJobLimit, AssocMaxMemPerJob ...
_OUT_OF_BOUNDS = re.compile(r"(QOS|Assoc)(Max\w+Per(Job|Node)(Limit)?|Min\w+)")
# By what the commands find their cluster, and are let in.
_ACCESS = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"})
# sbatch --parsable adds the cluster's name where there are several.
_JOB_ID = re.compile(r"(?P<id>\d+)(;.*)?")
# What sbatch and scancel say of jobs and of the service itself; anything else is the job's own fault.
_AWAY = ("unable to contact slurm controller", "socket timed out", "connection refused", "zero bytes were transmitted")


class Slurm:
    """The cluster of Slurm that its commands speak to on this machine; `options` are the site's, for each job."""

    kind = "slurm"

    def __init__(self, environment: Mapping[str, str], options: Sequence[str] = ()) -> None:
        # What somebody has set for the lists of a shell must hide no job of ours.
        plain = {name: value for name, value in environment.items() if not name.startswith("SQUEUE_")}
        if "SLURM_JOB_ID" in plain:
            # We run in a job ourselves, whose cores and memory srun would take for those of ours.
            plain = {name: value for name, value in plain.items() if not name.startswith("SLURM_") or name in _ACCESS}
        # Times in seconds since 1970: by default they are in the local time of whoever asks, without its zone.
        self._commands = SchedulerCommands({**plain, "SLURM_TIME_FORMAT": "%s"}, _AWAY)
        self._options = list(options)

    async def submit(self, request: JobRequest) -> str:
        """Submit a job; return its id. Raises SchedulerError."""
        # What is lost is planned anew by us, with a new token, so a job is not requeued; and one that has lost a node
        # goes on with the others. Options of the site come last, as they win.
        words = ["--parsable", "--no-requeue", "--no-kill", f"--nodes={request.nodes}", "--ntasks-per-node=1"]
        words += [f"--time={_minutes(request.walltime_seconds)}", f"--job-name={request.name}"]
        words += [f"--comment={request.comment}", f"--output={request.log}", "--open-mode=append", "--export=ALL"]
        return await self._commands.submit("sbatch", *words, *self._options, script=request.script, job_id=_JOB_ID)

    async def jobs(self) -> list[Job]:
        """The jobs of this user that Slurm still knows. Raises SchedulerError."""
        words = ("--noheader", "--states=all", f"--user={os.geteuid()}", f"--format={_FORMAT}")
        return list(read_jobs(await self._commands.run("squeue", *words)))

    async def cancel(self, job_ids: Sequence[str]) -> None:
        """Cancel jobs; one that has ended is no error. Raises SchedulerError."""
        if job_ids:
            await self._commands.run("scancel", "--quiet", *job_ids)


def read_jobs(printed: str) -> Iterator[Job]:
    """The jobs in the output of squeue; lines of another form are those of a site's wrapper, and passed over."""
    for line in printed.splitlines():
        fields = line.strip().split(_SEPARATOR, 6)
        if len(fields) != 7 or not fields[0]:
            continue
        job_id, name, state, started_at, ends_at, nodes, reason = fields
        yield Job(
            id=job_id,
            name=name,
            state=_state(state),
            reason=_reason(state, reason),
            started_at=_moment(started_at),
            ends_at=_moment(ends_at),
            is_stuck=state in _STUCK_STATES or (state in _QUEUED and _is_stuck(reason)),
            # Of one that ends, those that it has not given back yet; thousands are told as 1K.
            nodes=int(nodes) if state == "RUNNING" and nodes.isdecimal() else None,
        )


def _state(word: str) -> JobState:
    if word in _QUEUED:
        return JobState.QUEUED
    if word in _SUSPENDED:
        return JobState.SUSPENDED
    if word in _ENDING:
        return JobState.ENDING
    return JobState.RUNNING if word in _RUNNING else JobState.ENDED


def _is_stuck(reason: str) -> bool:
    return reason in _STUCK_REASONS or _OUT_OF_BOUNDS.fullmatch(reason) is not None


def _reason(state: str, reason: str) -> str:
    return state if reason in ("", "None") else f"{state}: {reason}"


def _moment(text: str) -> float | None:
    # N/A and Unknown where there is none; 0 in some versions.
    return float(text) if text.isdecimal() and int(text) else None


def _minutes(seconds: int) -> int:
    """Whole minutes, which is what Slurm counts in."""
    return max(1, seconds // 60)
