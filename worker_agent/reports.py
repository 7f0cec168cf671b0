"""What is reported about a task once its handler is over."""

from worker_agent import actions as act
from worker_agent import events as ev
from worker_agent.wire import Lease, TaskError

_REFUSED = "report_refused"


def report_of(end: ev.HandlerEnd, lease: Lease, *, next_request_id: str, reason: str) -> act.Report:
    """`reason` is why a killed handler was killed."""
    match end:
        case ev.HandlerFinished(result, usage, quality):
            return act.ReportComplete(
                lease=lease, result=result, usage=usage, quality=quality, next_request_id=next_request_id
            )
        case ev.HandlerFailed(error, usage):
            return act.ReportFail(lease=lease, error=error, usage=usage)
        case ev.HandlerPostponed(postponement):
            return act.Release(lease=lease, reason=postponement.reason, delay_seconds=postponement.seconds)
        case ev.HandlerTimedOut(seconds, usage):
            error = TaskError(code="timeout", message=f"killed after {seconds:g} s", retryable=True)
            return act.ReportFail(lease=lease, error=error, usage=usage)
        case ev.HandlerKilled():
            return act.Release(lease=lease, reason=reason)


def report_of_refusal(refused_call: act.Call | None, refusal: ev.CallRefused) -> act.ReportFail | None:
    """A report that can never be accepted becomes a failure; None when that has been refused as well."""
    if not isinstance(refused_call, act.ReportComplete | act.ReportFail):
        return None
    if isinstance(refused_call, act.ReportFail) and refused_call.error.code == _REFUSED:
        return None
    error = TaskError(code=_REFUSED, message=f"{refusal.code}: {refusal.message}", retryable=False)
    return act.ReportFail(lease=refused_call.lease, error=error, usage=refused_call.usage)
