"""The group of commands that reports failures in words, and ends with their exit code."""

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from app.kernel.text import plain_message
from app.terminal.failures import ExitCode, Failure, failure_of_file, failure_of_value


class Commands(TyperGroup):
    """A group of commands that reports failures in words and ends with their code; as JSON where JSON was asked for."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **options: Any) -> Any:
        """Run the command line, and exit; wrong usage is a failure too where failures are JSON."""
        words = sys.argv[1:] if args is None else list(args)
        as_json = _asks_for_json(words)
        try:
            code = super().main(words, *rest, **{**options, "standalone_mode": not as_json})
        except Failure as failure:
            failure.show(as_json=as_json)
            code = failure.code
        except TyperException as error:
            _usage_failure(error).show(as_json=as_json)
            code = ExitCode.USAGE
        except typer.Abort:
            Failure("aborted", ExitCode.REFUSED).show(as_json=as_json)
            code = ExitCode.REFUSED
        except UnicodeEncodeError as error:
            failure_of_value(error).show(as_json=as_json)
            code = ExitCode.USAGE
        except OSError as error:
            if (file_failure := failure_of_file(error)) is None:
                raise
            file_failure.show(as_json=as_json)
            code = file_failure.code
        sys.exit(code if isinstance(code, int) else ExitCode.OK)

    def invoke(self, ctx: Any) -> Any:
        """Run the command that the words name; values that it refuses are told of in plain words."""
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            # Typer checks values by Pydantic, and hands on its words.
            if (problems := getattr(error.__cause__, "errors", None)) is not None:
                error.message = plain_message(problems()[0])
            raise
        except typer.Abort as abort:
            # Of Ctrl-C at a question it makes the same as of an answer of no.
            if isinstance(abort.__context__, KeyboardInterrupt):
                typer.echo(err=True)
                raise KeyboardInterrupt from None
            raise


def _usage_failure(error: TyperException) -> Failure:
    context = getattr(error, "ctx", None)
    hint = f"`{context.command_path if context else 'convener'} --help` shows what it takes"
    message = error.format_message() if isinstance(error, typer.BadParameter) else str(error)
    return Failure(message, ExitCode.USAGE, hint=hint)


def _asks_for_json(words: Sequence[str]) -> bool:
    if any(word in ("-ojson", "--output=json") for word in words):
        return True
    return any(name in ("-o", "--output") and value == "json" for name, value in pairwise(words))
