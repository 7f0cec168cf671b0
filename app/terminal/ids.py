"""Ids of tasks and workers on the command line: whole, or their first digits where only one has these."""

import re
from collections.abc import Sequence
from typing import Annotated
from uuid import UUID

import typer

from app.terminal.client import Client
from app.terminal.failures import ExitCode, Failure

# What can name so many at once that it is a slip.
_LEAST_DIGITS = 4
_DIGITS = 32


def id_or_prefix(value: str) -> str:
    """An id in its usual form, or the digits of the beginning of one. Raises BadParameter."""
    digits = value.lower().replace("-", "")
    if not re.fullmatch(rf"[0-9a-f]{{{_LEAST_DIGITS},{_DIGITS}}}", digits):
        raise typer.BadParameter(f"{value} is neither an id nor the first {_LEAST_DIGITS} or more digits of one")
    return str(UUID(digits)) if len(digits) == _DIGITS else digits


TaskIdArgument = Annotated[
    str, typer.Argument(metavar="ID", parser=id_or_prefix, help="id of a task, or its first digits")
]

TaskIds = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID...]", parser=id_or_prefix, help="ids of tasks, or their first digits"),
]


def whole_ids(client: Client, things: str, texts: Sequence[str]) -> list[str]:
    """The ids of `tasks` or `workers` that are given whole or by their first digits. Raises Failure.

    All are resolved before the caller does anything.
    """
    return [text if len(text) > _DIGITS else _whole_id(client, things, text) for text in texts]


def whole_id(client: Client, things: str, text: str) -> str:
    """The id of one of them. Raises Failure."""
    (only,) = whole_ids(client, things, [text])
    return only


def _whole_id(client: Client, things: str, prefix: str) -> str:
    answer = client.get(f"/{things}/ids/{prefix}")
    ids = list(map(str, answer["ids"]))
    if len(ids) == 1 and not answer["more"]:
        return ids[0]
    if not ids and not answer["more"]:
        hint = f"`convener {things} ls` lists those that there are"
        raise Failure(f"no id of {things} begins with {prefix}", ExitCode.NOT_FOUND, hint=hint)
    details = [*ids, *(["and others"] if answer["more"] else [])]
    hint = "give more digits of the one that is meant"
    raise Failure(f"several ids of {things} begin with {prefix}", ExitCode.USAGE, details=details, hint=hint)
