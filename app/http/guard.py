"""Access control: every route declares the scope that it needs, and the caller's key must include it."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import Depends, Request
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.http.services import Services, ServicesDep
from app.kernel.access import Principal, Scope
from app.kernel.errors import Forbidden, ShuttingDown, Unauthenticated
from app.kernel.ids import WorkerId

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A Convener key: `cvn_<id>_<secret>`. `convener key create` makes one.",
)
_SCOPE = "convener_scope"


class Authenticator:
    """Recognises keys; `app.admin` implements it."""

    async def recognise(self, text: str) -> Principal:
        """The holder of the key. Raises Unauthenticated."""
        raise NotImplementedError


def requires(scope: Scope) -> Any:
    """The dependency that lets in only holders of a key with this scope."""
    check: Callable[..., Awaitable[None]]
    # Public routes declare their scope too, so that a test finds any route that declares none.
    if scope is Scope.PUBLIC:

        async def check() -> None:
            return None
    else:

        async def check(
            request: Request,
            services: ServicesDep,
            # Unused here; it makes OpenAPI show that the route needs a key.
            _: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
        ) -> None:
            request.state.principal = await admit(services, request.headers.get("authorization"), scope)

    setattr(check, _SCOPE, scope)
    return Depends(check)


def declared_scope(dependencies: list[Dependency]) -> Scope | None:
    """The scope that a route declares among its dependencies; None without one."""
    scopes = [getattr(dependency.dependency, _SCOPE, None) for dependency in dependencies]
    return next((scope for scope in scopes if scope is not None), None)


async def admit(services: Services, authorization: str | None, scope: Scope) -> Principal:
    """The holder of the key. Raises Unauthenticated, Forbidden, and ShuttingDown once the service is stopping."""
    # Connections that are kept alive go on bringing requests after the shutdown has begun.
    if services.stopping:
        raise ShuttingDown
    scheme, _, key = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not key:
        raise Unauthenticated("send the header `Authorization: Bearer cvn_<id>_<secret>`")
    principal = await services[Authenticator].recognise(key.strip())
    if not principal.may(scope):
        raise Forbidden(f"a key with the role {principal.role} does not include {scope}")
    return principal


def worker_of(principal: Principal) -> WorkerId:
    """The worker that this credential belongs to. Raises Forbidden for any other key."""
    if principal.worker_id is None:
        raise Forbidden("use the key that the worker received when it registered")
    return principal.worker_id


def _principal(request: Request) -> Principal:
    principal: Principal = request.state.principal
    return principal


Caller = Annotated[Principal, Depends(_principal)]
