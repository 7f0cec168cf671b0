"""`convener pilot`: the process that a job of a batch scheduler starts on each of its nodes."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from app.logs import start_logging
from app.settings import take_settings
from app.settings_sources import SettingsError
from app.terminal import output
from app.terminal.connection import settings_failure
from app.terminal.failures import ExitCode, Failure, first_line

EPILOG = output.examples(
    "srun --ntasks-per-node=1 convener pilot --url https://lab:8765 --name b1 --slots 8 --secrets /shared/b1/secrets",
    "convener pilot --url https://lab:8765 --name b1 --secrets secrets --seconds 3600",
)
# The variables by which Slurm and PBS tell the number of the node, and Slurm the times of the job (seconds since 1970).
_NODE_VARIABLES = ("SLURM_NODEID", "PBS_NODENUM")
_START_VARIABLE, _END_VARIABLE = "SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME"
PASS_THROUGH = {"ignore_unknown_options": False, "allow_interspersed_args": False}


def pilot(
    url: Annotated[str, typer.Option(envvar="CONVENER_URL", help="address of the control plane")],
    name: Annotated[str, typer.Option(help="of the block; its workers are called NAME-NODE-0, NAME-NODE-1, ...")],
    secrets: Annotated[Path, typer.Option(help="file with the workers' key, that only this user can read")],
    slots: Annotated[int, typer.Option(min=1, max=1024, help="workers of this node")] = 1,
    node: Annotated[
        int | None, typer.Option(min=0, help="number of this node; SLURM_NODEID or PBS_NODENUM when not given")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(min=1, help="until the job ends; by SLURM_JOB_END_TIME when not given")
    ] = None,
    grace: Annotated[float, typer.Option(min=0, help="seconds for running tasks after SIGTERM")] = 10.0,
    worker: Annotated[
        list[str] | None, typer.Argument(metavar="[-- OPTIONS...]", help="options of each worker")
    ] = None,
) -> None:
    """Run a relay and the workers of a node, until the job that this is part of ends.

    The relay listens on a unix socket of this user alone, and is the only one that speaks to the control plane. Workers
    that die or leave are started again, with the key that the file holds by then; each exchanges it for one of its own.
    """
    # Imported here, as it takes a moment.
    from app.relay.pilot import PilotSettings, run

    try:
        start_logging(take_settings())
        run(
            PilotSettings(
                url=url,
                name=name,
                node=_node(os.environ) if node is None else node,
                slots=slots,
                secrets=secrets,
                seconds=_seconds(os.environ, time.time()) if seconds is None else seconds,
                grace_seconds=grace,
                worker_arguments=worker or (),
            )
        )
    except SettingsError as error:
        raise settings_failure(error) from None
    except OSError as error:
        raise Failure(first_line(error), ExitCode.USAGE, hint="look at --secrets and TMPDIR") from None


def _node(environment: Mapping[str, str]) -> int:
    words = [environment.get(name, "") for name in _NODE_VARIABLES]
    return next((int(word) for word in words if word.isdecimal()), 0)


def _seconds(environment: Mapping[str, str], now: float) -> float | None:
    start, end = environment.get(_START_VARIABLE, ""), environment.get(_END_VARIABLE, "")
    if not end.isdecimal():
        return None
    # The clock of a node that is behind that of Slurm says that the job has not begun.
    return float(end) - max(now, float(start) if start.isdecimal() else now)
