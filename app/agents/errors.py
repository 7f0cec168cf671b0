"""Errors of agent weights; the first line of a docstring is the title of the problem."""

from app.kernel.errors import ValuesRefused


class WeightsRefused(ValuesRefused):
    """These weights cannot be."""

    code = "weights_refused"
