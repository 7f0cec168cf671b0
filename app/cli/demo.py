"""`convener demo`: a research goal from submission to report, on leased workers."""

from pathlib import Path
from typing import Annotated

import typer

# A few minutes with the small model.
_LLM_ROUNDS = 6


def demo(
    seed: Annotated[int, typer.Option(help="decides every random choice; 1619 is the year of the law")] = 1619,
    workers: Annotated[int, typer.Option(help="workers in the pool", min=2, max=5)] = 3,
    keep: Annotated[bool, typer.Option("--keep", help="leave everything running afterwards, until Ctrl-C")] = False,
    rounds: Annotated[int | None, typer.Option(help="think for at most this many rounds", min=1, max=1000)] = None,
    port: Annotated[int, typer.Option(help="port of the API; 0 takes any free one", min=0, max=65535)] = 0,
    state: Annotated[
        Path | None, typer.Option(help="directory for the database, keys and logs", resolve_path=True)
    ] = None,
    llm: Annotated[bool, typer.Option("--llm", help="let a language model write the proposals")] = False,
) -> None:
    """Rediscover Kepler's third law from published planetary data.

    Starts PostgreSQL, the API, the loops and a pool on this machine, submits a research goal through the API, and
    prints what came of it. Exits with 0 when the law was found, with 1 when it was not.

    Kill whatever you like meanwhile: the run goes on.

    With --llm a language model writes the proposals, and the data judge them: the one that CONVENER_LLM_URL and
    CONVENER_LLM_MODELS name, else a small one on this machine, without an account or a network (`make local-llm`
    installs it). So small a model may miss the law: then exit code 0 says that the goal was pursued to its end.

    Examples:

      convener demo

      convener demo --seed 7 --workers 2 --keep

      convener demo --llm --rounds 6
    """
    # Not before it is needed: a press of TAB, and --help, wait for what is imported.
    from app.cli.demo_run import Plan, start

    plan = Plan(seed=seed, rounds=rounds or (_LLM_ROUNDS if llm else None), keep=keep, llm=llm)
    success = start(state, {"port": port, "pool_size": workers}, plan)
    raise typer.Exit(0 if success else 1)
