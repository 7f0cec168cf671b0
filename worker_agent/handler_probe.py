"""Imports handlers in a separate process and prints their keys and problems as JSON on stdout."""

import json
import os
import sys
from typing import Any

from worker_agent.handler_loading import load_handler
from worker_agent.wire import AGENT_TYPES


def main() -> None:
    request = json.loads(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout carries the answer, and modules may print when imported
    problems: list[str] = []
    for target in request["functions"]:
        _load_target(target, problems)
    tables = {target: _table_keys(target, problems) for target in request["tables"]}
    json.dump({"tables": tables, "problems": problems}, answer)
    answer.flush()
    os._exit(0)


def _load_target(target: str, problems: list[str]) -> Any:
    try:
        value = load_handler(target)
    except BaseException as error:
        problems.append(f"{target}: {type(error).__name__}: {error}")
        return None
    if not (callable(value) or isinstance(value, dict)):
        problems.append(f"{target} is {type(value).__name__}, neither a function nor a table of functions")
    return value


def _table_keys(target: str, problems: list[str]) -> list[str]:
    table = _load_target(target, problems)
    if not isinstance(table, dict):
        return []
    problems += [f"{target}[{key!r}] is no agent type" for key in table if key not in AGENT_TYPES]
    problems += [f"{target}[{key!r}] is not a function" for key, value in table.items() if not callable(value)]
    return [str(key) for key in table]


if __name__ == "__main__":
    main()
