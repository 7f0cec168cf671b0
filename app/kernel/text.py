"""Text for people: numbers of things in words, and text of strangers in one line."""


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """`1 worker`, `1,200 workers`; `plural_noun` for nouns that do not just add an s."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"


def printable(text: str) -> str:
    """The text with line ends, control characters and marks of direction written as escapes."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# Shown where a reason is looked for and none was given; the audit log keeps none.
NO_REASON = "no reason was given"
