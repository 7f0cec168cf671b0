"""Names and sentences that a stranger understands: words that say nothing are refused, and so are riddles."""

import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "app").rglob("*.py"), *(ROOT / "worker_agent").rglob("*.py")])
# Each could be anything: say what was found, known or wanted.
_EMPTY_WORDS = frozenset({"found", "known", "seen", "told", "said", "given", "most", "before", "wanted"})
_RIDDLES = ("What", "Who", "Whom", "Whose", "How")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _published() -> frozenset[str]:
    """The sentences of the API's description: they are part of its contract and stay as they are."""
    sentences: set[str] = set()

    def collect(value: object) -> None:
        if isinstance(value, dict):
            for key, part in value.items():
                if key == "description" and isinstance(part, str):
                    sentences.add(" ".join(part.split()))
                collect(part)
        elif isinstance(value, list):
            for part in value:
                collect(part)

    collect(json.loads((ROOT / "openapi" / "openapi.json").read_text()))
    return frozenset(sentences)


PUBLISHED = _published()


def _variables(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and name of every variable, parameter and attribute that is assigned; fields of classes mirror the wire."""
    fields = {
        id(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, (ast.Assign, ast.AnnAssign))
        for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
    }
    for node in ast.walk(tree):
        match node:
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) if id(node) not in fields:
                yield node.lineno, name
            case ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield node.lineno, name
            case _:
                pass


def test_variables_say_what_they_hold() -> None:
    empty = [
        f"{_name(path)}:{line}: {name}"
        for path in FILES
        for line, name in _variables(ast.parse(path.read_text()))
        if name.strip("_") in _EMPTY_WORDS
    ]
    assert not empty, f"these names say nothing ({empty}); name the thing: `rows`, `waiting_tasks`"


def test_docstrings_are_sentences() -> None:
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    riddles = [
        f"{_name(path)}: {text.splitlines()[0]}"
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, documented) and (text := ast.get_docstring(node))
        if text.split(maxsplit=1)[0] in _RIDDLES and " ".join(text.split()) not in PUBLISHED
    ]
    assert not riddles, f"say in a plain sentence what the thing is or does, not {riddles}"


def test_no_two_classes_of_a_feature_share_a_name() -> None:
    places: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path in FILES:
        feature = _name(path).split("/")[1] if path.is_relative_to(ROOT / "app") else "worker_agent"
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[feature, node.name].append(_name(path))
    shared = {name: paths for (_, name), paths in places.items() if len(paths) > 1}
    assert not shared, f"a reader of {shared} cannot tell which is meant"
