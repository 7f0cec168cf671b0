"""Bodies of requests: read within bounds of bytes, weighed before they are parsed, validated without long errors."""

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from types import TracebackType
from typing import Any, Self, TypeVar, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from app.http import computing
from app.kernel.access import Principal
from app.kernel.errors import BodyTooComplex, TooManyUploads, UploadsFull
from worker_agent.json_weight import allowed_weight, weights, weights_outside_texts

Model = TypeVar("Model", bound=BaseModel)
T = TypeVar("T")

SMALL_BYTES = 64 << 10
LISTS_BYTES = 1 << 20
CONTENT_BYTES = 12 << 20
_DECLARED = "x-max-body-bytes"
_MAX_WEIGHT: Mapping[int, int] = {SMALL_BYTES: 30_000, LISTS_BYTES: 120_000, CONTENT_BYTES: 1_000_000}
_BLOCK_BYTES = 128 << 10
# A key without a field costs 3 us and an error of 500 bytes, so few of them need no look before.
_PLAIN_BYTES = 16 << 10
_PLAIN_COMMAS = 256
_MAX_PROBLEMS = 20
# Longer lists are refused for their length.
_MAX_LOOKED_AT = 1000
# For scrapes, checkpoints and names of hosts. On a machine with few cores as many as an event loop has by itself.
_COMMON_THREADS = min(8, (os.cpu_count() or 1) + 4)
# One at a time: the parser holds the interpreter, and other requests are served between its steps.
_parser = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bodies")


def body_limit(max_bytes: int) -> dict[str, Any]:
    """The `openapi_extra` of a route whose body may be longer than 64 KiB: LISTS_BYTES or CONTENT_BYTES."""
    return {_DECLARED: max_bytes}


def declared_limit(openapi_extra: Mapping[str, Any] | None) -> int:
    """Bytes that the body of a route may have."""
    return int((openapi_extra or {}).get(_DECLARED, SMALL_BYTES))


class Uploads:
    """Bytes of bodies that are read or worked on at this moment, in all and of each caller."""

    def __init__(self, max_body_bytes: int = CONTENT_BYTES, max_bytes: int = 256 << 20) -> None:
        self.max_body_bytes = max_body_bytes
        self._max_bytes = max_bytes
        self._in_all = 0
        self._by_caller: Counter[Hashable] = Counter()

    def of(self, caller: Hashable) -> "Upload":
        """The upload of a caller, to be held until its request is answered."""
        return Upload(self, caller)

    def check(self, caller: Hashable, size: int) -> None:
        """Refuse `size` more bytes. Raises UploadsFull, TooManyUploads."""
        if self._in_all + size > self._max_bytes:
            raise UploadsFull
        # A quarter each, so that nobody keeps out the others; the first body of a caller always fits.
        mine = self._by_caller[caller]
        if mine and mine + size > max(self._max_bytes // 4, self.max_body_bytes):
            raise TooManyUploads

    def add(self, caller: Hashable, size: int) -> None:
        """Count `size` more bytes, or fewer where it is negative."""
        self._in_all += size
        self._by_caller[caller] += size
        if not self._by_caller[caller]:
            del self._by_caller[caller]


class Upload:
    """The body of one request, counted until the end of the block."""

    __slots__ = ("_caller", "_size", "_uploads")

    def __init__(self, uploads: Uploads, caller: Hashable) -> None:
        self._uploads, self._caller, self._size = uploads, caller, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._size:
            self._uploads.add(self._caller, -self._size)

    async def read(self, request: Request, max_bytes: int) -> bytes:
        """The body. Raises HTTPException 413, ClientDisconnect, UploadsFull, TooManyUploads."""
        limit = min(max_bytes, self._uploads.max_body_bytes)
        announced = _announced_bytes(request.scope["headers"])
        _check(announced, limit)
        if announced > SMALL_BYTES:
            self._uploads.check(self._caller, announced)
        message = await request.receive()
        part: bytes = message.get("body", b"")
        # Usually the whole of it has come with the head.
        if "body" in message and not message.get("more_body", False) and len(part) <= min(SMALL_BYTES, limit):
            return part
        whole = bytearray()
        while True:
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            _check(len(whole) + len(part), limit)
            self._count(len(part))
            whole += part
            if not message.get("more_body", False):
                return bytes(whole)
            message = await request.receive()

    def _count(self, size: int) -> None:
        self._uploads.check(self._caller, size)
        self._uploads.add(self._caller, size)
        self._size += size


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise too_long(limit)


def too_long(limit: int) -> HTTPException:
    """The error for a body of more than `limit` bytes."""
    return HTTPException(413, f"The body may have {limit} bytes here")


def _announced_bytes(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """The length of the body, which the parser takes once only; 0 where it comes in chunks."""
    for name, value in headers:
        if name == b"content-length":
            return int(value) if value.isdigit() else 0
    return 0


def uploader(request: Request, principal: Principal | None) -> Hashable:
    """The holder of uploads: the worker or key, else the address."""
    if principal is not None:
        return principal.worker_id or principal.key_id
    return request.client.host if request.client else ""


def validate_plain(model: type[Model], body: bytes) -> Model | None:
    """A short body of few values as a model, by the quickest way; None for others. Raises RequestValidationError."""
    if len(body) > _PLAIN_BYTES or body.count(b",") > _PLAIN_COMMAS:
        return None
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _of_body(error) from None


async def validate(model: type[Model], body: bytes, max_bytes: int) -> Model:
    """The body as a model. Raises RequestValidationError, BodyTooComplex."""
    value = await parse(body, max_bytes)
    if len(body) <= _BLOCK_BYTES:
        return validate_value(model, value)
    return await in_parser(partial(validate_value, model, value))


async def parse(body: bytes, max_bytes: int) -> Any:
    """The body as a plain value. Raises RequestValidationError, BodyTooComplex."""
    await check_weight(body, max_bytes)
    if len(body) <= _BLOCK_BYTES:
        return _parsed(body)
    return await in_parser(partial(_parsed, body))


async def check_weight(body: bytes, max_bytes: int) -> None:
    """Raise BodyTooComplex for JSON that would cost more to parse than a body of its size should."""
    max_weight = next(weight for size, weight in sorted(_MAX_WEIGHT.items()) if max_bytes <= size)
    allowed = allowed_weight(len(body), max_weight)
    # Texts have commas and brackets too, so only a body that is too heavy with them is looked at more closely.
    if await _is_light(weights(body), allowed) or await _is_light(weights_outside_texts(body), allowed):
        return
    raise BodyTooComplex(f"a body of {len(body)} bytes has too many values here, or a number of over 400 digits")


async def _is_light(parts: Iterable[float], allowed: int) -> bool:
    in_all = 0.0
    for number, weight in enumerate(parts):
        if number:
            await asyncio.sleep(0)
        in_all += weight
        if in_all > allowed:
            return False
    return True


async def start_threads() -> None:
    """Start the threads that requests need, as the system may let us have none later. Raises RuntimeError for none."""
    await asyncio.gather(in_parser(int), computing.run(int))
    asyncio.get_running_loop().set_default_executor(_start_common_threads())


def _start_common_threads() -> ThreadPoolExecutor:
    """As many of them as the system lets us have: what comes when all are at work waits for one."""
    for count in range(_COMMON_THREADS, 1, -1):
        with suppress(RuntimeError):
            return _started(count)
    return _started(1)


def _started(threads: int) -> ThreadPoolExecutor:
    executor, may_end = ThreadPoolExecutor(threads, thread_name_prefix="common"), threading.Event()
    try:
        for _ in range(threads):
            executor.submit(may_end.wait)
    except RuntimeError:
        may_end.set()
        executor.shutdown()
        raise
    may_end.set()
    return executor


async def in_parser(work: Callable[[], T]) -> T:
    """The result of work on a large body, beside which others are served."""
    return await asyncio.get_running_loop().run_in_executor(_parser, work)


def _parsed(body: bytes) -> Any:
    try:
        return from_json(body, cache_strings="keys")
    except ValueError as error:
        if "hex escape" in str(error):
            # JSON may have half of a surrogate pair, and whoever refuses it then names the field.
            with suppress(ValueError, RecursionError):
                return json.loads(body)
        problem = {"type": "json_invalid", "loc": ("body",), "msg": "Invalid JSON", "ctx": {"error": str(error)}}
        raise RequestValidationError([problem]) from None


def validate_value(model: type[Model], value: Any) -> Model:
    """A parsed body as a model. Raises RequestValidationError."""
    # Fields of what stands in a list say nothing to somebody who was to send an object.
    if not isinstance(value, list) and have_unknown(model, [value]):
        unknown_paths = islice(_unknown_paths(model, value, ("body",)), _MAX_PROBLEMS)
        raise RequestValidationError([{"type": "extra_forbidden", "loc": path} for path in unknown_paths])
    return validate_known(model, value)


def validate_known(model: type[Model], value: Any) -> Model:
    """A parsed body without unknown keys as a model. Raises RequestValidationError."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise _of_body(error) from None


def _of_body(error: ValidationError) -> RequestValidationError:
    problems = error.errors(include_url=False, include_input=False)
    return RequestValidationError([{**problem, "loc": ("body", *problem["loc"])} for problem in problems])


def have_unknown(model: type[BaseModel], values: Collection[Any]) -> bool:
    """Whether any of these has keys that no field has: mostly none has, and to tell so costs less than their list."""
    # What stands in one field of a thousand tasks is looked at in one go, as a call for each would take thrice as long.
    fields, nested_models = _fields(model)
    objects = [value for value in values if isinstance(value, dict)]
    if max(map(len, objects), default=0) > len(fields):
        return True
    names = set[str]().union(*objects)
    if not names <= fields:
        return True
    for name, nested in nested_models:
        if name in names and have_unknown(nested, [item[name] for item in objects if name in item]):
            return True
    lists = (value for value in values if isinstance(value, list)) if len(objects) < len(values) else ()
    return any(have_unknown(model, _objects(items)) for items in lists)


def _objects(items: Iterable[Any]) -> list[Any]:
    # No field is a list of lists: to go through all of them would take half a second for 1 MB.
    return [item for item in islice(items, _MAX_LOOKED_AT) if isinstance(item, dict)]


def _unknown_paths(model: type[BaseModel], value: Any, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    """Paths of keys that no field of the model has; Pydantic would build an error for each of them."""
    if isinstance(value, list):
        for number, item in enumerate(islice(value, _MAX_LOOKED_AT)):
            if isinstance(item, dict):
                yield from _unknown_paths(model, item, (*path, number))
    elif isinstance(value, dict):
        fields, nested_models = _fields(model)
        if not value.keys() <= fields:
            yield from ((*path, name) for name in value if name not in fields)
        for name, nested in nested_models:
            if name in value:
                yield from _unknown_paths(nested, value[name], (*path, name))


@cache
def _fields(model: type[BaseModel]) -> tuple[frozenset[str], Sequence[tuple[str, type[BaseModel]]]]:
    """The names of all fields, and the models in those that have one."""
    models = {field.alias or name: _nested_model(field.annotation) for name, field in model.model_fields.items()}
    return frozenset(models), [(name, nested) for name, nested in models.items() if nested is not None]


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    """The model in a field, as such, as an alternative to None, or as the item of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((nested for part in get_args(annotation) if (nested := _nested_model(part))), None)
