"""Loads the function that a target such as `package.module:function` names."""

from __future__ import annotations

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def load_handler(target: str, key: str | None = None) -> Any:
    """Load the object that `target` names, or its entry under `key`. Raises any error, as foreign code is imported."""
    module, colon, path = target.partition(":")
    if not (module and colon and path):
        raise ValueError(f"a target is written module:function, not {target!r}")
    __import__(module)
    value: Any = sys.modules[module]
    for name in path.split("."):
        value = getattr(value, name)
    return value if key is None else value[key]
