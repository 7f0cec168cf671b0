"""What can go wrong, in the words of the domain; the API maps each to a problem once.

The first line of a class's docstring is its title; `code` is stable and part of the contract.
"""

from app.domain.refusal import ConvenerError as ConvenerError
from app.domain.refusal import ValuesRefused


class TaskNotFound(ConvenerError):
    """There is no such task."""

    code = "task_not_found"


class TaskConflict(ConvenerError):
    """A task with this id exists already and its body differs."""

    code = "task_conflict"


class TaskFinished(ConvenerError):
    """The task has already finished, so it cannot be changed."""

    code = "task_finished"


class TaskNotCompleted(ConvenerError):
    """The task has no result that could be judged."""

    code = "task_not_completed"


class PayloadTooLarge(ConvenerError):
    """The payload, result or checkpoint is larger than this service accepts."""

    code = "payload_too_large"


class Unstorable(ConvenerError):
    """The database refuses a value in this request."""

    code = "unstorable_value"


class DependencyMissing(ConvenerError):
    """A task depends on one that does not exist."""

    code = "dependency_missing"


class DependencyCycle(ConvenerError):
    """The dependencies of the tasks form a cycle."""

    code = "dependency_cycle"


class IdempotencyMismatch(ConvenerError):
    """This idempotency key was used for another body."""

    code = "idempotency_mismatch"


class SubmitInFlight(ConvenerError):
    """Another request with this idempotency key is still being worked on; send it again in a moment."""

    code = "submit_in_flight"


class WorkerNotFound(ConvenerError):
    """There is no such worker."""

    code = "worker_not_found"


class WorkerNotReady(ConvenerError):
    """The worker has not passed its first health report, so it gets no lease."""

    code = "worker_not_ready"


class WorkerBusy(ConvenerError):
    """The worker holds a lease already and asked for another."""

    code = "worker_busy"


class StartRefused(ConvenerError):
    """No more workers can be started."""

    code = "start_refused"


class WorkerGone(ConvenerError):
    """This incarnation of the worker is over."""

    code = "worker_gone"


class LeaseNotFound(ConvenerError):
    """There is no such lease, or it is not yours."""

    code = "lease_not_found"


class LeaseExpired(ConvenerError):
    """The lease expired before this call arrived; nothing was changed."""

    code = "lease_expired"


class LeaseSuperseded(ConvenerError):
    """The task has moved on to a newer lease; nothing was changed."""

    code = "lease_superseded"


class TaskCancelled(ConvenerError):
    """The task was cancelled; nothing was changed."""

    code = "task_cancelled"


class KeyNotFound(ConvenerError):
    """There is no such key."""

    code = "key_not_found"


class Unauthenticated(ConvenerError):
    """The request carries no valid key."""

    code = "unauthenticated"


class Forbidden(ConvenerError):
    """The key does not permit this."""

    code = "forbidden"


class ShuttingDown(ConvenerError):
    """The service is shutting down; send the request again in a moment."""

    code = "shutting_down"


class DatabaseUnavailable(ConvenerError):
    """The database does not answer; send the request again in a moment."""

    code = "database_unavailable"


class QueueFull(ConvenerError):
    """The queue is full; nothing was taken in, so send the request again later."""

    code = "queue_full"


class IllegalMove(ConvenerError):
    """The table of legal moves forbids this change of state."""

    code = "illegal_move"


class ContextNotFound(ConvenerError):
    """There is no such entry, or no such version of it."""

    code = "context_not_found"


class PreconditionRequired(ConvenerError):
    """This change must name the version that it builds on."""

    code = "precondition_required"


class VersionStale(ConvenerError):
    """Somebody has changed it since the version that this change builds on; nothing was changed."""

    code = "version_stale"


class CheckpointNotFound(ConvenerError):
    """There is no such checkpoint."""

    code = "checkpoint_not_found"


class DeadLetterNotFound(ConvenerError):
    """There is no such dead letter."""

    code = "dead_letter_not_found"


class WeightsRefused(ValuesRefused):
    """These weights cannot be."""

    code = "weights_refused"


class AlertNotFound(ConvenerError):
    """There is no such alert."""

    code = "alert_not_found"


class AlertResolved(ConvenerError):
    """The alert is over already, and nobody had acknowledged it."""

    code = "alert_resolved"


class PermitRefused(ConvenerError):
    """There is no permit for this call now."""

    code = "permit_refused"


class PermitNotFound(ConvenerError):
    """There is no such permit; an hour after its end nobody remembers it."""

    code = "permit_not_found"


class PermitOver(ConvenerError):
    """The permit is over, or its token is another; nothing was changed."""

    code = "permit_over"


class AnswerNotCached(ConvenerError):
    """There is no answer in the cache under this key, or it is too old."""

    code = "answer_not_cached"


class SamplesRefused(ValuesRefused):
    """A sample of this batch is not what its series, or the clock, allows; nothing was taken."""

    code = "samples_refused"


class TooManySeries(ConvenerError):
    """There are as many series of metrics as this service keeps; nothing was taken."""

    code = "too_many_series"


class MetricNotFound(ConvenerError):
    """Nobody has pushed a metric of this name lately."""

    code = "metric_not_found"


class ConfigVersionNotFound(ConvenerError):
    """There is no such version of the configuration."""

    code = "config_version_not_found"


class DecisionNotFound(ConvenerError):
    """There is no such decision, or none any more."""

    code = "decision_not_found"


class ConfigRefused(ValuesRefused):
    """The values of the configuration do not go together, or not with its mode."""

    code = "config_refused"
