"""Errors of keys, access and configuration; the first line of a docstring is the title of the problem."""

from app.kernel.errors import NotFound, ValuesRefused


class ConfigVersionNotFound(NotFound):
    """There is no such version of the configuration."""

    code = "config_version_not_found"


class KeyRefused(ValuesRefused):
    """A key cannot be made like this."""

    code = "key_refused"


class ReasonRequired(ValuesRefused):
    """The mode of the deployment wants a reason for every change by a person."""

    code = "reason_required"


class ConfigRefused(ValuesRefused):
    """The values of the configuration do not go together, or not with its mode."""

    code = "config_refused"
