"""Pauses of a model's service: for how long it is still left alone."""

from datetime import datetime

# Twice as long as any pause is: its end is farther off only where the clock has been set back since it began, and would
# then stay away until the clock has caught up.
_MAX_PAUSE_SECONDS = 600.0


def remaining_seconds(until: datetime | None, now: datetime) -> float:
    """Seconds until the end of a pause; 0 without one."""
    seconds = 0.0 if until is None else max(0.0, (until - now).total_seconds())
    return seconds if seconds <= _MAX_PAUSE_SECONDS else 0.0
