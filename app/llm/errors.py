"""Errors of language-model permits; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Conflict, Exhausted, NotFound


class PermitRefused(Exhausted):
    """There is no permit for this call now."""

    code = "permit_refused"


class PermitNotFound(NotFound):
    """There is no such permit; an hour after its end nobody remembers it."""

    code = "permit_not_found"


class PermitOver(Conflict):
    """The permit is over, or its token is another; nothing was changed."""

    code = "permit_over"


class AnswerNotCached(NotFound):
    """There is no answer in the cache under this key, or it is too old."""

    code = "answer_not_cached"
