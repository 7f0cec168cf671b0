"""The check of the background duties: all that are late, or none that has run."""

from collections.abc import Iterable, Iterator

from app.health.rules.finding import AlertKey, AlertRule, Symptom
from app.health.rules.snapshot import WATCH, CheckPolicy, DutyTurn, Grade, Observations
from app.health.rules.symptoms import symptom_of


def late_duties(observations: Observations, policy: CheckPolicy) -> Iterable[Symptom] | None:
    """Background duties, or all of them, have not run for too long."""
    turns = observations.duty_turns or ()
    paced = [turn for turn in turns if turn.duty != WATCH]
    if not turns:
        return None
    if not paced:
        # The API has stood in, on a database on which no loop has ever run.
        message = "no background duty has ever run: no worker is started, and lost ones go unnoticed"
        return _late(Grade.CRITICAL, "loops_never_ran", message)
    # When no loop runs, all duties are late: one symptom says it for all. A turn of a time to come is one before the
    # clock was set back.
    if (ago := min(abs(turn.seconds_ago) for turn in paced)) > policy.loops_silent_seconds:
        message = f"no background duty has run for {ago:,.0f} s: lost workers and expired leases go unnoticed"
        return _late(Grade.CRITICAL, "loops_silent", message)
    return [symptom for turn in paced for symptom in _late_duty(turn, policy)]


def is_late(turn: DutyTurn, policy: CheckPolicy) -> bool:
    """Whether a duty has missed more turns than it may."""
    interval = turn.every_seconds
    return interval is not None and turn.seconds_ago > policy.missed_turns * interval + policy.loops_silent_seconds


def _late_duty(turn: DutyTurn, policy: CheckPolicy) -> Iterable[Symptom]:
    interval, ago = turn.every_seconds, turn.seconds_ago
    if not is_late(turn, policy):
        return ()
    message = f"the duty `{turn.duty}` is due every {interval:g} s and has not run for {ago:,.0f} s; "
    return _late(Grade.DEGRADED, None, message + "the log of the loops says why")


def _late(grade: Grade, code: str | None, message: str) -> Iterator[Symptom]:
    return symptom_of(
        grade,
        AlertKey(rule=AlertRule.DUTY_LATE),
        code=code,
        message=message,
        advice="does `convener loops` run, and does it reach the database? its log says what is late, and why",
    )
