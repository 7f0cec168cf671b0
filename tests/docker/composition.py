"""Reads docker/compose.yaml as Compose does: variables filled in, merges done, a key given twice refused."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DIRECTORY = Path(__file__).parents[2] / "docker"
COMPOSE = DIRECTORY / "compose.yaml"
# Tags by the name of the variable that holds the pinned image.
TAGS = dict(line.split() for line in (DIRECTORY / "images.txt").read_text().splitlines())
DIGEST = f"sha256:{'0123456789abcdef' * 4}"
# What docker/.env has when it is complete.
ENVIRONMENT = {name: f"{tag}@{DIGEST}" for name, tag in TAGS.items()}
# ${NAME}, ${NAME:-default} and ${NAME:?message}, of which Compose understands more.
_VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?::(?P<kind>[-?])(?P<text>[^}]*))?\}")


class VariableMissing(Exception):
    """A variable has no value, and the file says that it must have one."""


def load(environment: Mapping[str, str]) -> dict[str, Any]:
    """The whole file. Raises VariableMissing with the file's own message."""

    def fill(match: re.Match[str]) -> str:
        value = environment.get(match["name"], "")
        if not value and match["kind"] == "?":
            raise VariableMissing(match["text"])
        return value or match["text"] or ""

    def filled(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: filled(value) for key, value in node.items()}
        if isinstance(node, list):
            return [filled(value) for value in node]
        return _VARIABLE.sub(fill, node) if isinstance(node, str) else node

    document: dict[str, Any] = filled(YAML(typ="safe", pure=True).load(COMPOSE))
    return document


def services() -> dict[str, dict[str, Any]]:
    """The services by name, with pinned images and otherwise the defaults."""
    found: dict[str, dict[str, Any]] = load(ENVIRONMENT)["services"]
    return found
