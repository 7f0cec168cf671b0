"""What import contracts cannot see: where queries are made, who commits, which clock decides."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
APP = ROOT / "app"
_CONSTRUCTORS = {"text", "select", "insert", "update", "delete", "table", "column"}
_LONGEST_FILE = 400
# Where a local clock is right: making ids, telling people the time, measuring how long something took, judging a
# certificate as its clients do, and comparing the times that a batch scheduler tells by its own clock.
_LOCAL_CLOCKS = (
    # From where browsers count ages on, by which nobody decides anything.
    "app/dashboard/rendering.py",
    "app/db/uuids.py",
    "app/http/tls.py",
    "app/health/service/snapshot_cache.py",
    "app/logs.py",
    "app/terminal/",
    "app/workers/provisioners/blocks.py",
    # Their tokens expire, and their pods wait, by the clock of a cluster.
    "app/workers/provisioners/kubernetes/",
    "app/workers/provisioners/pbs.py",
    "app/cli/",
)


def _files(*floors: str) -> list[Path]:
    """Every file of the service, or those on these floors of any feature."""
    return [path for path in sorted(APP.rglob("*.py")) if not floors or {*path.relative_to(APP).parts} & {*floors}]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _imported(tree: ast.AST, package: str) -> set[str]:
    return {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package
        for alias in node.names
    }


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_queries_are_made_in_store_only(path: Path) -> None:
    if "store" in path.parts or path.is_relative_to(APP / "db"):
        return
    made = _imported(ast.parse(path.read_text()), "sqlalchemy") & _CONSTRUCTORS
    assert not made, (
        f"{_name(path)} makes queries ({made}); move them into a function of a `store` that is named for it"
    )


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_one_place_commits(path: Path) -> None:
    commits = [
        node.lineno
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("commit", "begin")
    ]
    allowed = {f"app/db/{name}.py" for name in ("database", "migration_steps", "schema", "upgrade")}
    assert not commits or _name(path) in allowed, f"{_name(path)}:{commits} commits; only {allowed} may"


@pytest.mark.parametrize("path", _files("rules", "kernel"), ids=_name)
def test_rules_are_not_async(path: Path) -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)
    found = [type(node).__name__ for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]
    assert not found, f"{_name(path)} is async; a rule takes a snapshot and returns a plan"


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_only_the_database_clock_decides(path: Path) -> None:
    clocks = [
        ast.unparse(node)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and ast.unparse(node) in ("datetime.now", "datetime.utcnow", "time.time", "time.time_ns", "date.today")
    ]
    assert not clocks or "cli" in path.parts or _name(path).startswith(_LOCAL_CLOCKS), (
        f"{_name(path)} reads {clocks}; ask the database: db.database.now"
    )


@pytest.mark.parametrize(
    "path", _files("rules", "service", "store", "broker", "provisioners", "postgres", "db", "loops"), ids=_name
)
def test_http_is_known_to_the_api_only(path: Path) -> None:
    assert "HTTPException" not in path.read_text(), f"{_name(path)}: raise an error of the feature instead"


@pytest.mark.parametrize("path", [*_files(), *sorted((ROOT / "worker_agent").rglob("*.py"))], ids=_name)
def test_files_stay_short_and_say_what_they_are_for(path: Path) -> None:
    source = path.read_text()
    assert len(source.splitlines()) <= _LONGEST_FILE, f"{_name(path)} has grown; split it along its nouns"
    assert not source or ast.get_docstring(ast.parse(source)), (
        f"{_name(path)} does not open with a sentence that says its duty"
    )
