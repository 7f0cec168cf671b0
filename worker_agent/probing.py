"""Finds the strongest confinement that this system allows, by trying it, and imports the handlers under it."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from worker_agent.confinement import Confinement, Method
from worker_agent.file_view import NEVER_SHOWN
from worker_agent.wire import JsonObject

_PROBE_SECONDS = 120
_NO_LIMIT = 2**62


class UnusableHandler(ValueError):
    """A handler is malformed or cannot be loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Outcome of a probe: the rules in force, why stronger ones are not, and why each protection does not hold."""

    confinement: Confinement
    refusals: Mapping[Method, str]
    attempts: Mapping[str, str]
    tables: Mapping[str, Sequence[str]] = field(default_factory=dict)


def probe(rules: Confinement, tables: Sequence[str] = (), functions: Sequence[str] = ()) -> Probe:
    """Import tables and functions under the strongest method that works here. Raises UnusableHandler."""
    refusals: dict[Method, str] = {}
    for weaker in rules.weaker:
        if weaker.user is not None and weaker.method is not Method.NAMESPACES:
            _check_readable(weaker, refusals)
        attempts, answer = _run(weaker, tables, functions)
        if attempts is None:
            refusals[weaker.method] = answer
            continue
        answer_tables = _read_answer(answer, weaker)
        return Probe(confinement=weaker, refusals=refusals, attempts=attempts, tables=answer_tables)
    reasons = "; ".join(f"{method}: {reason}" for method, reason in refusals.items())
    raise UnusableHandler(
        f"handlers never run as root, and this system lets root use no other user ({reasons}): "
        "run the worker as an ordinary user"
    )


def _check_readable(rules: Confinement, refusals: Mapping[Method, str]) -> None:
    """Raises UnusableHandler for code in a directory that the handlers' user cannot enter."""
    assert rules.user is not None
    for path in rules.view.code:
        directory = path
        while directory != os.path.dirname(directory):
            status = os.stat(directory)
            if not status.st_mode & 0o001 and status.st_uid != rules.user[0]:
                raise UnusableHandler(
                    f"handlers run as user {rules.user[0]}, who cannot enter {directory}, where code is imported from: "
                    f"`chmod o+x {directory}`, or move the code ({refusals.get(Method.NAMESPACES, '')})"
                )
            directory = os.path.dirname(directory)


def _run(rules: Confinement, tables: Sequence[str], functions: Sequence[str]) -> tuple[JsonObject | None, str]:
    """The attempts, and what was printed; None and the reason when the process could not be confined so."""
    messages, pipe = os.pipe()
    with os.fdopen(messages, "rb") as stream, _sockets() as addresses, rules.temporary_directory() as temporary:
        check = {"pid_namespace": _pid_namespace(), "code": list(rules.view.code), "sockets": addresses}
        request = {"tables": list(tables), "functions": list(functions), "check": check}
        command = rules.command(
            "handler_probe", pipe, temporary, memory_bytes=_NO_LIMIT, cpu_seconds=_PROBE_SECONDS, **request
        )
        try:
            result = subprocess.run(
                command,
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=_PROBE_SECONDS,
                env=rules.environment(temporary),
                pass_fds=(pipe,),
            )
        except subprocess.TimeoutExpired:  # whose text is the whole command
            raise UnusableHandler(f"the handlers take longer than {_PROBE_SECONDS} s to load") from None
        except (OSError, subprocess.SubprocessError) as error:
            raise UnusableHandler(f"the handlers could not be imported: {error}") from error
        finally:
            os.close(pipe)
        report: JsonObject = json.loads(stream.readline() or b"{}")
    if "attempts" in report:
        return report["attempts"], result.stdout.decode("utf-8", "replace")
    if "shortage" in report:
        # With weaker rules the worker would run all its tasks, long after this has passed.
        raise UnusableHandler(f"this machine has no room for a handler: {report['shortage']}")
    return None, report.get("error", {}).get("message", f"the process ended with {result.returncode}")


def _read_answer(text: str, rules: Confinement) -> dict[str, list[str]]:
    try:
        answer: JsonObject = json.loads(text)
    except ValueError as error:
        raise UnusableHandler("the handlers could not be imported: they ended their interpreter") from error
    if answer["problems"]:
        who = "" if rules.user is None else f" (handlers run as user {rules.user[0]}, which must be able to read them)"
        problems = "; ".join(answer["problems"])
        raise UnusableHandler(problems + who + _places(problems))
    return {table: [str(key) for key in keys] for table, keys in answer["tables"].items()}


def _places(problems: str) -> str:
    """Where handlers are looked for, if that may be what is wrong, as for whoever starts in another directory."""
    if os.getcwd() in NEVER_SHOWN:
        return f"; handlers do not see what lies in {os.getcwd()}"
    if "ModuleNotFoundError" not in problems:
        return ""
    return f"; modules are looked for in this directory, {os.getcwd()}, in PYTHONPATH, and in what {sys.prefix} has"


def _pid_namespace() -> str:
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return "none"


@contextlib.contextmanager
def _sockets() -> Iterator[tuple[str, str]]:
    """A socket with a file and one without, which handlers must not reach: the path and the abstract name."""
    with tempfile.TemporaryDirectory(prefix="convener-check-") as directory, contextlib.ExitStack() as open_sockets:
        path, name = os.path.join(directory, "socket"), f"convener-check-{secrets.token_hex(8)}"
        for address in (path, f"\0{name}"):
            listener = open_sockets.enter_context(socket.socket(socket.AF_UNIX))
            # Only Linux has sockets without a file.
            with contextlib.suppress(OSError):
                listener.bind(address)
                listener.listen(1)
        yield path, name
