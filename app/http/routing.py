"""Routes that let the caller in by the head of its request, before they read a bounded body."""

from collections.abc import Callable, Coroutine
from email.message import Message
from functools import lru_cache
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from app.http.bodies import Uploads, declared_limit, parse, uploader, validate
from app.http.guard import admit_to_route, declared_scopes
from app.http.shares import Shares
from app.kernel.access import Principal, Scope
from app.kernel.errors import ShuttingDown

# First words of the addresses of what is recorded when it is read, where the mode wants that. Figures are not.
RECORDED = frozenset(
    {
        "audit",
        "checkpoints",
        "config",
        "context",
        "dead-letters",
        "events",
        "goals",
        "keys",
        "outputs",
        "queues",
        "tasks",
        "weights",
    }
)
_READING = frozenset({Scope.READ, Scope.CONTENT})
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class GuardedRoute(APIRoute):
    """A route that FastAPI resolves once the caller is admitted and the body is read and validated."""

    def get_route_handler(self) -> Handler:
        """FastAPI's own handler behind admission and the bounds of the body."""
        return self.guarded(super().get_route_handler())

    def guarded(self, answer: Handler) -> Handler:
        """The handler behind admission and the bounds of the body."""
        needs = declared_scopes(self.dependencies)
        if not needs:
            raise TypeError(f"{self.path} does not declare what it needs")

        subject = self.path.split("/")[1]
        is_reading = self.methods == {"GET"} or _READING.issuperset(needs)
        is_recorded = subject in RECORDED and is_reading and needs != (Scope.MONITOR,)

        async def handle(request: Request) -> Response:
            principal = None
            if is_recorded:
                request.state.recorded_action = f"{subject}.read"
            if needs != (Scope.PUBLIC,):
                principal = await admit_to_route(request, *needs)
                request.state.principal = principal
            try:
                if self.body_field is None:
                    return await answer(request)
                return await self._answer_with_body(answer, request, principal)
            except ClientDisconnect:
                # In the middle of its body: nobody is left to answer, and nothing went wrong here.
                return Response(status_code=400)

        return handle

    async def _answer_with_body(self, answer: Handler, request: Request, principal: Principal | None) -> Response:
        uploads: Uploads = request.app.state.uploads
        max_bytes = declared_limit(self.openapi_extra)
        caller = uploader(request, principal)
        with uploads.of(caller) as upload:
            body = await upload.read(request, max_bytes)
            async with request.app.state.services[Shares].of_body(caller, len(body)):
                await self._hand_over(request, body, max_bytes)
                return await answer(request)

    async def _hand_over(self, request: Request, body: bytes, max_bytes: int) -> None:
        """Leave the body where FastAPI looks for it, which takes a finished model as it is."""
        # Those that have waited for their turn must not keep the process from its end.
        if request.app.state.services.stopping:
            raise ShuttingDown
        request._body = body
        if not body or not _is_json(request.headers.get("content-type", "")):
            return
        kind = self.body_field.field_info.annotation if self.body_field else None
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            request._json = await validate(kind, body, max_bytes)
        else:
            request._json = await parse(body, max_bytes)


class Router(APIRouter):
    """A router of guarded routes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"route_class": GuardedRoute, **options})


# Clients send the same few.
@lru_cache(maxsize=64)
def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype() if message.get_content_maintype() == "application" else ""
    return bool(content_type) and (subtype == "json" or subtype.endswith("+json"))
