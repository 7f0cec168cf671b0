"""Finds the handler of each agent type and checks that it can be loaded."""

import os
import shlex
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points

from worker_agent.confinement import Confinement
from worker_agent.probing import Probe, UnusableHandler, probe
from worker_agent.wire import AGENT_TYPES

ENTRY_POINT_GROUP = "convener.handlers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """Either a python function, `target` (and `key`, when the target is a table), or a program, `command`."""

    target: str = ""
    key: str | None = None
    command: tuple[str, ...] = ()

    def files(self) -> list[str]:
        """Files that the command names: the program, and scripts among its arguments."""
        program = shutil.which(self.command[0]) if self.command else None
        return [*filter(None, [program]), *(word for word in self.command[1:] if os.path.isfile(word))]


def parse_handler(text: str) -> tuple[str, Handler]:
    """Parse `TYPE=module:function` or `TYPE=command:'program args'`; raises UnusableHandler."""
    agent_type, equals, target = text.partition("=")
    if agent_type not in AGENT_TYPES or not equals:
        forms = "TYPE=module:function or TYPE=command:'program args'"
        raise UnusableHandler(f"{text!r}: write {forms}, TYPE being one of {', '.join(AGENT_TYPES)}")
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
    explicit: dict[str, Handler], modules: Iterable[str], rules: Confinement
) -> tuple[dict[str, Handler], Probe]:
    """Collect all handlers: explicit ones precede a module's, which precede installed ones. Raises UnusableHandler.

    They are imported under the strongest form of the rules that works here, as the probe tells.
    """
    tables = [f"{module}:HANDLERS" for module in modules]
    outcome = probe(rules, tables, [handler.target for handler in explicit.values() if handler.target])
    handlers = installed_handlers()
    for table in tables:
        handlers |= {key: Handler(target=table, key=key) for key in outcome.tables[table]}
    return handlers | explicit, outcome


def _split(command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UnusableHandler(f"command {command!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise UnusableHandler(f"command {command!r}: no such program")
    return words
