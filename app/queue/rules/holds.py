"""Reasons for which the tasks of a research goal are held back from workers."""

from enum import StrEnum


class Hold(StrEnum):
    """Why the tasks of a goal are not leased."""

    PAUSED = "paused"
    BUDGET = "budget"
    STOPPED = "stopped"
