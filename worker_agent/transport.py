"""HTTP connection to the control plane whose waiting calls can be cut off from another thread."""

import json
import socket
from collections import deque
from collections.abc import Mapping
from typing import Any

import httpx

from worker_agent.connections.clients import advice, open_client
from worker_agent.connections.trust import SYSTEM_TRUST, Trust
from worker_agent.wire import JsonObject

_CONNECT_SECONDS = 5.0
_MAX_RETRY_AFTER_SECONDS = 60.0
_RETRYABLE_STATUSES = frozenset({408, 425, 429})


class ApiUnavailable(Exception):
    """The control plane gave no answer, an unreadable one, or one that says "later"; then `asks_to_wait` is set."""

    def __init__(self, message: str, retry_after: float = 0.0, *, asks_to_wait: bool = False) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.asks_to_wait = asks_to_wait


class Problem(Exception):
    """The control plane refused the call."""

    def __init__(self, status: int, code: str, detail: str, reason: str | None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.reason = reason


class Transport:
    """Client for JSON calls; safe to use from several threads."""

    def __init__(self, url: str, trust: Trust = SYSTEM_TRUST) -> None:
        self._url = url
        self._http = open_client(
            url,
            trust,
            timeout=httpx.Timeout(10.0, connect=_CONNECT_SECONDS),
            limits=httpx.Limits(max_connections=4, max_keepalive_connections=2),
        )
        self._streams: deque[Any] = deque(maxlen=8)

    def post(self, path: str, body: JsonObject, *, key: str, timeout: float) -> JsonObject | None:
        """Post an object; return the one answered, None for 204. Raises ApiUnavailable (try again later) or Problem."""
        try:
            response = self._http.post(
                path,
                content=json.dumps(body, allow_nan=False).encode(),
                headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
                timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
                extensions={"trace": self._remember_stream},
            )
        except httpx.HTTPError as error:
            raise ApiUnavailable(advice(error, self._url) or f"{type(error).__name__}: {error}") from error
        return _read_answer(response)

    def abort(self) -> None:
        """Make every waiting call raise ApiUnavailable now; later calls connect anew."""
        for stream in list(self._streams):
            sock = stream.get_extra_info("socket")
            try:
                # Closing would not wake a thread that waits in recv, and SSLSocket.shutdown is not safe beside it.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)
            except OSError:
                continue

    def close(self) -> None:
        self._http.close()

    def _remember_stream(self, name: str, info: Mapping[str, Any]) -> None:
        if name.endswith((".connect_tcp.complete", ".connect_unix_socket.complete", ".start_tls.complete")):
            self._streams.append(info["return_value"])


def _read_answer(response: httpx.Response) -> JsonObject | None:
    if response.status_code == 204:
        return None
    try:
        body = response.json()
    except ValueError:
        body = None
    if response.status_code >= 500 or response.status_code in _RETRYABLE_STATUSES:
        text = f"answered {response.status_code}"
        if isinstance(body, dict):
            text = str(_read_problem(response.status_code, body))
        raise ApiUnavailable(text, _retry_after(response), asks_to_wait=response.status_code == 429)
    if response.is_success and isinstance(body, dict):
        return body
    if response.is_client_error:
        raise _read_problem(response.status_code, body if isinstance(body, dict) else {})
    raise ApiUnavailable(f"answered {response.status_code} with something that is no JSON object")


def _read_problem(status: int, body: JsonObject) -> Problem:
    detail = str(body.get("detail") or body.get("title") or "")
    errors = body.get("errors")
    return Problem(
        status, str(body.get("code") or "unknown"), f"{detail} {errors}" if errors else detail, body.get("reason")
    )


def _retry_after(response: httpx.Response) -> float:
    """Seconds; 0.0 when absent or given as a date, as backoff alone is good enough then."""
    try:
        seconds = float(response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0
    return max(0.0, min(seconds, _MAX_RETRY_AFTER_SECONDS))
