"""Routes for the calls that come thousands of times a second.

FastAPI's general path costs more than the work of these calls. A lean route is declared like any other, with the
same models, access control, problems and documentation, but reads the body with Pydantic's own JSON parser and
answers with the bytes that its endpoint returns. A plain route leaves FastAPI what is unusual of its requests.
"""

import inspect
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeAlias, get_type_hints
from uuid import UUID

from fastapi.dependencies.utils import request_params_to_args
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from app.db.driver_uuids import parse_uuid
from app.http import problems
from app.http.addresses import is_readable
from app.http.answers import JSON_BODY
from app.http.bodies import Uploads, declared_limit, uploader, validate, validate_plain
from app.http.guard import admit, admit_remembered, admit_to_route, declared_scopes
from app.http.json import JsonAnswer
from app.http.namespaces import into, within
from app.http.routing import GuardedRoute, Handler
from app.http.security import names_one_host, secured
from app.http.services import Services
from app.kernel.access import Principal
from app.kernel.errors import ShuttingDown


class LeanRoute(APIRoute):
    """A route whose endpoint takes `call` (the body), `services`, path UUIDs, and maybe `principal` and `request`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        hints = get_type_hints(self.endpoint)
        self._needs = declared_scopes(self.dependencies)
        if not self._needs:
            raise TypeError(f"{self.path} does not declare what it needs")
        self.max_bytes = declared_limit(self.openapi_extra)
        self.model: type[BaseModel] = hints["call"]
        parameters = inspect.signature(self.endpoint).parameters
        self._takes_principal, self._takes_request = "principal" in parameters, "request" in parameters
        self.from_path = tuple(name for name in hints if name in self.param_convertors)
        # The router calls `app` for a matched request; replacing it skips FastAPI's resolution of dependencies.
        self.app = self._serve

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"] = self  # as the router does, which these requests do not pass
        request = Request(scope, receive, send)
        try:
            response = await self._answer(request)
        except ClientDisconnect:
            # It hung up in the middle of its body: nobody is left to answer, and nothing went wrong here.
            return
        except Exception as error:
            response = problems.from_raised(error, request)
        if isinstance(response, JsonAnswer) and response.is_usual and JSON_BODY in scope.get("extensions", ()):
            await send({"type": JSON_BODY, "body": response.body})
        else:
            await secured(response)(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        scope, state = request.scope, request.scope["app"].state
        services: Services = state.services
        # The key comes first, so that a stranger's body is not even read.
        authorization = _authorization(scope)
        principal = None
        if authorization and not services.stopping:
            principal = admit_remembered(services, authorization, *self._needs)
        if principal is None:
            principal = await admit(services, authorization, *self._needs)
        scope.setdefault("state", {})["principal"] = principal  # tells that the connection is used with a key
        uploads: Uploads = state.uploads
        with uploads.of(uploader(request, principal)) as upload:
            body = await upload.read(request, self.max_bytes) or b"{}"
            call = await self.read(body)
            if services.stopping:  # reading the body may have taken until after the shutdown began
                raise ShuttingDown
            path = {name: uuid_of(scope["path_params"][name], name) for name in self.from_path}
            return await self._call(services, principal, call, path, request)

    async def read(self, body: bytes) -> BaseModel:
        """The body as a call. Raises RequestValidationError, BodyTooComplex."""
        return validate_plain(self.model, body) or await validate(self.model, body, self.max_bytes)

    async def respond(
        self, services: Services, principal: Principal, call: BaseModel, path: Mapping[str, UUID]
    ) -> Response:
        """The response to a call that came in another request, which has admitted its caller and read its body."""
        try:
            return await self._call(services, principal, call, path)
        except Exception as error:
            return problems.from_raised(error)

    def _call(
        self,
        services: Services,
        principal: Principal,
        call: BaseModel,
        path: Mapping[str, UUID],
        request: Request | None = None,
    ) -> Awaitable[Response]:
        arguments: dict[str, object] = {"services": services, "call": call, **path}
        if self._takes_principal:
            arguments["principal"] = principal
        if self._takes_request:
            arguments["request"] = request
        answer: Awaitable[Response] = self.endpoint(**arguments)
        return answer


class PlainRoute(GuardedRoute):
    """A guarded route at a fixed address, whose plain requests are answered past FastAPI: JSON, and no query.

    Its endpoint takes a body, and any of `services`, `namespace` and parameters that are headers.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        headers = self.dependant.header_params
        self._headers = [field for field in headers if field.name in inspect.signature(self.endpoint).parameters]
        self._header_names = frozenset(field.alias.lower().encode() for field in self._headers)
        self._answer_plain = self.guarded(self._call)

    def is_plain(self, scope: Scope) -> bool:
        """Whether the request is one of those."""
        if scope["query_string"] or scope["method"] not in (self.methods or ()):
            return False
        # Of several the first counts, as it does for the framework.
        head = dict(reversed(scope["headers"]))
        return head.get(b"content-type") == b"application/json" and head.get(b"content-length", b"0") != b"0"

    async def serve_plain(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI, for such a request."""
        scope["route"] = self
        request, began_at = Request(scope, receive, send), time.perf_counter()
        response = secured(await _answer_or_problem(self._answer_plain, request))
        try:
            await response(scope, receive, send)
        finally:
            count: RequestCounter = request.app.state.count_request
            count(request, response, time.perf_counter() - began_at)

    async def _call(self, request: Request) -> Response:
        # The body may have taken long, and the key may have been revoked meanwhile.
        needs = declared_scopes(self.dependencies)
        request.state.principal = principal = await admit_to_route(request, *needs)
        arguments: dict[str, Any] = {}
        if not self._header_names.isdisjoint(name for name, _ in request.scope["headers"]):
            arguments, errors = request_params_to_args(self._headers, request.headers)
            if errors:
                raise RequestValidationError(errors)
        assert self.body_field is not None
        if not await request.body():  # a length of "00" announces none
            raise RequestValidationError([{"type": "missing", "loc": ("body",)}])
        arguments[self.body_field.name] = await request.json()
        services: Services = request.app.state.services
        response: Response = await self.endpoint(services=services, namespace=into(within(principal)), **arguments)
        return response


RequestCounter: TypeAlias = Callable[[Request, Response, float], None]


async def _answer_or_problem(handle: Handler, request: Request) -> Response:
    """The answer, or the problem that kept it back. Raises ClientDisconnect."""
    try:
        return await handle(request)
    except ClientDisconnect:
        raise
    except Exception as error:
        return problems.from_raised(error, request)


class FastLane:
    """Passes requests for lean routes around the middleware, which would cost them more than their own work."""

    def __init__(self, app: ASGIApp, routes: Iterable[BaseRoute]) -> None:
        self._app = app
        routes = list(routes)
        lean_routes = [route for route in routes if isinstance(route, LeanRoute)]
        self._lean = {route.path.rpartition("/")[2]: route for route in lean_routes}
        if len(self._lean) < len(lean_routes):
            raise ValueError("two lean routes have the last part of their addresses in common")
        self._plain = {route.path: route for route in routes if isinstance(route, PlainRoute)}

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """ASGI."""
        if scope["type"] == "http" and not names_one_host(scope):
            refusal = problems.from_status(400, "A request has one Host header", {"Connection": "close"})
            return secured(refusal)(scope, receive, send)
        if scope["type"] == "http" and scope["method"] == "POST":
            path: str = scope["path"]
            plain = self._plain.get(path)
            if plain is not None and plain.is_plain(scope):
                return plain.serve_plain(scope, receive, send)
            # Of the middleware only the check of addresses is missed, so one that is not UTF-8 is left to it: lean
            # routes answer their own errors, take no query and are not instrumented.
            lean = self._lean.get(path.rpartition("/")[2])
            if (
                lean is not None
                and (match := lean.path_regex.match(path)) is not None
                and ("\ufffd" not in path or is_readable(scope))
            ):
                scope["path_params"] = match.groupdict()
                return lean.app(scope, receive, send)
        return self._app(scope, receive, send)


def _authorization(scope: Scope) -> str | None:
    # Of several the first counts.
    for name, value in scope["headers"]:
        if name == b"authorization":
            authorization: str = value.decode("latin-1")
            return authorization
    return None


def uuid_of(text: str, name: str) -> UUID:
    """The identifier in a part of the path. Raises RequestValidationError."""
    try:
        return parse_uuid(text)
    except ValueError:
        wrong = {"type": "uuid_parsing", "loc": ("path", name), "msg": "must be a UUID"}
        raise RequestValidationError([wrong]) from None
