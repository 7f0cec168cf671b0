"""Routes of checkpoints: take, list, read and verify them."""

from typing import Annotated

from fastapi import Path, Response
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse

from app.http.fields import NEWEST, Below, Limit, Moment, ReasonIn
from app.http.guard import Caller, requires
from app.http.json import ANY_OBJECT
from app.http.problems import responses_for
from app.http.routing import Router
from app.http.services import ServicesDep
from app.http.transactions import Reading
from app.kernel.access import Scope
from app.memory.errors import CheckpointBusy, CheckpointNotFound, VerificationBusy
from app.memory.service import checkpoints as service
from app.memory.store import checkpoints as store
from app.memory.store.checkpoints import Checkpoint

router = Router(prefix="/checkpoints", tags=["context"])
_FOUND = responses_for(CheckpointNotFound)
Id = Annotated[int, Path(ge=1, le=NEWEST)]


class CheckpointOut(BaseModel):
    """What is known of a checkpoint without opening it."""

    id: int
    taken_at: Moment
    reason: str
    taken_by: str | None = Field(description="id of the key that asked for it; null for a regular one")
    revision: str = Field(description="of the schema of the database")
    event_cursor: str = Field(description="every event up to it is in the checkpoint")
    counts: dict[str, int]
    is_cut: bool = Field(
        description="there was more than one holds (20,000 tasks, 5,000 entries of the Context Memory, 32 MiB; and as "
        "many rows and bytes of goals that have not ended): leased tasks come first, then old ones; a backup holds all"
    )
    size_bytes: int
    stored_bytes: int
    sha256: str


class CheckpointPage(BaseModel):
    """Newest first; pass `next` as `after` for what follows."""

    items: list[CheckpointOut]
    next: int | None


class FindingsOut(BaseModel):
    """Whether the checkpoint is what was taken, and whether everything in it agrees."""

    ok: bool
    violations: list[str]
    checkpoint: CheckpointOut


@router.post(
    "",
    operation_id="take_checkpoint",
    summary="Take a checkpoint",
    status_code=201,
    dependencies=[requires(Scope.MANAGE, costly=True)],
    responses=responses_for(CheckpointBusy),
)
async def take(body: ReasonIn, services: ServicesDep, caller: Caller) -> CheckpointOut:
    """Besides the regular ones: every 5 minutes or 50 completed tasks. One is taken at a time."""
    return _checkpoint_out(await service.take(services.database, body.reason, taken_by=caller.key_id))


@router.get("", operation_id="list_checkpoints", summary="List checkpoints", dependencies=[requires(Scope.READ)])
async def page(
    connection: Reading,
    after: Below = NEWEST,
    limit: Limit = 50,
) -> CheckpointPage:
    """The newest 20, and one of each day as far back as history is kept."""
    checkpoints = await store.page(connection, before_id=after, limit=limit)
    items = [_checkpoint_out(checkpoint) for checkpoint in checkpoints.items]
    return CheckpointPage(items=items, next=checkpoints.next(lambda checkpoint: checkpoint.id))


@router.get(
    "/{checkpoint_id}",
    operation_id="get_checkpoint",
    summary="Read what is known of a checkpoint",
    dependencies=[requires(Scope.READ)],
    responses=_FOUND,
)
async def read(checkpoint_id: Id, services: ServicesDep) -> CheckpointOut:
    """When and why it was taken, and how much it holds."""
    return _checkpoint_out(await service.read(services.database, checkpoint_id))


@router.get(
    "/{checkpoint_id}/content",
    operation_id="get_checkpoint_content",
    summary="Read the content of a checkpoint",
    dependencies=[requires(Scope.READ, Scope.CONTENT)],
    responses={200: {"content": {"application/json": {"schema": ANY_OBJECT}}}, **_FOUND},
    response_class=Response,
)
async def content(checkpoint_id: Id, services: ServicesDep) -> Response:
    """Live tasks, what they wait for, goals, lanes, pauses, and the Context Memory, as of one moment.

    `convener checkpoints restore` puts it into an empty database.
    """
    # In pieces, so that whoever reads slowly takes no memory for what is to come.
    pieces = await service.read_pieces(services.database, checkpoint_id)
    return StreamingResponse(pieces, media_type="application/json")


@router.post(
    "/{checkpoint_id}/verify",
    operation_id="verify_checkpoint",
    summary="Check a checkpoint",
    dependencies=[requires(Scope.READ)],
    responses=responses_for(CheckpointNotFound, VerificationBusy),
)
async def verify(checkpoint_id: Id, services: ServicesDep) -> FindingsOut:
    """Recomputes the checksum and checks every invariant of the content; changes nothing. One at a time."""
    findings = await service.verify(services.database, checkpoint_id)
    checkpoint = _checkpoint_out(findings.checkpoint)
    return FindingsOut(ok=not findings.violations, violations=findings.violations, checkpoint=checkpoint)


def _checkpoint_out(checkpoint: Checkpoint) -> CheckpointOut:
    texts = {"event_cursor": str(checkpoint.cursor), "sha256": checkpoint.sha256.hex()}
    plain = {name: getattr(checkpoint, name) for name in CheckpointOut.model_fields.keys() - texts.keys()}
    return CheckpointOut(**plain, **texts)
