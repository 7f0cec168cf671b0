"""HTTP connection to the control plane whose waiting calls can be cut off from another thread."""

import json
import socket
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from threading import Timer
from typing import Any

import httpx

from worker_agent.connections.clients import advice, open_client
from worker_agent.connections.trust import SYSTEM_TRUST, Trust
from worker_agent.wire import JsonObject

_CONNECT_SECONDS = 5.0
_MAX_RETRY_AFTER_SECONDS = 60.0
_RETRYABLE_STATUSES = frozenset({408, 425, 429})
_PROBLEM_TYPE = "application/problem+json"
# Instead of 401 to an address from which too many bad keys have come; whoever has a good one never gets it.
_KEY_REFUSED_TOO_OFTEN = "too_many_failures"
# Whatever refuses a body for its size would refuse it again.
_TOO_LARGE = 413


class ApiUnavailable(Exception):
    """The control plane gave no answer, an unreadable one, or one that says "later"; `status` is that of an answer."""

    def __init__(
        self, message: str, retry_after: float = 0.0, *, status: int | None = None, is_late: bool = False
    ) -> None:
        """`is_late`: the call was sent, and its answer did not come in time."""
        super().__init__(message)
        self.retry_after = retry_after
        self.status = status
        self.is_late = is_late

    @property
    def asks_to_wait(self) -> bool:
        return self.status == 429

    @property
    def is_foreign_refusal(self) -> bool:
        """Whether something on the way to the control plane, or in its place, has refused the call."""
        return self.status is not None and 400 <= self.status < 500 and self.status not in _RETRYABLE_STATUSES


class Problem(Exception):
    """The control plane refused the call."""

    def __init__(self, status: int, code: str, detail: str, reason: str | None) -> None:
        super().__init__(f"{status} {code}: {detail}")
        self.status = status
        self.code = code
        self.reason = reason

    @property
    def is_of_key(self) -> bool:
        """Whether the key is unknown, as it is to a control plane that has forgotten its worker."""
        return self.status == 401 or self.code == _KEY_REFUSED_TOO_OFTEN


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
        # `timeout` is for each read: an answer that trickles would hold its caller, and so the heartbeat, for ever.
        seconds = 2 * timeout + min(timeout, _CONNECT_SECONDS)
        end = time.monotonic() + seconds
        limit = Timer(seconds, self.abort)
        limit.daemon = True
        with suppress(RuntimeError):  # no thread can be started now
            limit.start()
        try:
            response = self._http.post(
                path,
                content=json.dumps(body, allow_nan=False).encode(),
                headers={"authorization": f"Bearer {key}", "content-type": "application/json"},
                timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
                extensions={"trace": self._remember_stream},
            )
        except httpx.HTTPError as error:
            if time.monotonic() >= end:
                raise ApiUnavailable(f"no whole answer within {seconds:g} s", is_late=True) from error
            text = advice(error, self._url) or f"{type(error).__name__}: {error}"
            raise ApiUnavailable(text, is_late=isinstance(error, httpx.ReadTimeout)) from error
        finally:
            limit.cancel()
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
    status = response.status_code
    if status == 204:
        return None
    try:
        body = response.json()
    except ValueError:
        body = None
    is_ours = response.is_client_error and is_problem(response, body)
    if is_ours and body["code"] == _KEY_REFUSED_TOO_OFTEN:
        raise _read_problem(status, body)
    if status >= 500 or status in _RETRYABLE_STATUSES:
        text = str(_read_problem(status, body)) if isinstance(body, dict) else f"answered {status}"
        raise ApiUnavailable(text, _retry_after(response), status=status)
    if response.is_success and isinstance(body, dict):
        return body
    if status == _TOO_LARGE or is_ours:
        raise _read_problem(status, body if isinstance(body, dict) else {})
    kind = "no JSON object"
    if response.is_client_error:
        # An ingress that reloads, a firewall or a portal: its word says nothing of our key, lease or worker.
        kind = "no problem of a control plane"
    raise ApiUnavailable(f"answered {status} with something that is {kind}", _retry_after(response), status=status)


def is_problem(response: httpx.Response, body: object) -> bool:
    """Whether the control plane itself, and nothing else on the way, answered with this error."""
    media_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    return media_type == _PROBLEM_TYPE and isinstance(body, dict) and isinstance(body.get("code"), str)


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
