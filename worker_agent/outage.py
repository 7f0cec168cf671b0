"""Log lines of an outage of the control plane: none for a short one, then one a minute, and one when it is over."""

import logging
import time
from collections.abc import Callable
from threading import Lock

from worker_agent.local_errors import LocalErrors
from worker_agent.transport import ApiUnavailable

log = logging.getLogger(__name__)
# So long may a control plane take to start, or to be started anew, without a word.
_QUIET_SECONDS, _REPEAT_SECONDS = 5.0, 60.0
# Above the longest pause between two tries: whoever has failed and does not try any more waits for an answer.
_FORGET_SECONDS = 15.0


class Outage:
    """Whether the control plane is away or asks to wait, as its callers in this process find out, from any thread."""

    def __init__(self, errors: LocalErrors, clock: Callable[[], float] = time.monotonic) -> None:
        self._errors = errors
        self._clock = clock
        self._lock = Lock()
        self._failures: dict[str, float] = {}  # the time of the last one of each caller
        self._began_at = 0.0
        self._logged_at: float | None = None

    def note_failure(self, caller: str, error: Exception) -> None:
        """Note that a caller has to try again later."""
        moment = self._clock()
        with self._lock:
            if not self._failures:
                self._began_at, self._logged_at = moment, None
            self._failures[caller] = moment
            seconds = moment - self._began_at
            if seconds < _QUIET_SECONDS or (self._logged_at is not None and moment - self._logged_at < _REPEAT_SECONDS):
                return
            self._logged_at = moment
        is_there = isinstance(error, ApiUnavailable) and error.asks_to_wait
        text = f"the control plane has {'asked to wait' if is_there else 'been away'} for {seconds:.0f} s"
        log.warning("%s, trying again", text, extra={"fields": {"why": str(error)}})
        self._errors.add(f"{text}: {error}")

    def note_answer(self, caller: str) -> None:
        """Note that a caller got an answer; the outage is over when nobody fails any more."""
        if not self._failures:  # as nearly always, so that it costs no lock
            return
        moment = self._clock()
        with self._lock:
            self._failures.pop(caller, None)
            self._failures = {name: at for name, at in self._failures.items() if moment - at < _FORGET_SECONDS}
            if self._failures or self._logged_at is None:
                return
            self._logged_at, seconds = None, moment - self._began_at
        log.warning("the control plane serves again after %.0f s", seconds)
