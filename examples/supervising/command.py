"""The command of a supervisor: it finds the service as `convener` does, and ends with an exit code."""

import os
import sys
from collections.abc import Callable

from app.terminal.connection import Access, find_access
from app.terminal.failures import ExitCode, Failure
from examples.supervising.client import Refused, Unreachable
from worker_agent.broken_pipes import ending_with_the_reader


def supervise(pursue: Callable[[Access], int], url: str | None = None) -> int:
    """The exit code of `pursue`; 2 or 4 when the service could not be used, 130 after Ctrl-C."""
    try:
        with ending_with_the_reader():
            return pursue(find_access(url or os.environ.get("CONVENER_URL"), ("supervisor.key",)))
    except Failure as failure:
        failure.show()
        return failure.code
    except (Refused, Unreachable) as error:
        print(f"The research could not go on. {error}", file=sys.stderr)
        return ExitCode.USAGE
    except KeyboardInterrupt:
        print("Interrupted. Tasks that are under way go on; the same command takes up from there.", file=sys.stderr)
        return ExitCode.INTERRUPTED
