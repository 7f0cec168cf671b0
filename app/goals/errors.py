"""Errors of research goals; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Conflict, NotFound, ValuesRefused


class GoalNotFound(NotFound):
    """There is no such research goal."""

    code = "goal_not_found"


class GoalConflict(Conflict):
    """This research goal exists already and is another one."""

    code = "goal_conflict"


class LimitsRefused(ValuesRefused):
    """The limits of the research goal do not go together, or are used up already; nothing was changed."""

    code = "limits_refused"


class IterationConflict(Conflict):
    """This is not the next iteration of the goal, or it was reported with other numbers."""

    code = "iteration_conflict"


class IterationNotFound(NotFound):
    """This iteration was never reported."""

    code = "iteration_not_found"
