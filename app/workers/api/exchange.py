"""The exchange: whoever speaks for many workers hands in what they did, and gets their next tasks, in one request."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, WithJsonSchema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from app.http.bodies import CONTENT_BYTES, body_limit, validate
from app.http.fast_routes import LeanRoute
from app.http.fields import Body
from app.http.guard import requires
from app.http.json import ANY_OBJECT
from app.http.problems import responses_for
from app.http.services import ServicesDep
from app.kernel.access import Scope
from app.kernel.errors import Forbidden, ShuttingDown
from app.workers.api.exchange_items import MAX_AUTHORIZATION, OPERATIONS
from app.workers.api.exchange_run import MEDIA_TYPE, Exchange


class LinesResponse(JSONResponse):
    """For the document: lines of JSON."""

    media_type = MEDIA_TYPE


class ExchangeRoute(LeanRoute):
    """Reads every body by the parser that leaves what it can to the items, which are refused one by one."""

    async def read(self, body: bytes) -> BaseModel:
        """The body as a call. Raises RequestValidationError, BodyTooComplex."""
        call = await validate(ExchangeIn, body, self.max_bytes)
        call._size = len(body)
        return call


router = APIRouter(tags=["leases"], route_class=ExchangeRoute)
_MAX_ITEMS = 512
_IDENTIFIER = {"type": "string", "format": "uuid"}
_ITEM = {
    "type": "object",
    "required": ["authorization", "operation"],
    "additionalProperties": False,
    "properties": {
        "authorization": {
            "type": "string",
            "maxLength": MAX_AUTHORIZATION,
            "description": "`Bearer` and the key of the worker",
        },
        "operation": {"type": "string", "enum": list(OPERATIONS), "description": "the last part of a plain path"},
        "task_id": _IDENTIFIER | {"description": "where the plain route has it in its path"},
        "worker_id": _IDENTIFIER | {"description": "of a heartbeat"},
        # None of their models has as many.
        "body": ANY_OBJECT | {"maxProperties": 32, "description": "the body of the plain route"},
    },
}


class ExchangeIn(Body):
    """Calls of workers; each is judged by its own key, as if it had come alone."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "authorization": "Bearer cvn_<id>_<secret>",
                            "operation": "lease",
                            "body": {"request_id": "8f14e45f-ceea-467f-ab8a-1d2e3f4a5b6c"},
                        }
                    ]
                }
            ]
        }
    )

    # Read one by one, since one that is wrong must not refuse the others.
    items: list[Annotated[Any, WithJsonSchema(_ITEM)]] = Field(min_length=1, max_length=_MAX_ITEMS)
    _size: int = PrivateAttr(0)


class ExchangeAnswerOut(BaseModel):
    """The answer to one item: status and body of its plain route."""

    index: int = Field(description="of the item in the request, from 0")
    status: int
    body: dict[str, Any] | None = Field(None, description="left out where the plain route has none")
    retry_after: int | None = Field(None, description="seconds, where the plain route has the header `Retry-After`")


class ExchangeOut(BaseModel):
    """One line; each item is answered once, in any line."""

    answers: list[ExchangeAnswerOut]


@router.post(
    "/leases/exchange",
    operation_id="exchange_calls",
    summary="Calls of many workers at once",
    dependencies=[requires(Scope.LEASE)],
    openapi_extra=body_limit(CONTENT_BYTES),
    response_class=LinesResponse,
    response_model=ExchangeOut,
    responses=responses_for(Forbidden, ShuttingDown),
)
async def exchange(call: ExchangeIn, services: ServicesDep, request: Request) -> Response:
    """For whoever speaks for many workers: up to 512 calls on leases, for leases, and heartbeats.

    The key of any of the workers lets the request in, and then each item is judged by its own: nothing is allowed here
    that its plain route would refuse, and an item that is refused keeps no other one back. Calls for tasks come after
    all others; items of one worker are worked on in their order. The answer is one JSON object a line: the first with
    everything that need not wait, later ones for calls that wait for a task. A client that hangs up withdraws those.
    """
    return await Exchange(services, request, call.items).respond(call._size)
