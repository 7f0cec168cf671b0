"""Errors of context and checkpoints; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Exhausted, NotFound


class ContextNotFound(NotFound):
    """There is no such entry, or no such version of it."""

    code = "context_not_found"


class CheckpointNotFound(NotFound):
    """There is no such checkpoint."""

    code = "checkpoint_not_found"


class CheckpointBusy(Exhausted):
    """Another checkpoint is being taken; send the request again in a moment."""

    code = "checkpoint_busy"


class VerificationBusy(Exhausted):
    """Another checkpoint is being verified; send the request again in a moment."""

    code = "verification_busy"
