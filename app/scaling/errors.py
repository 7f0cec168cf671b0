"""Errors of scaling decisions; the first line of a docstring is the title of the problem."""

from app.kernel.errors import NotFound


class DecisionNotFound(NotFound):
    """There is no such decision, or none any more."""

    code = "decision_not_found"
