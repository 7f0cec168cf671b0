"""Route of the caller's own key."""

from pydantic import BaseModel, Field

from app.admin.service.access import UNKNOWN
from app.admin.store import keys as store
from app.http.fields import Moment
from app.http.guard import Caller, requires
from app.http.namespaces import Within
from app.http.routing import Router
from app.http.transactions import Reading
from app.kernel.access import COMMON, SCOPES, Role, Scope
from app.kernel.errors import Unauthenticated

router = Router(prefix="/whoami", tags=["keys"])


class WhoAmIOut(BaseModel):
    """The key that was shown, and what it may do."""

    id: str
    role: Role
    label: str
    namespace: str | None = Field(description="the only one that it sees and changes; null: the whole service")
    scopes: list[Scope]
    withheld: list[Scope] = Field(description="scopes of its role that it was made without")
    created_at: Moment
    expires_at: Moment | None = Field(description="null: it does not expire")


@router.get("", operation_id="get_own_key", summary="Read which key this is", dependencies=[requires(Scope.SELF)])
async def read(connection: Reading, caller: Caller, namespace: Within) -> WhoAmIOut:
    """Open to every key that is good. For clients that want to know at their start whether theirs is."""
    own = await store.read_own(connection, caller.key_id)
    if own is None:  # it was used up a moment ago
        raise Unauthenticated(UNKNOWN)
    scopes = sorted(scope for scope in SCOPES[caller.role] - COMMON if caller.may(scope))
    return WhoAmIOut(
        id=caller.key_id,
        role=caller.role,
        namespace=namespace,
        scopes=scopes,
        withheld=sorted(caller.withheld),
        label=own.label,
        created_at=own.created_at,
        expires_at=own.expires_at,
    )
