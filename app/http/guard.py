"""Access control: every route declares the scope that it needs, and the caller's key must include it."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.http.callers import Authenticator, CallListener, ReadLog, key_text
from app.http.services import Services
from app.http.shares import Shares
from app.kernel.access import Principal, Scope
from app.kernel.errors import Forbidden, ShuttingDown, Unauthenticated
from app.kernel.ids import WorkerId

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A Convener key: `cvn_<id>_<secret>`. `convener key create` makes one.",
)
_SCOPES = "convener_scopes"
# Hundreds of workers and supervisors do these at once, and each is cheap.
_HOT = frozenset({Scope.SUBMIT, Scope.LEASE, Scope.REGISTER, Scope.CALL, Scope.MEASURE})
_NAMESPACED = "convener_namespaced"


def requires(*scopes: Scope, waits: bool = False, costly: bool = False) -> Any:
    """The dependency that lets in only holders of a key with all of these scopes.

    Each key has a share of what is neither hot nor `waits` for something to happen, and a smaller one of what is
    `costly`: of what grows with the history that there is.
    """
    is_shared = not waits and _HOT.isdisjoint(scopes)
    check: Callable[..., Any]
    # Public routes declare their scope too, so that a test finds any route that declares none.
    if scopes == (Scope.PUBLIC,):

        async def check() -> None:
            return None
    else:

        async def check(
            request: Request,
            # Unused here; it makes OpenAPI show that the route needs a key.
            _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        ) -> AsyncIterator[None]:
            # Guarded routes have admitted the caller by the head, before they read the body.
            principal: Principal | None = getattr(request.state, "principal", None)
            if principal is None:
                principal = await admit_to_route(request, *scopes)
            services: Services = request.app.state.services
            async with services[Shares].of(principal.key_id, is_costly=costly) if is_shared else nullcontext():
                # The body and the turn may have taken long, and the key may have been revoked meanwhile.
                request.state.principal = await admit_to_route(request, *scopes)
                yield
                await _record(request)

    setattr(check, _SCOPES, scopes)
    # A share ends with the work: whoever reads its answer slowly keeps nobody waiting.
    return Depends(check, scope="function")


async def _record(request: Request) -> None:
    """Record a read, where its route is recorded: within the share of the caller, as that writes too."""
    action: str | None = getattr(request.state, "recorded_action", None)
    # What an open page repeats by itself was recorded when it was opened.
    if action is not None and not getattr(request.state, "is_repeated", False):
        services: Services = request.app.state.services
        address = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        await services[ReadLog].note(request.state.principal, action, address)


def declared_scopes(dependencies: Sequence[Dependency]) -> tuple[Scope, ...]:
    """The scopes that a route declares among its dependencies; empty when it declares none."""
    return tuple(scope for dependency in dependencies for scope in getattr(dependency.dependency, _SCOPES, ()))


def mark_namespaced(dependency: Callable[..., Any]) -> None:
    """Mark the dependency that confines a request to a namespace: routes without it refuse keys of one namespace."""
    setattr(dependency, _NAMESPACED, True)


def is_namespaced(dependant: Dependant) -> bool:
    """Whether a route takes the namespace of its caller, directly or through another dependency."""
    return hasattr(dependant.call, _NAMESPACED) or any(map(is_namespaced, dependant.dependencies))


async def admit_to_route(request: Request, *scopes: Scope) -> Principal:
    """The holder of the key of a request, whom its route is for. Raises what `admit` does."""
    services: Services = request.app.state.services
    principal = await admit(services, request.headers.get("authorization"), *scopes)
    if principal.is_confined and not is_namespaced(request.scope["route"].dependant):
        raise Forbidden(f"this concerns the whole service; the key belongs to the namespace {principal.namespace}")
    return principal


async def admit(services: Services, authorization: str | None, *scopes: Scope) -> Principal:
    """The holder of the key. Raises Unauthenticated, Forbidden, and ShuttingDown once the service is stopping."""
    # Connections that are kept alive go on bringing requests after the shutdown has begun.
    if services.stopping:
        raise ShuttingDown
    key = key_text(authorization)
    if key is None:
        raise Unauthenticated("send the header `Authorization: Bearer cvn_<id>_<secret>`")
    return _admitted(services, await services[Authenticator].recognise(key), scopes)


def admit_remembered(services: Services, authorization: str, *scopes: Scope) -> Principal | None:
    """The holder of a key that needs no look-up, as `admit` does; None for others. Raises Forbidden."""
    key = key_text(authorization)
    principal = services[Authenticator].remembered(key) if key is not None else None
    return None if principal is None else _admitted(services, principal, scopes)


def _admitted(services: Services, principal: Principal, scopes: Iterable[Scope]) -> Principal:
    for scope in scopes:
        if not principal.may(scope):
            without = ", and was made without it" if scope in principal.withheld else ""
            raise Forbidden(f"this key, with the role {principal.role}, does not include {scope}{without}")
    if principal.worker_id is not None:
        services[CallListener].note(principal.worker_id)
    return principal


def worker_of(principal: Principal) -> WorkerId:
    """The worker that this credential belongs to. Raises Forbidden for any other key."""
    if principal.worker_id is None:
        raise Forbidden("use the key that the worker received when it registered")
    return principal.worker_id


async def _forbid_caching(response: Response) -> None:
    response.headers["Cache-Control"] = "no-store"


# For answers that hold a key.
UNCACHED: Any = Depends(_forbid_caching)


async def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_principal)]
