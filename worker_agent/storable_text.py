"""Makes text from handlers fit for databases, which refuse U+0000 and lone surrogates."""

from typing import Any

MESSAGE_CHARACTERS = 2000
CODE_CHARACTERS = 200


def storable(value: Any) -> Any:
    """Return the same JSON value with unstorable characters replaced."""
    if isinstance(value, str):
        return value.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {storable(key): storable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [storable(entry) for entry in value]
    return value


def storable_message(text: str) -> str:
    return str(storable(text[:MESSAGE_CHARACTERS]))


def storable_code(text: str) -> str:
    return str(storable(text[:CODE_CHARACTERS])) or "unnamed"
