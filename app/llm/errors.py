"""Errors of language-model permits; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Conflict, Exhausted, Invalid, NotFound, NotPermitted, ValuesRefused


class PermitRefused(Exhausted):
    """There is no permit for this call now."""

    code = "permit_refused"


class ModelNotAllowed(NotFound):
    """No permits are granted for this model, as nobody has listed it."""

    code = "model_not_allowed"


class LeaseRequired(NotPermitted):
    """A worker calls language models for the task that it holds, and this one holds none."""

    code = "lease_required"


class AgentTypeMissing(ValuesRefused):
    """The call is not a worker's, whose task would say the agent type, so the request must."""

    code = "agent_type_missing"


class LeaseMismatch(Conflict):
    """The worker holds the lease of another task than it says; nothing was changed."""

    code = "lease_mismatch"


class CacheKeyMismatch(Invalid):
    """The permit was granted for another question than the one whose answer is to be cached."""

    code = "cache_key_mismatch"


class PermitNotFound(NotFound):
    """There is no such permit; an hour after its end nobody remembers it."""

    code = "permit_not_found"


class PermitOver(Conflict):
    """The permit is over, or its token is another; nothing was changed."""

    code = "permit_over"


class AnswerNotCached(NotFound):
    """There is no answer in the cache under this key, or it is too old."""

    code = "answer_not_cached"


class BudgetNotFound(NotFound):
    """There is no such budget."""

    code = "budget_not_found"


class BudgetOwnerNotFound(NotFound):
    """There is no such agent type or key; `convener key ls` lists the ids of keys."""

    code = "budget_owner_not_found"
