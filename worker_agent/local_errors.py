"""Local errors that travel with the next heartbeat."""

import json
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from threading import Lock

from worker_agent.storable_text import storable_message
from worker_agent.wire import JsonObject

_LIMIT = 50
_MESSAGE_CHARACTERS = 500
# As JSON, so that all of them fit into the 64 KiB of a heartbeat.
_MESSAGE_BYTES = 1000


class LocalErrors:
    """Keeps the newest errors; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._errors: deque[JsonObject] = deque(maxlen=_LIMIT)

    def add(self, text: str) -> None:
        message = storable_message(text[:_MESSAGE_CHARACTERS])
        while len(json.dumps(message)) > _MESSAGE_BYTES:
            message = message[: len(message) * 3 // 4]
        error = {"at": datetime.now(UTC).isoformat(), "message": message}
        with self._lock:
            self._errors.append(error)

    def take(self) -> list[JsonObject]:
        with self._lock:
            errors = list(self._errors)
            self._errors.clear()
        return errors

    def put_back(self, errors: Sequence[JsonObject]) -> None:
        """Requeue undelivered errors before newer ones; beyond the limit the oldest are dropped."""
        with self._lock:
            self._errors = deque([*errors, *self._errors], maxlen=_LIMIT)
