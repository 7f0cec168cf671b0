"""Calls of an API server of Kubernetes: JSON over HTTP, with what its conventions say about errors and watches.

Plain httpx, which this project has anyway: five kinds of calls are needed, and their errors matter more than their
types. Clients that are generated bring models of every resource, and hide `Retry-After`, in-stream errors and versions.
Source: Kubernetes API Concepts (efficient detection of changes, 410 Gone; resource versions; server-side limits).
"""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx

from app.kernel.text import printable
from app.workers.provisioners.engine import EngineUnavailable
from app.workers.provisioners.kubernetes.access import AccessRefused, ClusterAccess
from worker_agent.connections.several import HTTP_ERRORS

Json = dict[str, Any]
_TRIES = 4
_FIRST_PAUSE_SECONDS = 0.2
# Whoever is told to wait for longer than this does not try within the same turn.
_LONGEST_PAUSE_SECONDS = 5.0
_PAGE = 500
# The server ends a watch after this; a little later nothing has come, not even its end, and the connection is dead.
_WATCH_SECONDS = 60
_SILENCE_SECONDS = 75.0
_MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
_MAX_MESSAGE_LENGTH = 300


class Refused(EngineUnavailable):
    """An answer with a status of 400 or more; `status` is its code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class VersionGone(Exception):
    """The server does not have the changes since this version any more: everything must be read again."""


class ApiClient:
    """Calls with the credentials of `access`; `close` it at the end."""

    def __init__(self, access: ClusterAccess) -> None:
        self._access = access
        self._http = httpx.AsyncClient(
            base_url=access.server,
            verify=access.trust,
            timeout=httpx.Timeout(10.0, connect=5.0),
            limits=httpx.Limits(max_connections=12),
            trust_env=False,
            headers={"Accept": "application/json", "User-Agent": "convener"},
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Json:
        """Read an object or a page of a list. Raises Refused, EngineUnavailable."""
        return await self._call("GET", path, parameters=parameters)

    async def patch(self, path: str, body: Json) -> Json:
        """Change an object by a JSON merge patch. Raises Refused (409: its version is another), EngineUnavailable."""
        return await self._call("PATCH", path, body=body)

    async def list_all(self, path: str, selector: str) -> tuple[list[Json], str]:
        """All objects that a selector matches, and the version from which to watch them."""
        items: list[Json] = []
        parameters = {"labelSelector": selector, "limit": str(_PAGE)}
        while True:
            try:
                page = await self.get(path, parameters)
            except Refused as error:
                # The pages of a list expire after minutes.
                if error.status == 410 and "continue" in parameters:
                    items, parameters = [], {"labelSelector": selector}
                    continue
                raise
            items += page.get("items") or ()
            following = page["metadata"].get("continue")
            if not following:
                return items, str(page["metadata"].get("resourceVersion", ""))
            parameters = {**parameters, "continue": following}

    async def watch(self, path: str, selector: str, version: str) -> AsyncIterator[tuple[str, Json]]:
        """Yield kind and object of each change since a version, until the server ends the watch.

        Raises VersionGone, Refused, EngineUnavailable where the connection breaks.
        """
        parameters = {
            "watch": "true",
            "labelSelector": selector,
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = httpx.Timeout(_SILENCE_SECONDS, connect=5.0)
        try:
            headers = await self._credentials()
            async with self._http.stream("GET", path, params=parameters, headers=headers, timeout=timeout) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    if answer.status_code == 401:
                        self._access.renew()
                    _raise_refused(answer)
                async for line in answer.aiter_lines():
                    if not line:
                        continue
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        _raise_refused_status(event["object"])
                    yield event["type"], event["object"]
        except (*HTTP_ERRORS, ValueError, KeyError) as error:
            raise EngineUnavailable(f"the watch broke ({type(error).__name__})") from None

    async def _call(
        self, method: str, path: str, *, parameters: Mapping[str, str] | None = None, body: Json | None = None
    ) -> Json:
        for tried in range(1, _TRIES + 1):
            pause = random.uniform(0.5, 1.0) * _FIRST_PAUSE_SECONDS * 2 ** (tried - 1)  # noqa: S311
            try:
                answer = await self._http.request(
                    method,
                    path,
                    params=parameters,
                    content=None if body is None else json.dumps(body),
                    headers={**await self._credentials(), **({} if body is None else _MERGE_PATCH)},
                )
            except HTTP_ERRORS as error:
                # Each call may be repeated: one that was carried out finds another version, or the same value.
                problem: EngineUnavailable = EngineUnavailable(
                    f"the API server {self._access.server} does not answer ({type(error).__name__})"
                )
            else:
                if answer.status_code < 400:
                    return _object(answer)
                problem = _refused(answer)
                if answer.status_code == 401 and tried == 1:
                    self._access.renew()
                    pause = 0.0
                elif answer.status_code == 429 or answer.status_code >= 500:
                    pause = max(pause, _retry_after(answer))
                else:
                    raise problem
            if tried == _TRIES or pause > _LONGEST_PAUSE_SECONDS:
                raise problem
            await asyncio.sleep(pause)
        raise AssertionError

    async def _credentials(self) -> dict[str, str]:
        try:
            # A file or a command, which may take long.
            token = await asyncio.to_thread(self._access.token)
        except (OSError, AccessRefused) as error:
            raise EngineUnavailable(f"there is no token for the API server: {error}") from None
        return {} if token is None else {"Authorization": f"Bearer {token}"}


def path_of(*words: str) -> str:
    """A path of these words, each of them quoted."""
    return "/" + "/".join(quote(word, safe="") for word in words)


def _object(answer: httpx.Response) -> Json:
    try:
        return dict(answer.json())
    except (ValueError, TypeError):
        raise EngineUnavailable("the answer of the API server is no JSON: is it one?") from None


def _retry_after(answer: httpx.Response) -> float:
    value = answer.headers.get("Retry-After", "")
    return float(value) if value.isdecimal() else 0.0


def _refused(answer: httpx.Response) -> Refused:
    try:
        message = str(answer.json()["message"])
    except (ValueError, KeyError, TypeError):
        message = answer.reason_phrase
    return Refused(answer.status_code, _refusal(answer.status_code, message))


def _raise_refused(answer: httpx.Response) -> None:
    if answer.status_code == 410:
        raise VersionGone
    raise _refused(answer)


def _raise_refused_status(status: Json) -> None:
    code = int(status.get("code") or 500)
    if code == 410:
        raise VersionGone
    raise Refused(code, _refusal(code, str(status.get("message", ""))))


def _refusal(code: int, message: str) -> str:
    return f"the API server refuses ({code}): {printable(message)[:_MAX_MESSAGE_LENGTH]}"
