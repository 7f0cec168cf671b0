"""Deployment modes."""

from enum import StrEnum


class Mode(StrEnum):
    """Presets over the same rules."""

    DEVELOPMENT = "development"
    PRODUCTION = "production"
    TRUSTED_TESTER = "trusted_tester"
