"""HTTP client of the service; problems, outages and refused keys become failures that say what to do."""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any

import httpx
import typer

from app.kernel.access import SCOPES, Role
from app.kernel.refused_writes import REMEDIES
from app.terminal.connection import OPERATOR_KEY, Access, find_access
from app.terminal.failures import ExitCode, Failure, failure_of_value, first_line
from app.terminal.output import note
from worker_agent.connections.clients import advice, open_client
from worker_agent.tracing.context import read_traceparent

Url = Annotated[
    str | None,
    typer.Option("--url", envvar="CONVENER_URL", help="address of the service; that of `convener up` by default"),
]
Json = dict[str, Any]

PAGE = 500
_TIMEOUT_SECONDS = 30.0
_TRIES = 4
_LONGEST_PAUSE_SECONDS = 10.0
_CLOCKS_APART_SECONDS = 30.0
# What to do about a problem, by its stable code.
_HINTS = {
    "unauthenticated": "put a valid key into CONVENER_KEY; `convener key create` makes one",
    "task_not_found": "`convener tasks ls` lists the tasks; old ones are pruned",
    "dead_letter_not_found": "`convener dead-letters ls` lists them; `convener tasks ls` lists all tasks",
    "worker_not_found": "`convener workers ls` lists the workers",
    "goal_not_found": "`convener goals ls` lists the goals",
    "goal_conflict": "choose another id; `convener goals get ID` shows the goal that there is",
    "goal_stopped": "create another goal; `convener goals get ID` shows how this one ended",
    "key_not_found": "`convener key ls` lists the keys",
    "context_not_found": "`convener context ls NAMESPACE` lists its entries, `context history` former versions",
    "version_stale": "read it again and decide anew; `history` of `convener context` or `config` shows who changed it",
    "alert_not_found": "`convener alerts ls` lists them; old ones are pruned",
    "alert_resolved": "there is nothing left to know; `convener alerts get ID` shows when it ended",
    "decision_not_found": "`convener decisions ls` lists them; those that changed nothing are kept for a day",
    "config_version_not_found": "`convener config history` lists the versions",
    "config_refused": "correct the values named above; `convener config get` shows the others",
    "checkpoint_not_found": "`convener checkpoints ls` lists the checkpoints; old ones are pruned",
    "metric_not_found": "`convener metrics series` lists the names",
    "model_not_allowed": "`convener llm models ls` lists the models, and `convener llm models add MODEL` adds one",
    "not_found": "the service knows no such address; it may be of another version than this program",
    "task_conflict": "choose another id, or send the very same body again",
    "task_finished": "nothing can be done to it any more; `convener tasks get ID` shows how it ended",
    "start_refused": "`convener workers fleet` shows the pool; `convener config set` changes its maximum",
    "worker_gone": "the worker is over already; `convener workers ls` lists the living ones",
    "payload_too_large": "send less, or raise CONVENER_MAX_PAYLOAD_BYTES of the service",
    "body_too_large": "send less at once, or raise CONVENER_MAX_BODY_BYTES of the service",
    "database_unavailable": "try again in a moment; `convener db status` looks at the database itself",
    "shutting_down": "try again when the service is back",
    "internal_error": "the log of the service has the details",
}
# Routes that go by a namespace.
_NAMESPACED = ("/tasks", "/dead-letters", "/events", "/outputs", "/goals", "/context", "/namespaces", "/whoami")
_STALE = 412  # status of VersionStale: the version of If-Match is not the last one
# With a page of their own these come from a proxy whose service is away, as while it starts again.
_OF_PROXIES = (502, 503, 504)
# Of fields whose absence says more than None does: that of a model, that the service asks for no list yet.
_MEANINGS_OF_ABSENCE = {"is_listed": True}
_CODES = {401: ExitCode.KEY, 403: ExitCode.KEY, 404: ExitCode.NOT_FOUND}


class _Answer(Json):
    """An object of an answer, in which fields that the service does not have yet, as it is older, are None."""

    def __missing__(self, name: str) -> Any:
        return _MEANINGS_OF_ABSENCE.get(name)


class Unreachable(Failure):
    """Nothing answers at the address, or an answer breaks off."""

    def __init__(self, url: str, error: httpx.HTTPError) -> None:
        super().__init__(
            f"cannot reach the service at {url} ({first_line(error)})",
            ExitCode.UNREACHABLE,
            hint=advice(error, url) or "start it with `convener up`, or give its address with --url or CONVENER_URL",
        )


class Refusal(Failure):
    """The service answered with a problem."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        code, title = str(problem.get("code", "")), str(problem.get("title", "the request failed"))
        fields = [f"{field.get('path')}: {field.get('message')}" for field in problem.get("errors") or []]
        detail = str(problem.get("detail") or "")
        default = "correct the values named above" if status == 422 else None
        explanations = fields or ([detail] if detail not in ("", title) else [])
        super().__init__(
            f"{title} ({status} {code})",
            ExitCode.UNREACHABLE if code == "database_unavailable" else _CODES.get(status, ExitCode.REFUSED),
            details=explanations,
            hint=_hint_for_roles(detail) if code == "forbidden" else _hint_for(code, problem) or default,
        )


def _hint_for(code: str, problem: Mapping[str, Any]) -> str | None:
    # A newer service may know other reasons.
    remedies = {trouble.value: remedy for trouble, remedy in REMEDIES.items()}
    return remedies.get(str(problem.get("reason"))) or _HINTS.get(code)


def _hint_for_roles(detail: str) -> str:
    """The way to a key that may do what was forbidden; only an admin's key makes keys."""
    scope = re.search(r"does not include (\S+)", detail)
    roles = [role for role in Role if scope and scope[1] in SCOPES[role]] or [Role.OPERATOR, Role.ADMIN]
    names = ", ".join(roles[:-1]) + (" or " if roles[1:] else "") + roles[-1]
    how = f"`convener key create {roles[0]} --label ...` makes one with an admin's key"
    return f"use a key with the role {names}: {how} (`convener up` leaves one in admin.key), or with --database"


class Client:
    """Calls one service with one key; `now` is the time of the last answer."""

    def __init__(self, access: Access, *, transport: httpx.BaseTransport | None = None) -> None:
        self.url = access.url
        self.now = datetime.now(UTC)
        self._namespace = os.environ.get("CONVENER_NAMESPACE")
        headers = {"Authorization": f"Bearer {access.key}", "Accept": "application/json"}
        # Of whoever calls the command, by the convention for processes.
        if (context := read_traceparent(os.environ.get("TRACEPARENT"))) is not None:
            headers["traceparent"] = context.text
        self._http = open_client(
            access.url, access.trust, headers=headers, timeout=_TIMEOUT_SECONDS, transport=transport
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.close()

    def get(self, path: str, *, wait_seconds: float = 0, **parameters: Any) -> Json:
        """Read a resource; parameters that are None are left out."""
        query = {name: value for name, value in parameters.items() if value is not None}
        if wait_seconds:
            query["wait_seconds"] = wait_seconds
        # A long poll may use up its wait; the usual timeout is for the network.
        return self._json("GET", path, params=query, timeout=_TIMEOUT_SECONDS + wait_seconds)

    def report(self, path: str) -> Json:
        """Read a health report; with 503 it is still an answer, unless it is a problem."""
        # Not repeated at 503, which is how a report without the database arrives.
        response = self._once("GET", path)
        answer = _object(response)
        if answer is None or not (response.is_success or (response.status_code == 503 and "code" not in answer)):
            raise _refusal(response)
        return answer

    def post(self, path: str, body: Json | bytes, *, wait_seconds: float = 0, **parameters: Any) -> Json:
        """Send a body, which may be JSON text already; repeated while the service is busy."""
        timeout = _TIMEOUT_SECONDS + wait_seconds
        return self._json("POST", path, **_content(body), params=parameters, timeout=timeout)

    def put(self, path: str, body: Any, headers: Mapping[str, str] | None = None, **parameters: Any) -> Json:
        """Replace a resource."""
        return self._json("PUT", path, **_content(body, headers), params=parameters)

    def patch(self, path: str, body: Json) -> Json:
        """Change fields of a resource."""
        return self._json("PATCH", path, json=body)

    def change(self, method: str, path: str, body: Json, *, version: int, **parameters: Any) -> Json:
        """Change a resource with versions, building on this one. Raises Refusal with 412 when it is not the last."""
        return self._json(method, path, json=body, headers={"If-Match": f'"{version}"'}, params=parameters)

    def delete(self, path: str, **parameters: Any) -> None:
        """Delete a resource."""
        self._send("DELETE", path, params=parameters)

    def remove(self, path: str, headers: Mapping[str, str] | None = None, **parameters: Any) -> Json:
        """Delete a resource; return the answer."""
        return self._json("DELETE", path, headers=headers, params=parameters)

    def download(self, path: str) -> bytes:
        """Read the bytes of an answer as they are."""
        return self._send("GET", path).content

    def page(self, path: str, after: str | None, **parameters: Any) -> tuple[list[Json], str | None]:
        """The items of one page, from a cursor on, and the cursor of the next page."""
        answer = self.get(path, limit=PAGE, after=after, **parameters)
        return answer["items"], answer["next"]

    def pages(
        self, path: str, max_items: int | None, on_page: Callable[[int], object] = lambda _: None, **parameters: Any
    ) -> tuple[list[Json], str | None]:
        """Up to `max_items` items (all when None) from as many pages as it takes, and the cursor of the rest.

        `on_page` is called after each page with the number of items so far.
        """
        items: list[Json] = []
        after: str | None = parameters.pop("after", None)
        while max_items is None or len(items) < max_items:
            limit = PAGE if max_items is None else min(PAGE, max_items - len(items))
            page = self.get(path, limit=limit, after=after, **parameters)
            items += page["items"]
            after = page["next"]
            on_page(len(items))
            if after is None:
                break
        return items, after

    def _json(self, method: str, path: str, **request: Any) -> Json:
        response = self._send(method, path, **request)
        answer = _object(response)
        if answer is None:
            raise _not_convener(response)
        return answer

    def _send(self, method: str, path: str, **request: Any) -> httpx.Response:
        response = self._patiently(method, path, **request)
        self.now = _time_of(response)
        if not response.is_success:
            raise _refusal(response)
        return response

    def _patiently(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Send a request; wait and repeat it a few times as the service asks to."""
        # Also writes: every request that this program sends is safe to repeat.
        for tries_left in reversed(range(_TRIES)):
            response = self._once(method, path, **request)
            if response.status_code not in (429, 503) or not tries_left:
                break
            time.sleep(_retry_after(response))
        return response

    def _once(self, method: str, path: str, **request: Any) -> httpx.Response:
        if self._namespace and path.startswith(_NAMESPACED):
            request["params"] = {"namespace": self._namespace, **(request.get("params") or {})}
        try:
            return self._http.request(method, path, **request)
        except httpx.HTTPError as error:
            raise Unreachable(self.url, error) from error
        except ValueError as error:
            raise failure_of_value(error) from None


def connect(url: str | None, key_files: Sequence[str] = (OPERATOR_KEY,)) -> Client:
    """A client for the service that option, environment or state directory name. Raises Failure without a key."""
    return Client(find_access(url, key_files))


def _content(body: Any, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    if isinstance(body, bytes):
        return {"content": body, "headers": {"Content-Type": "application/json", **(headers or {})}}
    return {"json": body, "headers": headers}


def again_if_stale(change: Callable[[], Json], subject: str) -> Json:
    """Make a change that first reads the version; once more if somebody else has changed the subject in between."""
    try:
        return change()
    except Refusal as refusal:
        if refusal.status != _STALE:
            raise
        note(f"somebody has changed {subject} meanwhile; trying again")
        return change()


def _time_of(response: httpx.Response) -> datetime:
    """The time that ages are counted to: by the local clock, or by the service's where the two are far apart."""
    # Date has whole seconds only, so the local clock is better while it is right.
    local_time = datetime.now(UTC)
    try:
        service_time = parsedate_to_datetime(response.headers.get("date", ""))
        are_apart = abs((service_time - local_time).total_seconds()) > _CLOCKS_APART_SECONDS
    except (TypeError, ValueError):  # a proxy may leave the time zone out
        return local_time
    return service_time if are_apart else local_time


def _refusal(response: httpx.Response) -> Failure:
    problem = _object(response)
    if problem is None and response.status_code in _OF_PROXIES:
        error = httpx.HTTPStatusError(
            f"a proxy answers {response.status_code}", request=response.request, response=response
        )
        return Unreachable(str(response.url.join("/")), error)
    return Refusal(response.status_code, problem) if problem and "code" in problem else _not_convener(response)


def _object(response: httpx.Response) -> Json | None:
    try:
        answer = response.json(object_hook=_Answer)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def _not_convener(response: httpx.Response) -> Failure:
    return Failure(
        f"{response.url} answers, but not like Convener ({response.status_code})",
        ExitCode.REFUSED,
        hint="check --url and CONVENER_URL; a proxy or another program may stand there",
    )


def _retry_after(response: httpx.Response) -> float:
    try:
        seconds = float(response.headers.get("retry-after", 1))
    except ValueError:  # a proxy may send a date here
        seconds = 1.0
    # In this order nan, which is larger than nothing, becomes the least.
    return min(max(0.1, seconds), _LONGEST_PAUSE_SECONDS)
