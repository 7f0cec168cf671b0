"""Tasks from files and streams: read, checked as far as JSON goes, and cut into batches that the service takes."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from app.cli.client import Json

_MOST_TASKS = 1000
_MOST_BYTES = 8 << 20


def read_object(text: str) -> Json:
    """The JSON object that an option means: the text itself, @FILE, or - for stdin. Raises BadParameter."""
    value = read_value(text, "the payload")
    if not isinstance(value, dict):
        raise typer.BadParameter("the payload must be a JSON object, like {}")
    return value


def read_value(text: str, what: str) -> Any:
    """The JSON value that an argument means: the text itself, @FILE, or - for stdin. Raises BadParameter."""
    source = text
    if text == "-":
        source = _text(text)
    elif text.startswith("@"):
        source = _text(text[1:])
    return _json(source, what)


def read_tasks(file: str) -> list[Json]:
    """The tasks in a file: an array, {"tasks": [...]}, one object, or one object a line. Raises BadParameter."""
    text = _text(file)
    try:
        value = json.loads(text)
    except ValueError:
        value = [
            _json(line, f"line {number} of {file}") for number, line in enumerate(text.splitlines(), 1) if line.strip()
        ]
    if isinstance(value, dict):
        value = value["tasks"] if isinstance(value.get("tasks"), list) else [value]
    if not isinstance(value, list) or not all(isinstance(task, dict) for task in value):
        raise typer.BadParameter(f"{file} must hold JSON objects: an array of them, or one a line")
    return value


def batches(tasks: list[Json]) -> Iterator[bytes]:
    """Bodies of `POST /tasks/batch`, each with at most 1,000 tasks and, unless one task alone is larger, 8 MiB."""
    batch: list[bytes] = []
    size = 0
    for task in tasks:
        text = json.dumps(task, separators=(",", ":")).encode()
        if batch and (len(batch) == _MOST_TASKS or size + len(text) > _MOST_BYTES):
            yield _body(batch)
            batch, size = [], 0
        batch.append(text)
        size += len(text) + 1
    if batch:
        yield _body(batch)


def _body(batch: list[bytes]) -> bytes:
    return b'{"tasks":[' + b",".join(batch) + b"]}"


def _text(file: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {error}") from None


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise typer.BadParameter(f"{what} is not JSON: {error}") from None
