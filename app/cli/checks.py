"""Outcome of a check of this machine, or of the service."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.settings import Settings

# Commands stand between backticks in sentences for people.
_COMMAND = re.compile(r"`(convener [^`]+)`")


class Status(StrEnum):
    """Outcome of a check; only a failure makes the command fail."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at; `remedy` says what to do unless all is well, with commands between backticks."""

    name: str
    status: Status
    detail: str
    remedy: str = ""

    @property
    def commands(self) -> list[str]:
        """The commands of the remedy."""
        return commands_in(self.remedy)


def usable_settings() -> "Settings | None":
    """The settings from the environment; None for unusable ones, of which the check `network` says why."""
    from app.settings import Settings
    from app.settings_sources import SettingsError

    try:
        return Settings.from_environment()
    except SettingsError:
        return None


def commands_in(sentence: str) -> list[str]:
    """The commands that a sentence names between backticks."""
    return _COMMAND.findall(sentence)
