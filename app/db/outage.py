"""Log lines of an outage of the database: one at once, one a minute, and one when it is over."""

import logging
import math
import time

log = logging.getLogger(__name__)
# From one line to the next, within an outage, and where some tries fail while others succeed.
_REPEAT_SECONDS, _CALM_SECONDS = 60.0, 10.0


class Outage:
    """Whether the database is away, as all users of its connections in this process find out."""

    def __init__(self) -> None:
        self.is_logged = True
        self._began_at: float | None = None
        self._logged_at = -math.inf
        self._is_told = False

    @property
    def is_on(self) -> bool:
        """Whether the last try found nobody."""
        return self._began_at is not None

    def note_failure(self, error: BaseException) -> None:
        """Note that the database did not answer."""
        moment = time.monotonic()
        if self._began_at is None:
            self._began_at, self._is_told = moment, False
        if moment - self._logged_at < (_REPEAT_SECONDS if self._is_told else _CALM_SECONDS):
            return
        self._logged_at, self._is_told = moment, True
        if not self.is_logged:
            return
        seconds = moment - self._began_at
        log.warning("the database has been away for %.0f s (%s), trying again", seconds, type(error).__name__)

    def note_answer(self) -> None:
        """Note that the database has answered."""
        if self._began_at is not None:
            if self._is_told and self.is_logged:
                log.warning("the database is back after %.0f s", time.monotonic() - self._began_at)
            self._began_at = None
