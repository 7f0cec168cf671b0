"""What import contracts cannot see: where queries are made, who commits, which clock decides."""

import ast
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
APP = ROOT / "app"
_CONSTRUCTORS = {"text", "select", "insert", "update", "delete", "table", "column"}
_LONGEST_FILE = 400
_TOP_LEVEL = {
    *("app", "benchmarks", "clients", "deploy", "docker", "docs", "examples", "migrations", "openapi", "requirements"),
    *("tests", "worker_agent", "CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "SECURITY.md"),
    "pyproject.toml",
}
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


def _breaches(files: Sequence[Path], look: Callable[[Path], object]) -> dict[str, object]:
    """What is against a rule, by file: one test for all files, as a test for each takes longer than to read it."""
    return {_name(path): breach for path in files if (breach := look(path))}


def test_nothing_strange_stands_at_the_top_level() -> None:
    # What git ignores is hidden or one of these.
    made = {"dist", "sbom.json", "__pycache__"}
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".") and path.suffix != ".egg-info"}
    assert names - made <= _TOP_LEVEL


def test_queries_are_made_in_store_only() -> None:
    def made(path: Path) -> set[str]:
        return _imported(ast.parse(path.read_text()), "sqlalchemy") & _CONSTRUCTORS

    others = [path for path in _files() if "store" not in path.parts and not path.is_relative_to(APP / "db")]
    breaches = _breaches(others, made)
    assert not breaches, f"these make queries; move them into a function of a `store` that is named for it: {breaches}"


def test_one_place_commits() -> None:
    def commits(path: Path) -> list[int]:
        return [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute) and node.attr in ("commit", "begin")
        ]

    allowed = {f"app/db/{name}.py" for name in ("database", "migration_steps", "schema", "upgrade")}
    breaches = _breaches([path for path in _files() if _name(path) not in allowed], commits)
    assert not breaches, f"these commit; only {allowed} may: {breaches}"


def test_rules_are_not_async() -> None:
    kinds = (ast.AsyncFunctionDef, ast.Await, ast.AsyncFor, ast.AsyncWith)

    def asynchronous(path: Path) -> list[str]:
        return [type(node).__name__ for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]

    breaches = _breaches(_files("rules", "kernel"), asynchronous)
    assert not breaches, f"these are async; a rule takes a snapshot and returns a plan: {breaches}"


def test_only_the_database_clock_decides() -> None:
    def clocks(path: Path) -> list[str]:
        return [
            ast.unparse(node)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and ast.unparse(node) in ("datetime.now", "datetime.utcnow", "time.time", "time.time_ns", "date.today")
        ]

    others = [path for path in _files() if "cli" not in path.parts and not _name(path).startswith(_LOCAL_CLOCKS)]
    breaches = _breaches(others, clocks)
    assert not breaches, f"these read clocks; ask the database: db.database.now: {breaches}"


def test_http_is_known_to_the_api_only() -> None:
    files = _files("rules", "service", "store", "broker", "provisioners", "postgres", "db", "loops")
    breaches = _breaches(files, lambda path: "HTTPException" in path.read_text())
    assert not breaches, f"raise an error of the feature instead: {[*breaches]}"


def test_files_stay_short_and_say_what_they_are_for() -> None:
    files = [*_files(), *sorted((ROOT / "worker_agent").rglob("*.py"))]
    long = _breaches(files, lambda path: len(path.read_text().splitlines()) > _LONGEST_FILE)
    assert not long, f"these have grown; split them along their nouns: {[*long]}"

    def is_silent(path: Path) -> bool:
        source = path.read_text()
        return bool(source) and not ast.get_docstring(ast.parse(source))

    silent = _breaches(files, is_silent)
    assert not silent, f"these do not open with a sentence that says their duty: {[*silent]}"
