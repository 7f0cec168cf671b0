"""Errors of starting and managing workers; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Conflict, Exhausted


class StartRefused(Conflict):
    """No more workers can be started."""

    code = "start_refused"


class NameTaken(Conflict):
    """A live worker has this name, and another key registered it."""

    code = "name_taken"


class PoolFull(Exhausted):
    """The pool has as many workers as the configuration allows."""

    code = "pool_full"
