"""Numbers of things in words, for people."""


def plural(count: int, noun: str, plural_noun: str | None = None) -> str:
    """`1 worker`, `1,200 workers`; `plural_noun` for nouns that do not just add an s."""
    return f"{count:,} {noun if count == 1 else plural_noun or noun + 's'}"
