"""Imports handlers in a process of its own and tells, as JSON on stdout, what is there and what is wrong with it."""

import json
import os
import sys
from typing import Any

from worker_agent.loading import load
from worker_agent.wire import AGENT_TYPES


def main() -> None:
    order = json.loads(sys.argv[1])
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the modules print while they are imported is not our answer
    problems: list[str] = []
    for target in order["functions"]:
        _try(target, problems)
    tables = {target: _keys(target, problems) for target in order["tables"]}
    json.dump({"tables": tables, "problems": problems}, answer)
    answer.flush()
    os._exit(0)


def _try(target: str, problems: list[str]) -> Any:
    try:
        found = load(target)
    except BaseException as error:
        problems.append(f"{target}: {type(error).__name__}: {error}")
        return None
    if not (callable(found) or isinstance(found, dict)):
        problems.append(f"{target} is {type(found).__name__}, neither a function nor a table of functions")
    return found


def _keys(target: str, problems: list[str]) -> list[str]:
    table = _try(target, problems)
    if not isinstance(table, dict):
        return []
    problems += [f"{target}[{key!r}] is no agent type" for key in table if key not in AGENT_TYPES]
    problems += [f"{target}[{key!r}] is not a function" for key, value in table.items() if not callable(value)]
    return [str(key) for key in table]


if __name__ == "__main__":
    main()
