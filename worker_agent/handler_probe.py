"""Runs under the confinement of handlers: tries to break it, then imports the handlers and prints what they offer.

What the attempts came to goes to the message pipe before any foreign code runs, so that none can forge it.
"""

import json
import os
import traceback
from typing import Any

from worker_agent.handler_loading import load_handler
from worker_agent.isolation_check import attempts
from worker_agent.wire import AGENT_TYPES, JsonObject


def main(spec: JsonObject) -> None:
    os.write(spec["fd"], json.dumps({"attempts": attempts(spec)}).encode() + b"\n")
    os.close(spec["fd"])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout carries the answer, and modules may print when imported
    problems: list[str] = []
    for target in spec["functions"]:
        _load_target(target, problems)
    tables = {target: _table_keys(target, problems) for target in spec["tables"]}
    json.dump({"tables": tables, "problems": problems}, answer)
    answer.flush()
    os._exit(0)


def _load_target(target: str, problems: list[str]) -> Any:
    try:
        value = load_handler(target)
    except BaseException as error:
        problems.append(f"{target}: {_place(error)}{type(error).__name__}: {error}")
        return None
    if not (callable(value) or isinstance(value, dict)):
        problems.append(f"{target} is {type(value).__name__}, neither a function nor a table of functions")
    return value


def _place(error: BaseException) -> str:
    """The file and line of foreign code at which it failed; empty where only our own and Python's were at work."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}, line {error.lineno}: "
    frames = traceback.extract_tb(error.__traceback__)
    own = os.path.dirname(__file__)
    foreign = [f for f in frames if not f.filename.startswith("<") and os.path.dirname(f.filename) != own]
    return f"{foreign[-1].filename}, line {foreign[-1].lineno}: " if foreign else ""


def _table_keys(target: str, problems: list[str]) -> list[str]:
    table = _load_target(target, problems)
    if not isinstance(table, dict):
        return []
    problems += [f"{target}[{key!r}] is no agent type" for key in table if key not in AGENT_TYPES]
    problems += [f"{target}[{key!r}] is not a function" for key, value in table.items() if not callable(value)]
    return [str(key) for key in table]
