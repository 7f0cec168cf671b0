"""Options of the confinement of handlers, from the command line or from variables."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker_agent.cgroups import group_parents
from worker_agent.confinement import Confinement, HandlerLimits, Method, handler_user, protected_paths
from worker_agent.file_view import view_files
from worker_agent.handler_environment import parse_patterns

_PATH_OPTIONS = ("--readable", "--writable", "--hide")
# Variables that name files with a key in them.
_KEY_FILES = (
    "CONVENER_KEY_FILE",
    "CONVENER_LLM_KEY_FILE",
    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
)
_OPTIONS = (*_PATH_OPTIONS, "--handler-user", "--pass-env", "--max-processes", "--max-file-gb")


def add_handler_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "what handlers may do",
        "Each is also read from a variable: CONVENER_HANDLER_READABLE, CONVENER_HANDLER_USER, ...",
    )
    add = group.add_argument
    help_of_paths = (
        "a file or directory that handlers may read besides their code",
        "a directory that they may change",
    )
    for option, text in zip(_PATH_OPTIONS, (*help_of_paths, "a file or directory that they never see"), strict=True):
        add(option, action="append", default=[], metavar="PATH", type=Path, help=text)
    add("--handler-user", metavar="USER", help="as root: the user that runs them (default: one of this worker's own)")
    add(
        "--pass-env",
        action="append",
        default=[],
        metavar="NAME,PREFIX*",
        help="further variables that they inherit; few are by default",
    )
    add(
        "--max-processes", type=int, default=256, metavar="COUNT", help="processes and threads of a task (default: 256)"
    )
    add(
        "--max-file-gb",
        type=float,
        default=1.0,
        metavar="GIB",
        help="size of a file, and of a task's temporary directory (default: 1)",
    )


def arguments_from_variables(environment: Mapping[str, str]) -> list[str]:
    """Arguments that variables stand for, to precede those of the command line; lists of paths as in PATH."""
    arguments: list[str] = []
    for option in _OPTIONS:
        name = option.removeprefix("--").removeprefix("handler-").replace("-", "_").upper()
        text = environment.get(f"CONVENER_HANDLER_{name}", "")
        for value in text.split(os.pathsep) if option in _PATH_OPTIONS else [text]:
            arguments += [f"{option}={value}"] if value else []
    return arguments


def read_rules(
    options: argparse.Namespace, environment: Mapping[str, str], programs: Sequence[str] = ()
) -> Confinement:
    """The strictest rules, whose programs are to be readable; a probe tells whether this system can hold them.

    Raises ValueError.
    """
    if options.max_processes < 1 or not 0 < options.max_file_gb < 1_000_000:
        raise ValueError("--max-processes and --max-file-gb must be positive")
    user = handler_user(options.handler_user)
    key_files = [Path(file) for name in _KEY_FILES if (file := environment.get(name))]
    key_files += [options.key_file] if options.key_file else []
    view = view_files(
        programs=programs,
        readable=options.readable,
        writable=options.writable,
        hidden=protected_paths(environment, [*options.hide, *key_files]),
        uid=None if user is None else user[0],
    )
    return Confinement(
        method=Method.NAMESPACES if sys.platform == "linux" else Method.NONE,
        view=view,
        user=user,
        limits=HandlerLimits(max_processes=options.max_processes, max_file_gb=options.max_file_gb),
        groups=group_parents(),
        passed_variables=parse_patterns(options.pass_env),
    )
