"""Differences between two JSON documents, value by value."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One value that differs."""

    path: str
    before: Any
    after: Any


def changes(old_document: Any, new_document: Any) -> list[Change]:
    """Every single value that differs between two JSON documents, by its path; None stands for a missing value."""
    old, new = dict(_leaves(old_document)), dict(_leaves(new_document))
    return [
        Change(path=path, before=old.get(path), after=new.get(path))
        for path in dict.fromkeys([*old, *new])
        if old.get(path) != new.get(path)
    ]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):  # a list counts as one value
        yield path, value
        return
    for name, part in value.items():
        yield from _leaves(part, f"{path}.{name}" if path else name)
