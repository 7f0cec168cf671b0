"""Runner of the schedule: a loop for every duty and job, which no error ends."""

import asyncio
import logging
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from app.db import duties, hot_path, notify
from app.kernel.errors import DatabaseUnavailable, Locked
from app.loops.schedule import Context, Duty, Job

log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
_LOOK_FOR_WORK_SECONDS = 0.5
# Between two turns: three intervals, and what a busy machine or a restart of the database takes.
_MISSED_TURNS = 3.0
_PATIENCE_SECONDS = 10.0
_REPEAT_SECONDS = 60.0
_AGAIN_SECONDS = 5.0
# What duties look through may grow: while somebody keeps an old snapshot it holds all that has gone since. So each
# rests for so many times as long as its turn has taken; not for long, as others wait for what it does.
_REST_FACTOR, _LONGEST_REST_SECONDS = 4.0, 2.0
# In results, what the next turn or another duty goes by, and what is only counted together again.
_BOOKKEEPING = frozenset(
    {"looked_at", "none_before", "unseen_since", "turns_since_far", "decision", "changes", "events"}
)


class Runner:
    """Loops over a schedule; `run` until cancelled."""

    def __init__(self, context: Context, schedule: Sequence[Duty | Job], *, liveness_file: Path | None = None) -> None:
        """`liveness_file` is touched every second while all keep their pace, or only the database is away."""
        self._liveness_file = liveness_file
        self._context = context
        self._schedule = schedule
        self._wake_events = {item.name: asyncio.Event() for item in schedule}
        # Set when a look finds that there is something to do, and by whatever wakes.
        self._due_events = {item.name: asyncio.Event() for item in schedule}
        self._ended_at: dict[str, float] = {}
        # When the last turns that this process has taken, and that are stored, began.
        self._turned_at: dict[str, float] = {}
        # Names of those whose last turn has left some of its work.
        self._behind: set[str] = set()
        self._failures: dict[tuple[str, type[Exception]], float] = {}
        self._work_done: dict[str, dict[str, Any]] = {}
        context.database.announcer.subscribe(self._on_announcement)
        context.database.announcer.on_connection.append(partial(self._on_announcement, (notify.CONNECTED,)))

    async def run(self) -> None:
        """Run all items of the schedule, each at its own interval."""
        async with asyncio.TaskGroup() as group:
            for item in self._schedule:
                group.create_task(self._repeat(item), name=item.name)
            group.create_task(self._tell_of_late_turns(), name="late turns")
            group.create_task(self._look_for_work(), name="look for work")

    def _on_announcement(self, topics: Collection[str]) -> None:
        for item in self._schedule:
            if item.wakes_on in topics:
                self._wake_events[item.name].set()
                self._due_events[item.name].set()

    async def _repeat(self, item: Duty | Job) -> None:
        wake, due = self._wake_events[item.name], self._due_events[item.name]
        while True:
            # Cleared before the work: an announcement during it must lead to another turn.
            is_woken = wake.is_set() or item.name in self._behind
            wake.clear()
            due.clear()
            self._behind.discard(item.name)
            took = await self._run_once(item, is_woken=is_woken)
            rest = _rest_seconds(took) if isinstance(item, Duty) and item.rests else 0.0
            # A little jitter keeps replicas from trying in step.
            jitter = random.uniform(0.9, 1.0)  # noqa: S311
            if item.name in self._behind:
                await _is_set_within(wake, rest)
            elif not await _is_set_within(wake, max(item.seconds * jitter, rest)) and item.due is not None:
                await _is_set_within(due, (item.longest_seconds - item.seconds) * jitter)

    async def _look_for_work(self) -> None:
        """Look twice a second, by one statement for all, which turns have something to do."""
        rest = 0.0
        while True:
            await asyncio.sleep(max(_LOOK_FOR_WORK_SECONDS * random.uniform(0.9, 1.0), rest))  # noqa: S311
            begun_at, rest = asyncio.get_running_loop().time(), 0.0
            conditions = {item.name: item.due(self._context) for item in self._schedule if item.due is not None}
            try:
                due = await hot_path.run(self._context.database, partial(duties.look, conditions=conditions))
                rest = _rest_seconds(asyncio.get_running_loop().time() - begun_at)
            except (DatabaseUnavailable, Locked):
                due = frozenset()
            except Exception as error:
                # Each turn finds for itself what there is to do.
                self._log_failure("looking for work", error)
                due = frozenset(conditions)
            for name in due:
                self._due_events[name].set()

    async def _run_once(self, item: Duty | Job, *, is_woken: bool) -> float:
        """Take a turn; return the seconds that it took, 0 where the database is away, as nobody rests from that."""
        begun_at = asyncio.get_running_loop().time()
        try:
            if isinstance(item, Job):
                await item.run(self._context)
            else:
                await self._take_turn(item, is_woken=is_woken)
            self._ended_at[item.name] = asyncio.get_running_loop().time()
        except DatabaseUnavailable as error:
            # The connections tell of an outage, once for all duties.
            level = logging.DEBUG if self._context.database.outage.is_told else logging.WARNING
            log.log(level, "%s: %s Trying again", item.name, error.detail)
            if is_woken or isinstance(error, Locked):
                # What holds the lock ends soon, as what keeps a pooler from a new server may, and the next interval may
                # be a minute away.
                asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._wake_events[item.name].set)
            return 0.0
        except Exception as error:
            self._log_failure(item.name, error)
        return asyncio.get_running_loop().time() - begun_at

    def _log_failure(self, name: str, error: Exception) -> None:
        """Log an error with its traceback, and the same one again no sooner than a minute later."""
        moment, logged_at = asyncio.get_running_loop().time(), self._failures.get((name, type(error)))
        if logged_at is None or moment - logged_at >= _REPEAT_SECONDS:
            self._failures[name, type(error)] = moment
            log.error("%s failed, trying again", name, exc_info=error)

    async def _tell_of_late_turns(self) -> None:
        """Log which duties and jobs have missed their pace: at once, then once a minute, and when all keep it again."""
        clock = asyncio.get_running_loop().time
        begun_at, logged_at = clock(), None
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._context.database.outage.is_told:
                # The connections tell of it; afterwards each has its patience anew.
                begun_at = clock()
            ended_at = {item.name: max(begun_at, self._ended_at.get(item.name, begun_at)) for item in self._schedule}
            late_seconds = {name: clock() - at for name, at in ended_at.items()}
            late = {i.name: late_seconds[i.name] for i in self._schedule if late_seconds[i.name] > _patience_seconds(i)}
            if not late:
                self._show_life()
            if late and (logged_at is None or clock() - logged_at >= _REPEAT_SECONDS):
                logged_at = clock()
                names = ", ".join(f"{name} ({seconds:.0f} s)" for name, seconds in late.items())
                log.warning("no turn has come to an end for too long: %s", names)
            elif not late and logged_at is not None:
                logged_at = None
                log.warning("all duties and jobs keep their pace again")

    def _show_life(self) -> None:
        if self._liveness_file is not None:
            try:
                self._liveness_file.touch()
            except OSError as error:
                self._log_failure("touching CONVENER_LIVENESS_FILE", error)

    async def _take_turn(self, duty: Duty, *, is_woken: bool) -> None:
        begun_at = asyncio.get_running_loop().time()
        async with self._context.database.transaction() as connection:
            # Less than the interval, or jitter would make a replica skip every other turn.
            interval = 0.0 if is_woken else duty.seconds * 0.85
            turn = await duties.claim(connection, duty.name, interval)
            if turn is None and await duties.ensure(connection, duty.name):
                turn = await duties.claim(connection, duty.name, interval)
            if turn is None:
                return
            # Whoever took the last turn did so after our own: no more time than since then can have passed meanwhile.
            passed = asyncio.get_running_loop().time() - self._turned_at.get(duty.name, float("-inf"))
            turn = replace(turn, set_forward_seconds=max(0.0, turn.seconds_since_last - passed))
            result = await duty.run(self._context, connection, turn)
            every_seconds = None if duty.is_local else duty.longest_seconds
            held_back = bool(result.get("held_back"))
            await duties.record(connection, duty.name, result, held_back=held_back, every_seconds=every_seconds)
        self._turned_at[duty.name] = begun_at
        if result.get("behind"):
            self._behind.add(duty.name)
        self._log_work(duty.name, result)

    def _log_work(self, name: str, result: Mapping[str, Any]) -> None:
        """Log what a turn has done, where that differs from the turn before."""
        work = {k: v for k, v in result.items() if v and isinstance(v, int | str) and k not in _BOOKKEEPING}
        if work and work != self._work_done.get(name):
            log.debug(name, extra={"fields": work})
        self._work_done[name] = work


def _rest_seconds(took: float) -> float:
    """Seconds of rest after a turn that took so many."""
    return min(_LONGEST_REST_SECONDS, _REST_FACTOR * took)


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _patience_seconds(item: Duty | Job) -> float:
    return _PATIENCE_SECONDS + _MISSED_TURNS * item.longest_seconds
