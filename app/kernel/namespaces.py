"""Namespaces: supervisors of different ones share the service and see nothing of each other.

A name that clients choose, such as that of a goal, is stored with its namespace: `@lab-a/kepler`. So whatever carries
the name carries the namespace, and no statement can lose it. In the namespace `default` the stored name is the plain
one. A task without a goal is stored with the goal `@lab-a/`.
"""

import re

DEFAULT = "default"
PATTERN = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"

_STORED = re.compile(r"@([^/]+)/(.*)", re.DOTALL)


def stored_name(namespace: str, name: str | None) -> str | None:
    """The name under which a thing of this namespace is stored; no name stays no name in `default` only."""
    if namespace == DEFAULT:
        return name
    return f"@{namespace}/{name or ''}"


def split_name(stored: str | None) -> tuple[str, str | None]:
    """Namespace and name of a stored name."""
    match = _STORED.fullmatch(stored) if stored else None
    return (match[1], match[2] or None) if match else (DEFAULT, stored)


def shown_name(stored: str | None) -> str | None:
    """The name as it is shown to those who know the namespace."""
    return split_name(stored)[1]
