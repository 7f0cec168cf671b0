"""The project's documents, and the parts of one: prose, code between back-ticks, and blocks by language."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        *(path for folder in ("docs", "docker", "benchmarks", "examples") for path in ROOT.glob(f"{folder}/**/*.md")),
    ]
)
FENCE = re.compile(r"^```(\{?[\w-]*\}?)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")


def document_name(path: Path) -> str:
    """Path below the root."""
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """All but the blocks."""
    return FENCE.sub("", text)


def spans(text: str) -> Iterator[str]:
    """Code between back-ticks, each in one line."""
    for match in _SPAN.finditer(prose(text)):
        yield " ".join(match[1].split())


def blocks(text: str, language: str) -> Iterator[str]:
    """Blocks of one language."""
    for match in FENCE.finditer(text):
        if match[1] == language:
            yield match[2]


def commands_of(text: str) -> Iterator[str]:
    """Blocks that hold commands, among them drawings that explain some."""
    yield from blocks(text, "sh")
    yield from blocks(text, "text")
