"""Numbers of things in words, for people."""


def plural(count: int, one: str, many: str | None = None) -> str:
    """`1 worker`, `1,200 workers`; `many` where the words for more than one are not those for one and an s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
