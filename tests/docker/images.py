"""Reads docker/Dockerfile: its stages, and what a container of each would be."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCKERFILE = REPOSITORY / "docker" / "Dockerfile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One FROM and what follows it; instructions are pairs of keyword and the rest of the line."""

    name: str
    base: str
    instructions: list[tuple[str, str]]

    def arguments(self, keyword: str) -> list[str]:
        """What each instruction of that kind says, in order."""
        return [rest for found, rest in self.instructions if found == keyword]


def stages() -> dict[str, Stage]:
    """All stages by name, in order."""
    found: dict[str, Stage] = {}
    instructions = _instructions(DOCKERFILE.read_text())
    # What stands before the first stage are arguments of all of them.
    for keyword, rest in itertools.dropwhile(lambda instruction: instruction[0] == "ARG", instructions):
        if keyword == "FROM":
            base, _, name = rest.partition(" AS ")
            stage = found[name] = Stage(name=name, base=base, instructions=[])
        else:
            stage.instructions.append((keyword, rest))
    return found


def effective(target: str, keyword: str) -> str:
    """What the last instruction of that kind says, in the stage or in those that it is built on."""
    known = stages()
    stage = known[target]
    while not stage.arguments(keyword):
        stage = known[stage.base]
    return stage.arguments(keyword)[-1]


def environment(target: str) -> dict[str, str]:
    """The variables that the stage, and those that it is built on, set."""
    known = stages()
    stage = known[target]
    inherited = environment(stage.base) if stage.base in known else {}
    pairs = [word.partition("=") for line in stage.arguments("ENV") for word in line.split()]
    return inherited | {name: value for name, _, value in pairs}


def exec_form(text: str) -> list[str]:
    """The words of a command that no shell takes apart. Raises ValueError when it is written for a shell."""
    words = json.loads(text)
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ValueError(f"not in exec form: {text}")
    return words


def copied() -> set[str]:
    """What is taken from the repository."""
    lines = [line.split() for stage in stages().values() for line in stage.arguments("COPY")]
    return {source.rstrip("/") for words in lines if not words[0].startswith("--from") for source in words[:-1]}


def _instructions(text: str) -> list[tuple[str, str]]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n", "", "\n".join(lines))
    return [(keyword, rest.strip()) for keyword, _, rest in (line.partition(" ") for line in joined.splitlines())]
