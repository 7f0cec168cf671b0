"""JSON of callers, checked once and kept as text, because the service never interprets it."""

import json
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticSerializationError, to_json
from starlette.responses import Response

from app.kernel.errors import PayloadTooLarge


def object_text(value: Any) -> str | None:
    """The text of a JSON object. Raises ValueError for what JSON or PostgreSQL cannot hold."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")
    try:
        text = to_json(value, inf_nan_mode="constants").decode()
    except (PydanticSerializationError, UnicodeError, RecursionError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    if "NaN" in text or "Infinity" in text:
        # Raises ValueError where these are numbers and not just words in a text.
        json.dumps(value, allow_nan=False)
    # The escape in the text may also be a backslash followed by u0000, so the values decide.
    if "\\u0000" in text and _has_nul([value]):
        raise ValueError("text must not contain the character U+0000")
    return text


# Said in full: where a schema is silent about it, generators of TypeScript make an object that holds nothing.
ANY_OBJECT: dict[str, Any] = {"type": "object", "additionalProperties": True}
JsonObject = Annotated[str, BeforeValidator(object_text), WithJsonSchema(ANY_OBJECT)]
OptionalJsonObject = Annotated[
    str | None, BeforeValidator(object_text), WithJsonSchema({"anyOf": [ANY_OBJECT, {"type": "null"}]})
]


def check_size(text: str | None, max_bytes: int, name: str) -> None:
    """Raise PayloadTooLarge when the text is longer than `max_bytes`."""
    # A character has at most 4 bytes, so most texts need not be encoded to be measured.
    if text is not None and len(text) * 4 > max_bytes and (size := len(text.encode())) > max_bytes:
        raise PayloadTooLarge(f"the {name} has {size} bytes; CONVENER_MAX_PAYLOAD_BYTES allows {max_bytes} here")


def join(fields: dict[str, Any], texts: dict[str, str | None]) -> str:
    """The text of a JSON object of plain fields and of values that are JSON text already."""
    # Spliced as text, so that payloads are not parsed and written again on their way out.
    head = to_json(fields).decode()
    tail = "".join(f',"{name}":{text if text is not None else "null"}' for name, text in texts.items())
    return f"{head[:-1]}{tail}}}"


class JsonAnswer(Response):
    """A response of JSON, whose headers are made when somebody asks for them: of most nobody does."""

    media_type = "application/json"

    def __init__(self, body: bytes | str, status: int = 200) -> None:
        self.status_code, self.background = status, None
        self.body = body if isinstance(body, bytes) else body.encode()

    def __getattr__(self, name: str) -> Any:
        if name != "raw_headers":
            raise AttributeError(name)
        self.init_headers()
        return self.raw_headers

    @property
    def is_usual(self) -> bool:
        """Whether it is a success like all others, with no header of its own."""
        return self.status_code == 200 and "raw_headers" not in self.__dict__


def _has_nul(values: Iterable[Any]) -> bool:
    for value in values:
        if isinstance(value, str) and "\x00" in value:
            return True
        if isinstance(value, dict) and (_has_nul(value) or _has_nul(value.values())):
            return True
        if isinstance(value, list) and _has_nul(value):
            return True
    return False
