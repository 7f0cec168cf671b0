"""The engine of blocks as the settings describe it."""

import shlex
import sys
from pathlib import Path

from app.settings import Settings
from app.workers.provisioners.block_scripts import TEMPLATES
from app.workers.provisioners.blocks import BlockEngine, BlockLaunch, MakeKey
from app.workers.provisioners.environment import handler_arguments, worker_environment
from app.workers.provisioners.pbs import Pbs
from app.workers.provisioners.scheduler import BatchScheduler
from app.workers.provisioners.slurm import Slurm
from app.workers.rules.blocks import BlockPolicy
from worker_agent.connections.trust import Trust

# Of a worker that begins to leave before its job ends: what it needs besides its grace.
_LEAVE_SECONDS = 20.0


class UnusableBlocks(Exception):
    """The settings of blocks contradict each other; the message says how, and what to do."""


def block_engine(settings: Settings, make_key: MakeKey, other_secrets: dict[str, str]) -> BlockEngine:
    """The engine for blocks of Slurm or PBS. Raises UnusableBlocks."""
    return BlockEngine(
        scheduler=_scheduler(settings),
        name=settings.host_name,
        max_size=settings.pool_limit,
        policy=_policy(settings),
        launch=_launch(settings, other_secrets),
        make_key=make_key,
        poll_seconds=settings.block_poll_seconds,
    )


def check_blocks(settings: Settings) -> None:
    """Raise UnusableBlocks where there can be no engine with these settings."""
    _policy(settings)
    _scheduler(settings)
    _launch(settings, {})


def _policy(settings: Settings) -> BlockPolicy:
    if settings.block_max_nodes < settings.block_min_nodes:
        raise UnusableBlocks("CONVENER_BLOCK_MAX_NODES is less than CONVENER_BLOCK_MIN_NODES")
    walltime = settings.block_walltime_minutes * 60
    drain_seconds = settings.stop_grace_seconds + _LEAVE_SECONDS
    if walltime < 2 * drain_seconds:
        raise UnusableBlocks(
            f"with CONVENER_STOP_GRACE_SECONDS={settings.stop_grace_seconds:g} workers leave {drain_seconds:g} s "
            f"before the end of a block: too much of CONVENER_BLOCK_WALLTIME_MINUTES={settings.block_walltime_minutes}"
        )
    return BlockPolicy(
        slots=settings.block_slots,
        min_nodes=settings.block_min_nodes,
        max_nodes=settings.block_max_nodes,
        walltime_seconds=walltime,
        lead_seconds=max(settings.block_lead_minutes * 60, drain_seconds),
        drain_seconds=drain_seconds,
    )


def _scheduler(settings: Settings) -> BatchScheduler:
    try:
        options = shlex.split(settings.block_options)
    except ValueError as error:
        raise UnusableBlocks(f"CONVENER_BLOCK_OPTIONS: {error}") from None
    environment = worker_environment(settings)
    return Pbs(environment, options) if settings.provisioner == "pbs" else Slurm(environment, options)


def _launch(settings: Settings, other_secrets: dict[str, str]) -> BlockLaunch:
    pilot = [sys.executable, "-m", "app.cli", "pilot", "--url", _url(settings)]
    pilot += ["--grace", f"{settings.stop_grace_seconds:g}"]
    worker = handler_arguments(settings)
    worker += ["--gpus", str(settings.worker_gpus)] if settings.worker_gpus else []
    return BlockLaunch(
        directory=(settings.block_directory or settings.state_directory / "blocks") / settings.host_name,
        pilot=pilot,
        worker_arguments=worker,
        template=_template(settings.block_template, settings.provisioner),
        other_secrets=other_secrets,
    )


def _url(settings: Settings) -> str:
    # Not before it is needed: it brings a client for HTTP, and after an outage of a host all programs start at once.
    from worker_agent.connections.clients import check_address

    try:
        # Whether a key may go there in clear is said on the node.
        return check_address(settings.block_url or settings.addresses[-1], Trust(allow_plain_http=True))
    except ValueError as error:
        raise UnusableBlocks(f"CONVENER_BLOCK_URL: {error}") from None


def _template(path: Path | None, kind: str) -> str:
    if path is None:
        return TEMPLATES[kind]
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UnusableBlocks(f"CONVENER_BLOCK_TEMPLATE: cannot read {path} ({error})") from None
