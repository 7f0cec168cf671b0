"""Checks made from what the service knows of itself, whether it came over the API or from the database."""

import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.cli.checks import Check, Status
from app.diagnosis.rules.mends import Mend, of_model
from app.health.rules.checks import locks_held
from app.health.rules.finding import AlertRule, Finding, Level, Symptom
from app.health.rules.snapshot import FOR_REPORT, BlockingSession, ModelTrouble
from app.kernel.text import failure_text, plural, printable
from app.llm.rules.conditions import ServiceState
from app.terminal import output

# Whole seconds of the header that tells the time, and the way to whoever tells it.
_CLOCK_SECONDS = 5.0
_KEY_DAYS = timedelta(days=7)
_MODEL_KEY_SECONDS = 2 * 86_400.0
MAX_LETTERS = 100
# What only alerts tell: the rest is in the report, or checked by itself as models are.
OF_ALERTS_ALONE = frozenset(
    {
        *(AlertRule.STUCK_EXECUTING, AlertRule.QUEUE_GROWTH, AlertRule.WORKER_STARVATION),
        *(AlertRule.GOAL_BUDGET, AlertRule.LLM_BUDGET),
    }
)
_STATUSES = {Level.NOTE: Status.WARNING, Level.DEGRADED: Status.FAILED, Level.CRITICAL: Status.FAILED}
_OF_LOOPS = frozenset({"loops_never_ran", "loops_silent", "duty_late"})


def clock_check(apart_seconds: float, whose: str) -> Check:
    """The check of a clock that is so many seconds ahead of this machine's."""
    if abs(apart_seconds) <= _CLOCK_SECONDS:
        return Check(name="clock", status=Status.OK, detail=f"this machine's and {whose} agree")
    ahead = "ahead of" if apart_seconds > 0 else "behind"
    return Check(
        name="clock",
        status=Status.WARNING,
        detail=f"{whose} clock is {abs(apart_seconds):,.0f} s {ahead} this machine's",
        remedy="let both keep time by NTP (timedatectl set-ntp true); leases go by the database's clock alone",
    )


def key_check(key: Mapping[str, Any]) -> Check:
    """The check of the key in use, from the answer of `GET /whoami`."""
    detail = f"{key['label']} ({key['id']}), {key['role']} of {key['namespace'] or 'the whole service'}"
    if key["expires_at"] is None:
        return Check(name="key", status=Status.OK, detail=detail)
    left = datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
    detail += f", expires in {output.duration(left.total_seconds())}"
    if left >= _KEY_DAYS:
        return Check(name="key", status=Status.OK, detail=detail)
    remedy = f"`convener key rotate {key['id']} --expires-in 90d` gives it another secret"
    return Check(name="key", status=Status.WARNING, detail=detail, remedy=remedy)


def lock_checks(session: BlockingSession | None) -> Iterator[Check]:
    """Yield a check of locks that somebody has held for too long, in the words of the health report."""
    for symptom in locks_held(session, FOR_REPORT):
        if not symptom.is_fading:
            yield _reason_check(symptom)


def report_checks(reasons: Sequence[Finding], *, healthy: int, workers: int, waiting: int) -> Iterator[Check]:
    """Yield a check for each reason of a health report that something can be done about, and for what is well."""
    if not any(reason.code in _OF_LOOPS for reason in reasons):
        yield Check(name="loops", status=Status.OK, detail="the background duties run in time")
    if all(reason.level is Level.NOTE for reason in reasons):
        tasks = plural(waiting, "task waits", "tasks wait")
        detail = f"{healthy:,} of {plural(workers, 'worker')} healthy; {tasks}"
        yield Check(name="health", status=Status.OK, detail=detail)
    for reason in reasons:
        if reason.level is Level.NOTE and not reason.advice:  # it tells which figure nobody has measured
            continue
        yield _reason_check(reason)


def _reason_check(reason: Finding) -> Check:
    name = "loops" if reason.code in _OF_LOOPS else f"health: {reason.code}"
    return Check(name=name, status=_STATUSES[reason.level], detail=printable(reason.message), remedy=reason.advice)


def symptom_checks(symptoms: Sequence[Symptom]) -> Iterator[Check]:
    """Yield a check for each symptom of which only alerts tell."""
    for symptom in symptoms:
        if symptom.key.rule in OF_ALERTS_ALONE and not symptom.is_fading:
            yield alert_check(
                symptom.key.rule, symptom.message, symptom.advice, is_critical=symptom.level is Level.CRITICAL
            )


def alert_check(rule: str, summary: str, advice: str, *, is_critical: bool) -> Check:
    """The check of an alert that stands."""
    status = Status.FAILED if is_critical else Status.WARNING
    return Check(name=f"alert: {rule}", status=status, detail=printable(summary), remedy=advice)


def model_check(name: str, trouble: ModelTrouble) -> Check:
    """The check of a language model: whether its service answers, and for how long its key is good."""
    check, remedy = f"model: {printable(name)}", "; ".join(map(_way, of_model(name, trouble.state)))
    if trouble.is_out_of_order:
        words = {ServiceState.KEY_EXPIRED: "refuses the key: it has expired, or is a wrong one"}
        detail = f"its service {words.get(trouble.state, f'is in the state {trouble.state}')}"
        detail += f" until {trouble.until:%Y-%m-%d %H:%M} UTC" if trouble.until else ""
        detail += "; tasks that need it wait unharmed"
        return Check(name=check, status=Status.FAILED, detail=detail, remedy=remedy)
    left = trouble.key_seconds_left
    if left is None or left > _MODEL_KEY_SECONDS:
        return Check(name=check, status=Status.OK, detail=f"its service is {trouble.state}")
    when = "has expired" if left <= 0 else f"expires in {output.duration(left)}"
    remedy = f"renew it where CONVENER_LLM_KEY_FILE or CONVENER_LLM_KEY_COMMAND takes it from; {remedy}"
    status = Status.FAILED if left <= 0 else Status.WARNING
    return Check(name=check, status=status, detail=f"its key {when}", remedy=remedy)


def _way(mend: Mend) -> str:
    return f"{mend.text}: `{mend.command}`" if mend.command else mend.text


def mode_check(mode: str, minimum: int, maximum: int, workers: int) -> Check:
    """The check of the mode: by the pool that there is, and by a variable that names another mode."""
    detail = f"{mode}, {minimum:,} to {maximum:,} workers; {workers:,} live"
    named = os.environ.get("CONVENER_MODE")
    if named and named != mode:
        detail += f"; CONVENER_MODE says {named}, which counts for a new database alone"
        remedy = f"`convener config mode {named}` changes it, or unset CONVENER_MODE"
        return Check(name="mode", status=Status.WARNING, detail=detail, remedy=remedy)
    if workers < minimum:
        remedy = "`convener workers fleet` shows each host and what it may start, `convener workers start` starts one"
        return Check(name="mode", status=Status.FAILED, detail=detail, remedy=remedy)
    return Check(name="mode", status=Status.OK, detail=detail)


def letters_check(letters: Sequence[Mapping[str, Any]]) -> Check:
    """The check of tasks that failed for good within an hour, by the newest of them."""
    if not letters:
        return Check(name="dead letters", status=Status.OK, detail="no task has failed for good within an hour")
    last, why = letters[0], failure_text(letters[0]["error"])
    count = f"{MAX_LETTERS:,} tasks or more" if len(letters) >= MAX_LETTERS else plural(len(letters), "task")
    remedy = f"`convener dead-letters get {last['id']}` shows every attempt, its worker and error; when it is mended, "
    remedy += f"`convener dead-letters requeue {last['id']}` gives it another chance"
    return Check(
        name="dead letters",
        status=Status.WARNING,
        detail=f"{count} failed for good within an hour, such as {last['id']} of {last['agent_type']}: {why}",
        remedy=remedy,
    )
