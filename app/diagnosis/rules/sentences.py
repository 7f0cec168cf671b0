"""Moments and texts of strangers, as they stand in the sentences of diagnoses."""

from datetime import datetime

from app.kernel.text import printable

_MAX_TEXT = 300


def moment_text(moment: datetime | None, now: datetime) -> str:
    """The time of day, with the date where it is not today's."""
    if moment is None:
        return "an unknown time"
    return f"{moment:%H:%M:%S} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def one_line(text: object) -> str:
    """Text of strangers in one line of bounded length."""
    return printable(" ".join(str(text or "").split()))[:_MAX_TEXT]
