"""The engine of blocks over a scheduler that is only a list: what it submits, cancels and hands over."""

import asyncio
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from jinja2 import Environment

from app.workers.provisioners.block_scripts import PBS
from app.workers.provisioners.engine import EngineUnavailable
from app.workers.provisioners.scheduler import Job, JobRequest, JobState
from app.workers.rules.engines import MemberState, plan_engine
from tests.support.blocks import Jobs, engine


async def test_blocks_are_submitted_for_the_size_and_wait_with_their_reason(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 10, [])
    assert [request.nodes for request in jobs.requests] == [3, 2]
    state = await blocks.state(fresh=True)
    assert (state.requested, {member.state for member in state.members}) == (10, {MemberState.PENDING})
    assert {member.reason for member in state.members} == {"its job waits in the queue of slurm (PENDING: Resources)"}
    assert not any(member.is_failure for member in state.members)
    script = jobs.requests[0].script
    assert script.startswith("#!/bin/sh\n3 x convener pilot --name lab-")
    assert "--handlers 'my agents'" in script
    assert "convener-pool=slurm/lab" in script
    assert "s3cret" not in script
    assert "cvn_" not in script


async def test_a_job_that_is_held_is_a_failed_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    (job,) = await jobs.jobs()

    async def held() -> Sequence[Job]:
        return [replace(job, reason="PENDING: JobHeldAdmin", is_stuck=True)]

    monkeypatch.setattr(jobs, "jobs", held)
    state = await blocks.state(fresh=True)
    assert {(member.reason, member.is_failure) for member in state.members} == {
        ("its job is stuck in the queue of slurm (PENDING: JobHeldAdmin)", True)
    }


async def test_a_job_that_is_suspended_is_replaced_and_gives_way_to_its_replacement(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.states["1"] = JobState.SUSPENDED
    state = await blocks.state(fresh=True)
    assert (state.requested, state.lasting, {m.state for m in state.members}) == (0, 0, {MemberState.READY})
    assert {m.reason for m in state.members} == {"its job is suspended by slurm (PENDING: Resources)"}
    await blocks.scale(state, 2, [])
    jobs.states["2"] = JobState.RUNNING
    state = await blocks.state(fresh=True)
    assert [m.state for m in state.members] == [MemberState.READY] * 2 + [MemberState.LEAVING] * 2
    jobs.states["1"] = JobState.RUNNING
    state = await blocks.state(fresh=True)
    assert (state.requested, state.lasting) == (4, 4)


async def test_a_job_that_is_ending_is_replaced_and_nobody_has_to_cancel_it(tmp_path: Path) -> None:
    """It may be so for hours, where a node does not answer or what the site runs afterwards hangs."""
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.states["1"] = JobState.ENDING
    state = await blocks.state(fresh=True)
    assert (state.requested, [member.state for member in state.members]) == (0, [MemberState.LEAVING] * 2)
    assert list(plan_engine(state, [], 2, 2).over) == []


async def test_nodes_that_a_job_has_lost_are_replaced(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 6, [])
    jobs.states["1"], jobs.nodes["1"] = JobState.RUNNING, 2
    state = await blocks.state(fresh=True)
    # Which of its members these are nobody tells.
    assert (state.requested, state.lasting, len(state.members)) == (4, 4, 6)
    await blocks.scale(state, 6, [])
    assert [request.nodes for request in jobs.requests] == [3, 1]
    state = await blocks.state(fresh=True)
    assert (state.requested, state.lasting) == (6, 6)
    names = frozenset(member.name for member in state.members if member.state is MemberState.READY)
    assert sorted(blocks.choose(state, names, 4)) == sorted(names)


async def test_another_process_finds_the_blocks_and_asks_for_no_more(tmp_path: Path) -> None:
    jobs = Jobs()
    first = engine(jobs, tmp_path)
    await first.scale(await first.state(fresh=True), 4, [])
    second = engine(jobs, tmp_path)
    state = await second.state(fresh=False)
    assert state.requested == 4
    await second.scale(state, 4, [])
    assert len(jobs.requests) == 1


async def test_blocks_of_another_control_plane_of_this_user_and_host_are_left_alone(tmp_path: Path) -> None:
    """One for trials beside that of every day: each has a directory of its own."""
    jobs = Jobs()
    ours, theirs = engine(jobs, tmp_path / "ours"), engine(jobs, tmp_path / "theirs")
    await theirs.scale(await theirs.state(fresh=True), 2, [])
    state = await ours.state(fresh=True)
    assert (state.requested, state.members) == (0, [])
    await ours.scale(state, 0, [])
    assert jobs.states == {"1": JobState.QUEUED}


async def test_queued_blocks_are_given_up_and_running_ones_only_as_a_whole(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, max_nodes=1)
    await blocks.scale(await blocks.state(fresh=True), 6, [])
    jobs.states["1"] = jobs.states["2"] = JobState.RUNNING
    state = await blocks.state(fresh=True)
    await blocks.scale(state, 4, [])
    assert list(jobs.states.values()) == [JobState.RUNNING, JobState.RUNNING, JobState.ENDED]
    state = await blocks.state(fresh=True)
    names = sorted(member.name for member in state.members)
    assert blocks.choose(state, frozenset(names[:3]), 2) == names[:2]
    assert blocks.choose(state, frozenset(names[1:3]), 2) == []
    await blocks.scale(state, 2, names[:2])
    assert [state is JobState.ENDED for state in jobs.states.values()].count(True) == 2


async def test_a_block_is_replaced_ahead_of_its_end(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.states["1"] = JobState.RUNNING
    jobs.ends["1"] = time.time() + 200
    state = await blocks.state(fresh=True)
    assert (state.requested, len(state.active)) == (0, 2)
    await blocks.scale(state, 2, [])
    state = await blocks.state(fresh=True)
    assert (state.requested, len(state.active), state.expiring) == (2, 4, 2)
    jobs.states["2"] = JobState.RUNNING
    state = await blocks.state(fresh=True)
    leaving = [member for member in state.members if member.state is MemberState.LEAVING]
    assert (state.requested, len(state.active), len(leaving)) == (2, 2, 2)
    await blocks.scale(state, 2, [member.name for member in leaving])
    assert jobs.states == {"1": JobState.ENDED, "2": JobState.RUNNING}


async def test_the_end_that_is_expected_of_a_queued_job_is_not_that_of_its_block(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    # A backfill that meant to start it earlier.
    jobs.ends["1"] = time.time() + 40
    await blocks.state(fresh=True)
    jobs.states["1"] = JobState.RUNNING
    jobs.ends["1"] = time.time() + 3000
    state = await blocks.state(fresh=True)
    assert (state.requested, state.expiring) == (2, 0)
    assert {member.state for member in state.members} == {MemberState.READY}


async def test_after_a_refusal_nothing_is_submitted_for_a_while(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, max_nodes=1, first_rest_seconds=0.2, longest_rest_seconds=0.3)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.refusal = "sbatch: invalid partition"
    # The first of two is refused, so the second is not tried.
    with pytest.raises(EngineUnavailable, match="invalid partition"):
        await blocks.scale(await blocks.state(fresh=True), 6, [])
    state = await blocks.state(fresh=True)
    assert (state.refusal, state.is_resting, jobs.tries) == ("sbatch: invalid partition", True, 2)
    # What has to go goes meanwhile.
    with pytest.raises(EngineUnavailable, match="invalid partition"):
        await blocks.scale(state, 6, [member.name for member in state.members])
    assert (jobs.tries, jobs.states["1"]) == (2, JobState.ENDED)
    await asyncio.sleep(0.21)
    with pytest.raises(EngineUnavailable, match="invalid partition"):
        await blocks.scale(await blocks.state(fresh=True), 4, [])
    assert jobs.tries == 3
    jobs.refusal = None
    await asyncio.sleep(0.31)
    await blocks.scale(await blocks.state(fresh=True), 4, [])
    state = await blocks.state(fresh=True)
    assert (state.refusal, state.is_resting, state.requested) == (None, False, 4)


async def test_after_a_turn_that_ends_in_the_middle_of_a_submit_nothing_is_submitted_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path)

    async def hang(request: JobRequest) -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(jobs, "submit", hang)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await blocks.scale(await blocks.state(fresh=True), 2, [])
    monkeypatch.undo()
    state = await blocks.state(fresh=True)
    assert (state.refusal, state.is_resting) == ("slurm has not taken a job in time", True)
    with pytest.raises(EngineUnavailable, match="not taken a job in time"):
        await blocks.scale(state, 2, [])
    assert jobs.tries == 0


@pytest.mark.parametrize("is_listed", [True, False])
async def test_jobs_that_end_at_once_are_not_submitted_without_end(tmp_path: Path, *, is_listed: bool) -> None:
    """Also where the list shows none of them: the site renames jobs, or it is that of another cluster."""
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, max_nodes=1)
    for _ in range(10):
        state = await blocks.state(fresh=True)
        if not state.is_resting:
            await blocks.scale(state, 20, [])
        jobs.states = dict.fromkeys(jobs.states, JobState.ENDED) if is_listed else {}
    assert len(jobs.requests) == 8
    assert state.refusal is not None
    why = "PENDING: Resources" if is_listed else "slurm does not list it"
    assert state.refusal == f"job 1 did not last ({why}): see its output in {tmp_path}/logs"


async def test_a_job_ends_at_once_however_long_its_site_takes_afterwards(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, early_seconds=0.3)
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.states["1"] = JobState.ENDING
    assert (await blocks.state(fresh=True)).is_resting
    await asyncio.sleep(0.31)
    jobs.states["1"] = JobState.ENDED
    assert len((await blocks.state(fresh=True)).members) == 0


async def test_after_jobs_that_ended_at_once_one_at_a_time_is_tried(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, max_nodes=1, first_rest_seconds=0.1, early_seconds=0.3)
    await blocks.scale(await blocks.state(fresh=True), 4, [])
    jobs.states = dict.fromkeys(jobs.states, JobState.ENDED)
    assert (await blocks.state(fresh=True)).is_resting
    await asyncio.sleep(0.11)
    await blocks.scale(await blocks.state(fresh=True), 8, [])
    state = await blocks.state(fresh=True)
    assert (len(jobs.requests), state.is_resting) == (3, True)
    jobs.states["3"] = JobState.RUNNING
    await asyncio.sleep(0.31)
    await blocks.scale(await blocks.state(fresh=True), 8, [])
    assert len(jobs.requests) == 6
    assert (await blocks.state(fresh=True)).refusal is None


async def test_blocks_that_are_cancelled_are_none_that_did_not_last(tmp_path: Path) -> None:
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, max_nodes=1)
    await blocks.scale(await blocks.state(fresh=True), 6, [])
    await blocks.scale(await blocks.state(fresh=True), 2, [])
    state = await blocks.state(fresh=True)
    assert (state.refusal, state.is_resting, state.requested) == (None, False, 2)


async def test_nor_are_those_that_other_loops_have_cancelled(tmp_path: Path) -> None:
    jobs = Jobs()
    await engine(jobs, tmp_path, max_nodes=1).scale(await engine(jobs, tmp_path).state(fresh=True), 6, [])
    others = engine(jobs, tmp_path, max_nodes=1)
    await others.state(fresh=True)
    jobs.states.clear()
    assert not (await others.state(fresh=True)).is_resting


async def test_one_with_other_settings_tries_at_once(tmp_path: Path) -> None:
    jobs = Jobs()
    jobs.refusal = "sbatch: invalid partition"
    blocks = engine(jobs, tmp_path)
    with pytest.raises(EngineUnavailable):
        await blocks.scale(await blocks.state(fresh=True), 2, [])
    jobs.refusal = None
    again = engine(jobs, tmp_path)
    await again.scale(await again.state(fresh=True), 2, [])
    assert len(jobs.requests) == 1


def test_the_script_for_pbs_hands_environment_and_words_over_unchanged(tmp_path: Path) -> None:
    pbsdsh = tmp_path / "pbsdsh"
    pbsdsh.write_text('#!/bin/bash\nshift\nexec env -i PBS_NODENUM=1 "$@"\n')
    pbsdsh.chmod(0o755)
    words = [sys.executable, "-c", 'import os, sys; print(os.environ["SAID"], os.environ["PBS_NODENUM"], sys.argv[1:])']
    command = shlex.join([*words, "it's", "--", "--handlers", "my agents"])
    script = Environment().from_string(PBS).render(command=command, walltime_seconds=120)
    said = 'it\'s $5 "or" so'
    variables = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": said, "PBS_NODENUM": "0"}
    done = subprocess.run(["bash", "-c", script], env=variables, capture_output=True, text=True, check=True)
    assert (
        done.stdout.strip() == f"{said} 1 {['it' + chr(39) + 's', '--seconds', '90', '--', '--handlers', 'my agents']}"
    )


async def test_jobs_that_get_fewer_nodes_than_a_block_has_are_not_submitted_without_end(tmp_path: Path) -> None:
    """Options of the site win: with `--nodes=1` each is to be replaced as soon as it runs."""
    jobs = Jobs()
    blocks = engine(jobs, tmp_path, min_nodes=2)
    for _ in range(10):
        state = await blocks.state(fresh=True)
        if not state.is_resting:
            await blocks.scale(state, 4, [])
        jobs.states = dict.fromkeys(jobs.states, JobState.RUNNING)
        jobs.nodes = dict.fromkeys(jobs.states, 1)
    assert len(jobs.requests) == 1
    assert state.refusal is not None
    assert "PENDING: Resources, on 1 of 2 nodes" in state.refusal
