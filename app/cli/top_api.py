"""The API as the view of `convener top` asks it: like the pages do, from another machine."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

from app.dashboard.access import Viewer
from app.dashboard.actions import ACTIONS, Fields, filled
from app.dashboard.api_calls import Refused
from app.dashboard.attention import Button
from app.dashboard.now import view_of
from app.dashboard.sight import Looker
from app.kernel.access import Scope
from app.terminal.connection import Access
from worker_agent.connections.clients import open_async_client
from worker_agent.connections.several import HTTP_ERRORS

_SECONDS = 10.0
_MAX_WORKERS = 200


class RemoteApi:
    """Sends requests over one connection or a few; each may take ten seconds."""

    def __init__(self, access: Access) -> None:
        headers = {"Authorization": f"Bearer {access.key}", "Accept": "application/json"}
        self._http = open_async_client(access.url, access.trust, headers=headers, timeout=_SECONDS)

    async def ask(self, method: str, path: str, *, query: Mapping[str, Any] | None = None, body: Any = None) -> Any:
        """Send a request; return the value of the answer. Raises Refused, also where nothing answers."""
        present = {name: value for name, value in (query or {}).items() if value is not None}
        try:
            answer = await self._http.request(method, path, params=present, json=body)
            value = answer.json() if answer.content else None
        except (*HTTP_ERRORS, ValueError) as error:
            raise Refused(0, {"detail": f"the service does not answer ({type(error).__name__})"}) from error
        if answer.status_code >= 400:
            raise Refused(answer.status_code, value if isinstance(value, dict) else {})
        return value

    async def get(self, path: str, query: Mapping[str, Any] | None = None, /, **options: Any) -> Any:
        """The value of an address. Raises Refused."""
        return await self.ask("GET", path, query={**(query or {}), **options})

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()


class RemoteViewer:
    """The holder of a key who looks from a terminal; `key` is the answer of `GET /whoami`."""

    def __init__(self, access: Access, key: Mapping[str, Any]) -> None:
        self.api = RemoteApi(access)
        self.url = access.url
        self.name = f"{key['label']} ({key['role']})"
        self.csrf = ""
        self._scopes = frozenset(key["scopes"])
        self._looker = Looker()

    def may(self, *scopes: Scope) -> bool:
        """Whether the key includes all of these scopes."""
        return all(scope.value in self._scopes for scope in scopes)

    async def look(self) -> dict[str, Any]:
        """The values of the page Now, with the hour behind the curves and the workers. Raises Refused."""
        # Of a viewer these need what this class has as well.
        viewer = cast("Viewer", self)
        sight = await self._looker.look(viewer)
        workers = await self.api.get("/workers", limit=_MAX_WORKERS) if self.may(Scope.READ) else {"items": []}
        at = datetime.fromisoformat(sight.queues["at"])
        return {**view_of(viewer, sight), "at": at, "hour": sight.hour, "workers": workers["items"]}

    def allowed(self, buttons: tuple[Button, ...]) -> list[Button]:
        """Those of the actions that the key may carry out."""
        return [button for button in buttons if self.may(*ACTIONS[button.action].scopes)]

    async def act(self, button: Button, reason: str) -> str:
        """Carry out an action; return what is so now. Raises Refused."""
        action = ACTIONS[button.action]
        fields: Fields = {**button.fields, "reason": reason}
        await self.api.ask(action.method, filled(action.path, fields, is_path=True), body=action.body(fields))
        return filled(action.done, fields, is_path=False)
