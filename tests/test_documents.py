"""Documents name real things: paths, names in files, links, targets of make, commands, and tests."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from app.cli import commands
from docs import generate
from tests.support.command_line import parse, words_of
from tests.support.documents import DOCUMENTS, ROOT, blocks, commands_of, document_name, prose, spans
from worker_agent import options as worker_options

# What benchmarks make is there after some of them, and nowhere in a clean clone.
_NOT_OURS = (".bench", ".git", ".venv")
_FOLDERS = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in _NOT_OURS}
_FILES = {path.name for path in ROOT.iterdir() if path.is_file()}
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_CALL = re.compile(r"\b([A-Za-z_]+)\.(\w+)\(\)")


def _paths(text: str) -> Iterator[str]:
    """Paths below the root, and those with `::name` for something that the file defines."""
    for span in spans(text):
        first = re.split(r"[/:]", span, maxsplit=1)[0]
        if " " not in span and (span in _FILES or (first in _FOLDERS and "/" in span)):
            yield span


@cache
def _defined(path: Path) -> frozenset[str]:
    """Names that a file defines, also inside classes (`Broker.lease` as well as `lease`)."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for name in _members(node)}
        if isinstance(node, ast.Module):
            names |= _members(node)
    return frozenset(names)


def _members(node: ast.Module | ast.ClassDef) -> set[str]:
    names = set()
    for part in node.body:
        if isinstance(part, ast.Assign):
            names |= {target.id for target in part.targets if isinstance(target, ast.Name)}
        elif isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name):
            names.add(part.target.id)
        elif isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(part.name)
    return names


def _wrong_path(span: str) -> str | None:
    path, _, name = span.partition("::")
    # A placeholder such as <feature> stands for any name; there must be one for which the path is right.
    found = list(ROOT.glob(re.sub(r"<\w+>", "*", path).rstrip("/")))
    if not found:
        return f"{path} does not exist"
    if name and not any(name.removesuffix("()") in _defined(file) for file in found):
        return f"{path} defines no {name}"
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_path_exists_and_defines_what_is_named(document: Path) -> None:
    wrong = [problem for span in _paths(document.read_text()) if (problem := _wrong_path(span))]
    assert not wrong, f"{document_name(document)}: " + "; ".join(wrong)


def _slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-")


def _anchors(document: Path) -> set[str]:
    return {_slug(match[1]) for match in re.finditer(r"^#+ (.+)$", prose(document.read_text()), re.MULTILINE)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_relative_link_resolves(document: Path) -> None:
    wrong = []
    for link in _LINK.findall(prose(document.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            wrong.append(link)
    assert not wrong, f"{document_name(document)} links to {wrong}"


def _make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def _commands_of_make(text: str) -> Iterator[str]:
    # What follows a # is a comment.
    lines = [line for block in commands_of(text) for line in re.findall(r"^make ([^#\n]+)", block, re.MULTILINE)]
    words = [span.removeprefix("make ") for span in spans(text) if re.fullmatch(r"make( [a-z][\w-]*)+", span)]
    for targets in [*lines, *words]:
        yield from targets.split()


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_target_of_make_exists(document: Path) -> None:
    wrong = set(_commands_of_make(document.read_text())) - _make_targets()
    assert not wrong, f"{document_name(document)} names targets that the Makefile lacks: {wrong}"


_ID = "01a2b3c4"
_HELP = ("--help", "-h", "--version")


@cache
def _convener() -> Any:
    return typer.main.get_command(commands.build())


def _calls_of_convener(text: str) -> Iterator[str]:
    for block in commands_of(text):
        yield from re.findall(r"^(?:export )?(?:[A-Z_]+=\S* )*(?:\S*/)?convener ([^#\n]+)", block, re.MULTILINE)
    for span in spans(text):
        if match := re.match(r"(?:[A-Z_]+=\S* )*convener (.+)", span):
            yield match[1]


def _subcommand(command: Any, word: str) -> Any:
    """Also those that are only loaded when they are named."""
    return command.get_command(typer.Context(command), word) if hasattr(command, "get_command") else None


def _wrong_command(call: str) -> str | None:
    """`tasks ls --agent x` is a command; of `llm models ls | get | set` each of the words after a bar is one too."""
    first, *alternatives = [part.split() for part in call.partition(" && ")[0].split(" | ")]
    if {"...", "X"} & set(first):
        first = first[: min(first.index(word) for word in ("...", "X") if word in first)]
    group = command = _convener()
    with_value = {name for parameter in command.params if not parameter.is_flag for name in parameter.opts}
    for former, word in zip(["", *first], first, strict=False):
        if word.startswith("-") or word == "..." or former in with_value:
            continue  # an option, or the value of one that precedes the command
        if not hasattr(command, "get_command"):
            break
        group, command = command, _subcommand(command, word)
        if command is None:
            return f"`convener {call}`: there is no {word}"
    wrong = [words[0] for words in alternatives if _subcommand(group, words[0]) is None]
    wrong += [] if alternatives else [word for word in first if _is_unknown(word, command)]
    return f"`convener {call}`: there is no {wrong}" if wrong else None


def _is_unknown(word: str, command: Any) -> bool:
    """Whether it looks like an option, and neither the command nor the whole program takes it."""
    if not re.fullmatch(r"--?[a-z][\w-]*(=.*)?", word):
        return False
    if command.name == "worker":  # it takes the options of the worker itself
        return word not in worker_options._parser()._option_string_actions
    parameters = [*command.params, *_convener().params]
    options = {option for each in parameters for option in (*each.opts, *each.secondary_opts)}
    return word.partition("=")[0] not in options.union(_HELP)


def _texts(file: Path) -> Iterator[str]:
    """Texts of a program, with X for what is put into them; of other files all lines."""
    if file.suffix != ".py":
        yield file.read_text()
        return
    tree = ast.parse(file.read_text())
    inner = {part for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in inner:
            yield node.value


def _calls_in_text(text: str) -> Iterator[str]:
    """Commands between back-ticks, and lines that are one, as examples are; what follows a bar is another's."""
    variables = r"(?:[A-Z_]+=\S* )*"
    for match in re.finditer(rf"`{variables}convener ([^`]+)`", text):
        yield " ".join(match[1].split())
    for match in re.finditer(rf"^ *{variables}convener ([a-z][^\n`]*)$", text, re.MULTILINE):
        yield re.split(r" [|>#] ", match[1].removesuffix(":"))[0]


_PROGRAMS = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("worker_agent/**/*.py"), *ROOT.glob("docker/*.y*ml")])


def test_every_command_that_a_message_or_an_alert_names_exists() -> None:
    calls = {
        (document_name(file), call) for file in _PROGRAMS for text in _texts(file) for call in _calls_in_text(text)
    }
    assert len(calls) > 150
    wrong = [f"{file}: {problem}" for file, call in sorted(calls) if (problem := _wrong_command(call))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_command_exists(document: Path) -> None:
    wrong = [problem for call in _calls_of_convener(document.read_text()) if (problem := _wrong_command(call))]
    assert not wrong, f"{document_name(document)}: " + "; ".join(wrong)


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_commands_of_blocks_are_accepted_as_they_are_printed(document: Path) -> None:
    """One gave the agent of a task without its option, and who copied it was refused."""
    for block in blocks(document.read_text(), "sh"):
        # Of Kubernetes it is the name of a namespace too.
        for line in block.replace("\\\n", " ").replace("kubectl -n convener ", "kubectl ").splitlines():
            if "convener " in line and (words := words_of(line)):
                parse(shlex.join(["convener", *(_ID if word == "ID" else word for word in words)]))


@cache
def _callables() -> frozenset[str]:
    """`module.function` and `Class.method` of the service and the worker, and functions of tests."""
    names: set[str] = set()
    for folder in ("app", "worker_agent"):
        for path in (ROOT / folder).rglob("*.py"):
            defined = _defined(path)
            names |= {f"{path.stem}.{name}" for name in defined} | defined
    return frozenset(names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_diagrams_name_real_functions(document: Path) -> None:
    drawn = "".join(blocks(document.read_text(), "mermaid"))
    calls = {".".join(pair) for pair in _CALL.findall(drawn)}
    wrong = calls - _callables()
    assert not wrong, f"{document_name(document)} draws calls of functions that do not exist: {sorted(wrong)}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_diagrams_hold_nothing_that_ends_a_line_for_mermaid(document: Path) -> None:
    lines = [line for block in blocks(document.read_text(), "mermaid") for line in block.splitlines()]
    assert [line for line in lines if ";" in line or "#" in line] == []


def test_decisions_are_short_and_of_one_form() -> None:
    records = sorted(ROOT.glob("docs/decisions/[0-9]*.md"))
    for place, record in enumerate(records, start=1):
        lines = record.read_text().splitlines()
        assert record.name.startswith(f"{place:04d}-"), f"{document_name(record)}: records are numbered without gaps"
        assert 15 <= len(lines) <= 40, f"{document_name(record)} has {len(lines)} lines; a record has 15 to 40"
        headings = [line for line in lines if line.startswith("## ")]
        assert headings == ["## Context", "## Decision", "## Consequence"], document_name(record)


@pytest.mark.parametrize("page", generate.PAGES)
def test_pages_of_reference_are_as_the_code_is(page: str) -> None:
    text = generate.path_of(page).read_text(encoding="utf-8")
    assert text == generate.text_of(page), f"{document_name(generate.path_of(page))} is stale: run `make reference`"


def test_every_setting_says_what_it_is() -> None:
    assert [line for line in generate.settings_page() if line.endswith("|  |") and "CONVENER_" in line] == []


def test_the_checks_find_something_to_check() -> None:
    texts = [document.read_text() for document in DOCUMENTS]
    assert sum(1 for text in texts for _ in _paths(text)) > 50
    assert sum(1 for text in texts for _ in _calls_of_convener(text)) > 20
    assert _wrong_path("app/queue/rules/tasks.py::nothing_of_the_kind")
    assert _wrong_path("app/<feature>/rules/") is None
    assert _wrong_command("tasks lease")
    assert _wrong_command("llm models ls | unset")
    assert _wrong_command("llm models ls | get") is None
    assert _wrong_command("--profile lab status") is None
    assert _wrong_command("--profile lab statuses")
    assert _wrong_command("up --mode production") is None
