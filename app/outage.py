"""Log lines of an outage of what a process depends on: one at once, one a minute, and one when it is over."""

import logging
import math
import time
from collections.abc import Callable

from app.kernel.refused_writes import RefusedWrite

log = logging.getLogger(__name__)
# From one line to the next, within an outage, and where some tries fail while others succeed.
_REPEAT_SECONDS, _CALM_SECONDS = 60.0, 10.0
# What runs in the background writes more often than that.
_OVER_SECONDS = 15.0


def _kind(error: BaseException) -> str:
    return type(error).__name__


class Outage:
    """Whether the database, or another `service`, is away, as all users of its connections in this process find out."""

    def __init__(self, service: str = "the database", describe: Callable[[BaseException], str] = _kind) -> None:
        self._service, self._describe = service, describe
        self.is_logged = True
        self._began_at: float | None = None
        self._logged_at = -math.inf
        self._is_told = False

    @property
    def is_on(self) -> bool:
        """Whether the last try found nobody."""
        return self._began_at is not None

    def note_failure(self, error: BaseException) -> None:
        """Note that it did not answer."""
        moment = time.monotonic()
        if self._began_at is None:
            self._began_at, self._is_told = moment, False
        if moment - self._logged_at < (_REPEAT_SECONDS if self._is_told else _CALM_SECONDS):
            return
        self._logged_at, self._is_told = moment, True
        if not self.is_logged:
            return
        seconds = moment - self._began_at
        log.warning("%s has been away for %.0f s (%s), trying again", self._service, seconds, self._describe(error))

    def note_answer(self) -> None:
        """Note that it has answered."""
        if self._began_at is not None:
            if self._is_told and self.is_logged:
                log.warning("%s is back after %.0f s", self._service, time.monotonic() - self._began_at)
            self._began_at = None


class DatabaseOutage(Outage):
    """Whether the database is away, or refuses writes, as all users of its connections in this process find out."""

    def __init__(self) -> None:
        super().__init__()
        self._refused: RefusedWrite | None = None
        self._refused_since = self._refused_at = self._refusal_logged_at = -math.inf

    @property
    def refused(self) -> RefusedWrite | None:
        """The last write that was refused; None where that is long ago."""
        return self._refused if time.monotonic() - self._refused_at <= _OVER_SECONDS else None

    @property
    def is_told(self) -> bool:
        """Whether the log says by now why the database does not do what it is asked to."""
        return self.is_on or self.refused is not None

    def note_refused(self, refused: RefusedWrite) -> None:
        """Note that a write was refused."""
        moment = time.monotonic()
        if self.refused is None:
            self._refused_since = moment
        is_new = self._refused is None or self._refused.trouble is not refused.trouble
        self._refused, self._refused_at = refused, moment
        if is_new or moment - self._refusal_logged_at >= _REPEAT_SECONDS:
            self._refusal_logged_at = moment
            if self.is_logged:
                log.error("%s, trying again", refused.sentence)

    def note_answer(self) -> None:
        """Note that it has answered; it takes writes again when it has refused none for a while."""
        super().note_answer()
        if self._refused is not None and self.refused is None:
            self._refused = None
            if self.is_logged:
                seconds = self._refused_at - self._refused_since
                log.warning("the database has refused no write for %.0f s, after %.0f s", _OVER_SECONDS, seconds)
