"""Errors of alerts and metrics; the first line of a docstring is the title of the problem."""

from app.kernel.errors import ConvenerError, ValuesRefused


class AlertNotFound(ConvenerError):
    """There is no such alert."""

    code = "alert_not_found"


class AlertResolved(ConvenerError):
    """The alert is over already, and nobody had acknowledged it."""

    code = "alert_resolved"


class SamplesRefused(ValuesRefused):
    """A sample of this batch is not what its series, or the clock, allows; nothing was taken."""

    code = "samples_refused"


class TooManySeries(ConvenerError):
    """There are as many series of metrics as this service keeps; nothing was taken."""

    code = "too_many_series"


class MetricNotFound(ConvenerError):
    """Nobody has pushed a metric of this name lately."""

    code = "metric_not_found"
