"""The supervisor's side of the HTTP contract; every call is repeated until the service answers."""

import os
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import count
from random import Random
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias
from urllib.parse import quote

import httpx

from examples.supervising.task import Json
from worker_agent.connections.clients import advice, open_client
from worker_agent.connections.trust import read_trust
from worker_agent.llm.rate_limit_hints import read_retry_after

Query: TypeAlias = dict[str, str | float]

TRY_AGAIN = frozenset({408, 429})
# What has no code comes from something between here and the service, which says nothing of the request. And another one
# with the same idempotency key, perhaps this very one whose answer was lost, may still be at work.
TRY_AGAIN_CODES = frozenset({"", "submit_in_flight"})
# Something else stands there than this program says.
CONFLICTS = frozenset({"goal_conflict", "iteration_conflict", "task_conflict"})
# The stored events begin after a cursor, or end before it: the service was away for long, or a backup restored.
MISSING_EVENTS = frozenset({"cursor_expired", "cursor_ahead"})
ADVICE = (
    "another program pursues this goal too, or this one was changed or a backup restored since: "
    "start again, and if that is refused as well pursue a goal of another name"
)
KEY_STATUSES = frozenset({401, 403})
KEY_ADVICE = (
    "put the key of a supervisor into CONVENER_KEY, or unset it to use the one of `convener up` on this machine"
)
TIMEOUT_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 0.1
LONGEST_PAUSE_SECONDS = 5.0
# A proxy may ask for hours.
LONGEST_WISH_SECONDS = 60.0


class Unreachable(Exception):
    """The service has not answered for longer than the supervisor is willing to wait."""


class Refused(Exception):
    """The service understood the request and said no."""


class Stopped(Exception):
    """The service has stopped the research goal; the message is its reason."""


class EventsMissing(Exception):
    """No events follow the cursor; read how the tasks stand, and go on with events from now on."""


class Page(NamedTuple):
    """Events in order, and the cursor from which to read on."""

    items: list[Json]
    next: str


class Convener:
    """A client that outlives restarts of the service. All calls are safe to repeat: ids are chosen by the caller."""

    def __init__(
        self,
        base_url: str,
        key: str,
        *,
        give_up_seconds: float = 120.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
        waiting: Callable[[str, float], None] = lambda cause, seconds: None,
    ) -> None:
        """`waiting(cause, seconds)` is told of every pause before a call is repeated."""
        headers = {"Authorization": f"Bearer {key}"}
        trust = read_trust(os.environ)
        self._http = open_client(base_url, trust, headers=headers, timeout=TIMEOUT_SECONDS, transport=transport)
        self._base_url = base_url
        self._give_up_seconds = give_up_seconds
        self._sleep, self._waiting = sleep, waiting
        self._jitter = Random()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._http.close()

    def create_goal(self, goal: Json) -> None:
        """Create a goal; the same one again is accepted."""
        self._call("POST", "/goals", json=goal)

    def report(self, goal_id: str, iteration: Json) -> Json:
        """Report an iteration; return the decision whether to go on. Raises Stopped."""
        return self._call("POST", f"/goals/{quote(goal_id, safe='')}/iterations", json=iteration)

    def judge(self, judgements: Json) -> None:
        """Send judgements on results. The same request again is counted once."""
        self._call("POST", "/metrics/performance", json=judgements)

    def submit(self, tasks: Sequence[Json]) -> dict[str, str]:
        """Submit all or none; the state of each task by its id. Raises Stopped."""
        answer = self._call("POST", "/tasks/batch", json={"tasks": list(tasks)})
        return {task["id"]: task["state"] for task in answer["tasks"]}

    def task(self, task_id: str) -> Json:
        return self._call("GET", f"/tasks/{task_id}")

    def events(self, goal_id: str, after: str | None, wait_seconds: float) -> Page:
        """Events of the tasks of a goal after the cursor; waits where there are none yet. Raises EventsMissing."""
        query: Query = {"goal_id": goal_id, "wait_seconds": wait_seconds}
        if after is not None:
            query["after"] = after
        answer = self._call("GET", "/events", params=query, wait_seconds=wait_seconds)
        return Page(answer["items"], answer["next"])

    def _call(
        self, method: str, path: str, *, json: Json | None = None, params: Query | None = None, wait_seconds: float = 0
    ) -> Json:
        started = time.monotonic()
        # The service may use up the wait; the usual timeout is for the network.
        timeout = TIMEOUT_SECONDS + wait_seconds
        for attempt in count():
            at_least = 0.0
            try:
                response = self._http.request(method, path, json=json, params=params, timeout=timeout)
            except httpx.RequestError as error:
                cause = f"no connection ({type(error).__name__})"
                hint = advice(error, self._base_url) or str(error)
            else:
                if (content := _content(response)) is not None:
                    return content
                cause, at_least, hint = f"HTTP {response.status_code}", _retry_after(response), _hint(response)
            if time.monotonic() - started > self._give_up_seconds:
                raise Unreachable(f"{method} {path}: {cause} for {self._give_up_seconds:.0f} s; {hint}")
            self._pause(cause, at_least, attempt)
        raise AssertionError("count() does not end")

    def _pause(self, cause: str, at_least: float, attempt: int) -> None:
        """Full jitter: anything up to a bound that doubles, never less than the service asked for."""
        bound = min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2.0 ** min(attempt, 10))
        seconds = max(at_least, self._jitter.uniform(0.0, bound))
        self._waiting(cause, seconds)
        self._sleep(seconds)


def _content(response: httpx.Response) -> Json | None:
    """The answer of the service; None where the call has to be sent again. Raises Stopped, EventsMissing, Refused."""
    content = _object(response)
    if content is None or response.is_success:
        return content
    code = str(content.get("code", ""))
    if response.is_server_error or response.status_code in TRY_AGAIN or code in TRY_AGAIN_CODES:
        return None
    if code == "goal_stopped":
        raise Stopped(content.get("reason") or content["detail"])
    if code in MISSING_EVENTS:
        raise EventsMissing(content["detail"])
    what = f"{response.request.method} {response.request.url.path}: {response.status_code}"
    raise Refused(f"{what} {_words(response, content, code)}")


def _words(response: httpx.Response, problem: Json, code: str) -> str:
    """What is refused and what to do, as far as that is known."""
    if code in CONFLICTS:
        return f"{problem['detail']}; {ADVICE}"
    if response.status_code in KEY_STATUSES:
        return f"{problem.get('detail', code)}; {KEY_ADVICE}"
    return response.text


def _object(response: httpx.Response) -> Json | None:
    try:
        content = response.json()
    except ValueError:
        return None
    return content if isinstance(content, dict) else None


def _retry_after(response: httpx.Response) -> float:
    seconds = read_retry_after(response.headers.get("Retry-After"), datetime.now(UTC))
    return min(seconds or 0.0, LONGEST_WISH_SECONDS)


def _hint(response: httpx.Response) -> str:
    """What stands at the address, where it is not the service."""
    if "code" in (_object(response) or {}):
        return response.text
    if response.has_redirect_location:
        return f"it redirects to {response.headers['Location']}: is that the address of the service?"
    return f"{response.url} does not answer like Convener; a proxy or another program may stand there"
