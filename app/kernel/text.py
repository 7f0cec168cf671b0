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

# By the kind of an error of validation, for those whose own words are no plain ones.
_SENTENCES = {
    "bool_parsing": "must be true or false",
    "enum": "must be {expected}",
    "extra_forbidden": "there is no such field",
    "float_parsing": "must be a number",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be {ge} or more",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "less_than_equal": "must be {le} or less",
    "literal_error": "must be {expected}",
    "missing": "is missing",
    "string_pattern_mismatch": "must have the form {pattern}",
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
    message: str = error["msg"]
    return words.format_map(error.get("ctx") or {}) if words else message.removeprefix("Value error, ")
