"""Finds the handler of each agent type and checks that it can be loaded."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

from worker_agent.handler_environment import inherited
from worker_agent.wire import AGENT_TYPES

ENTRY_POINT_GROUP = "convener.handlers"
_PROBE_SECONDS = 120


class UnusableHandler(ValueError):
    """A handler is malformed or cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """Either a python function, `target` (and `key`, when the target is a table), or a program, `command`."""

    target: str = ""
    key: str | None = None
    command: tuple[str, ...] = ()


def parse_handler(text: str) -> tuple[str, Handler]:
    """Parse `TYPE=module:function` or `TYPE=command:'program args'`; raises UnusableHandler."""
    agent_type, equals, target = text.partition("=")
    if agent_type not in AGENT_TYPES or not equals:
        raise UnusableHandler(f"{text!r}: write TYPE=module:function, TYPE being one of {', '.join(AGENT_TYPES)}")
    kind, colon, rest = target.partition(":")
    if not (kind and colon and rest):
        raise UnusableHandler(f"{text!r}: write {agent_type}=module:function or {agent_type}=command:'program args'")
    if kind == "command":
        return agent_type, Handler(command=_split(rest))
    return agent_type, Handler(target=target)


def installed_handlers() -> dict[str, Handler]:
    """Handlers that installed packages declare in the entry point group `convener.handlers`, by agent type."""
    entries = entry_points(group=ENTRY_POINT_GROUP)
    return {entry.name: Handler(target=entry.value) for entry in entries if entry.name in AGENT_TYPES}


def collect_handlers(
    explicit: dict[str, Handler], modules: Iterable[str], passed: Sequence[str] = ()
) -> dict[str, Handler]:
    """Collect all handlers: explicit ones precede a module's, which precede installed ones. Raises UnusableHandler.

    `passed` are patterns of further variables that handlers inherit.
    """
    tables = [f"{module}:HANDLERS" for module in modules]
    functions = [handler.target for handler in explicit.values() if handler.target]
    keys = _probe_targets(tables, functions, passed)
    handlers = installed_handlers()
    for table in tables:
        handlers |= {key: Handler(target=table, key=key) for key in keys[table]}
    return handlers | explicit


def _split(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UnusableHandler(f"command {command!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise UnusableHandler(f"command {command!r}: no such program")
    return words


def _probe_targets(tables: list[str], functions: list[str], passed: Sequence[str]) -> dict[str, list[str]]:
    if not (tables or functions):
        return {}
    request = json.dumps({"tables": tables, "functions": functions})
    try:
        probe = subprocess.run(
            [sys.executable, "-m", "worker_agent.handler_probe", request],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            timeout=_PROBE_SECONDS,
            check=True,
            env=inherited(passed),
        )
        answer: dict[str, Any] = json.loads(probe.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise UnusableHandler(f"the handlers could not be imported: {error}") from error
    if answer["problems"]:
        raise UnusableHandler("; ".join(answer["problems"]))
    return {table: [str(key) for key in keys] for table, keys in answer["tables"].items()}
