"""Errors of alerts and metrics; the first line of a docstring is the title of the problem."""

from app.kernel.errors import Conflict, Invalid, NotFound, ValuesRefused


class AlertNotFound(NotFound):
    """There is no such alert."""

    code = "alert_not_found"


class AlertResolved(Conflict):
    """The alert is over already, and nobody had acknowledged it."""

    code = "alert_resolved"


class SamplesRefused(ValuesRefused):
    """A sample of this batch is not what its series, or the clock, allows; nothing was taken."""

    code = "samples_refused"


class TooManySeries(Invalid):
    """There are as many series of metrics as this service keeps; nothing was taken."""

    code = "too_many_series"


class MetricNotFound(NotFound):
    """Nobody has pushed a metric of this name lately."""

    code = "metric_not_found"
