"""Errors of starting and managing workers; the first line of a docstring is the title of the problem."""

from app.kernel.errors import ConvenerError


class StartRefused(ConvenerError):
    """No more workers can be started."""

    code = "start_refused"
