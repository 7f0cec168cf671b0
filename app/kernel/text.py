"""Text for people: numbers of things in words, moments, and text of strangers in one line."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

# Shown where a reason is looked for and none was given; the audit log keeps none.
NO_REASON = "no reason was given"
# Of text of strangers.
MAX_TEXT = 300
# Of what people say in a sentence or a few, such as a reason.
MAX_SENTENCE = 2000
A_MOMENT = "a time like 2026-11-24T12:00:00Z"

# By the kind of an error of validation, for those whose own words are no plain ones.
_SENTENCES = {
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "dict_type": "must be a JSON object",
    "enum": "must be {expected}",
    "extra_forbidden": "there is no such field",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be {le} or less",
    "list_type": "must be a list",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "string_pattern_mismatch": "must have the form {pattern}",
    "string_too_long": "must have at most {max_length} characters",
    "string_too_short": "must have at least {min_length} characters",
    "string_type": "must be text",
    "timezone_aware": f"must be {A_MOMENT}",
    "too_long": "must not be longer than {max_length}",
    "too_short": "must not be shorter than {min_length}",
    "uuid_parsing": "must be a UUID",
    "uuid_type": "must be a UUID",
}


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """`1 worker`, `1,200 workers`; `plural_noun` for nouns that do not just add an s."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def moment_text(moment: datetime | None, now: datetime) -> str:
    """The time of day, with the date where it is not today's."""
    if moment is None:
        return "an unknown time"
    return f"{moment:%H:%M:%S} UTC" if moment.date() == now.date() else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def printable(text: str) -> str:
    """The text with line ends, control characters and marks of direction written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def one_line(text: object) -> str:
    """Text of strangers in one line of bounded length."""
    return printable(" ".join(str(text or "").split()))[:MAX_TEXT]


def failure_text(error: Mapping[str, Any] | None) -> str:
    """The message of a task's error, else its code, in one line of bounded length."""
    error = error or {}
    return printable(str(error.get("message") or error.get("code") or NO_REASON))[:MAX_TEXT]


def plain_message(error: Mapping[str, Any]) -> str:
    """The message of an error of Pydantic in words that need no knowledge of it."""
    words = _SENTENCES.get(error["type"])
    if words is None:
        return str(error["msg"]).removeprefix("Value error, ")
    bounds = (error.get("ctx") or {}).items()
    return words.format_map({name: int(x) if isinstance(x, float) and x.is_integer() else x for name, x in bounds})
