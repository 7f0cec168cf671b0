"""Blocks of code in documents can be parsed, and the modules, routes and programs that they name exist."""

import ast
import configparser
import json
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

from tests.support.documents import DOCUMENTS, FENCE, ROOT, blocks, commands_of, document_name, spans

# Served, and no part of the description.
_PAGES = {("get", "/"), ("get", "/docs"), ("get", "/openapi.json")}
_METHODS = "GET|POST|PUT|PATCH|DELETE"


def _parse_shell(text: str) -> None:
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def _parse_ini(text: str) -> None:
    configparser.ConfigParser(interpolation=None).read_string(text)


def _parse_dockerfile(text: str) -> None:
    words = {line.split()[0] for line in text.splitlines() if line and not line.startswith((" ", "#"))}
    assert words <= {"FROM", "USER", "RUN", "COPY", "ENV", "WORKDIR", "ENTRYPOINT", "CMD"}


def _parse_nothing(_: str) -> None:
    """Drawings; what they name is checked by others."""


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "python": ast.parse,
    "sh": _parse_shell,
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": lambda text: list(YAML(typ="safe").load_all(text)),
    "ini": _parse_ini,
    "dockerfile": _parse_dockerfile,
    "mermaid": _parse_nothing,
    "text": _parse_nothing,
    "{toctree}": _parse_nothing,  # Sphinx itself refuses pages that are not there
    "{include}": _parse_nothing,
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_block_has_a_language_and_is_of_it(document: Path) -> None:
    for match in FENCE.finditer(document.read_text()):
        assert match[1] in _PARSERS, f"{document_name(document)}: name the language of the block {match[2][:60]!r}"
        try:
            _PARSERS[match[1]](match[2])
        except Exception as error:
            raise AssertionError(f"{document_name(document)}: no {match[1]}: {match[2][:200]!r}") from error


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_nothing_is_indented_like_code(document: Path) -> None:
    paragraphs = re.split(r"\n\n+", FENCE.sub("", document.read_text()))
    # Below an item of a list, indented text is a paragraph of the item.
    wrong = [
        text[:60]
        for previous, text in zip(["", *paragraphs], paragraphs, strict=False)
        if text.startswith("    ") and not re.match(r" *([-*]|\d+\.) ", previous)
    ]
    assert not wrong, f"{document_name(document)}: put code into fences with a language: {wrong}"


@cache
def _routes() -> frozenset[tuple[str, str]]:
    paths = json.loads((ROOT / "openapi/openapi.json").read_text())["paths"]
    return frozenset({(method, path) for path, methods in paths.items() for method in methods} | _PAGES)


def _is_served(method: str, path: str) -> bool:
    """Whether a route has this method and path; what is in braces stands for anything, as does `...`."""
    parts = path.split("/")
    return any(
        method.lower() == served and len(parts) == len(route.split("/")) and all(map(_matches, parts, route.split("/")))
        for served, route in _routes()
    )


def _matches(part: str, template: str) -> bool:
    return part == template or part in ("...", "..") or template.startswith("{")


def _calls_of_curl(text: str) -> Iterator[tuple[str, str]]:
    for block in commands_of(text):
        for line in block.replace("\\\n", " ").splitlines():
            if re.match(r" *curl ", line):
                words = shlex.split(line.partition(" | ")[0], comments=True)
                [address] = [word for word in words if re.match(r"https?://|\$CONVENER_URL/", word)]
                method = words[words.index("-X") + 1] if "-X" in words else "GET"
                body = {"-d", "--data", "--json"} & set(words)
                path = urlsplit(address.replace("$CONVENER_URL", "http://service")).path
                yield ("POST" if body and "-X" not in words else method), path


def _named_routes(text: str) -> Iterator[tuple[str, str]]:
    for span in spans(text):
        if match := re.match(rf"({_METHODS}) (/[^ ?]*)", span):
            yield match[1], match[2]
    for block in blocks(text, "text"):
        yield from re.findall(rf"\b({_METHODS}) (/[a-z][\w/{{}}.-]*)", block)


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_route_exists(document: Path) -> None:
    text = document.read_text()
    wrong = [
        f"{method} {path}"
        for method, path in (*_calls_of_curl(text), *_named_routes(text))
        if not _is_served(method, path)
    ]
    assert not wrong, f"{document_name(document)} names routes that are not served: {wrong}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=document_name)
def test_every_module_that_is_run_exists(document: Path) -> None:
    modules = {name for block in commands_of(document.read_text()) for name in re.findall(r"python -m ([\w.]+)", block)}
    wrong = [name for name in sorted(modules) if find_spec(name) is None]
    assert not wrong, f"{document_name(document)} runs modules that do not exist: {wrong}"


def test_the_checks_find_something_to_check() -> None:
    texts = [document.read_text() for document in DOCUMENTS]
    assert sum(1 for text in texts for _ in _named_routes(text)) > 50
    assert _is_served("GET", "/tasks/0198")
    assert not _is_served("DELETE", "/tasks")
    assert list(_calls_of_curl("```sh\ncurl -d '{}' http://127.0.0.1:8765/nothing\n```\n")) == [("POST", "/nothing")]
