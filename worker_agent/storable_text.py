"""Makes text from handlers fit for databases, which refuse U+0000 and lone surrogates."""

import json
import re
from typing import Any

from worker_agent.wire import JsonObject

MESSAGE_CHARACTERS = 2000
CODE_CHARACTERS = 200
# As JSON writes it: behind an odd number of backslashes.
_NULL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")


def storable(value: Any) -> Any:
    """Return the same JSON value with unstorable characters replaced."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [storable(entry) for entry in value]
    return value


def unstorable_reason(value: JsonObject) -> str | None:
    """The reason why no database can hold a JSON object, to follow its name; None when it can."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"has the half character U+{ord(error.object[error.start]):04X}, which is no text (are these bytes?)"
    except (ValueError, RecursionError):
        return "has a number that is too large or none (infinity, NaN), or is nested too deeply"
    if b"\\u0000" in text and _NULL.search(text):
        return "has the character U+0000, which no text may have (are these bytes?)"
    return None


def storable_message(text: str) -> str:
    return str(storable(text[:MESSAGE_CHARACTERS]))


def storable_code(text: str) -> str:
    """The code as one line that steers no terminal: people and scripts read it."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in storable(text[:CODE_CHARACTERS]))
    return line.strip() or "unnamed"
